//! Our code in the device: the PTX, compiled by the driver.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{
    self, CUfunction_attribute as Attribute, CUjit_option, CUjitInputType, CUlinkState, CUresult,
};
use emu_core::abi::Hot;

use super::compiled::Compiler;
use super::driver::cuda;
use super::error::CudaError;
use super::gpu::Kernel;

/// Bytes of the compiler's log that are kept.
const LOG: usize = 16 << 10;
/// The driver sets no less aside for the stack of a thread that calls functions.
const STACK_MIN: c_int = 1 << 10;

/// The loaded program.
pub struct Module {
    module: sys::CUmodule,
    functions: [sys::CUfunction; 4],
}

/// The driver's compiler, for the device of the current context.
pub struct Jit<'a> {
    /// The program.
    pub ptx: &'a CStr,
}

/// Where a call that compiles or loads leaves its log: the options that say so. They are alive, and
/// stay where they are, as long as the driver may write.
struct Log {
    text: Vec<u8>,
    options: [CUjit_option; 2],
    values: [*mut c_void; 2],
}

impl Log {
    fn new() -> Self {
        let mut text = vec![0u8; LOG];
        let options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The vector's buffer does not move, as nothing makes it longer.
        let values = [text.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG)];
        Self { text, options, values }
    }

    /// The error that a result is, with what the compiler said.
    fn check(&self, result: CUresult) -> Result<(), CudaError> {
        if result == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.text);
        let log = text.trim_matches(['\0', '\n']).to_owned();
        let log = if log.is_empty() { "nothing".to_owned() } else { log };
        Err(CudaError::Refused { code: result as u32, log })
    }
}

/// A program that is being linked; the driver owns what comes of it.
struct Link(CUlinkState);

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = cuda!(cuLinkDestroy(self.0)) {
            tracing::debug!(%error, "after the program was linked");
        }
    }
}

impl Compiler for Jit<'_> {
    type Program = Module;

    fn compile(&self) -> Result<Vec<u8>, CudaError> {
        // The driver writes to the log until the link is gone: dropped in the opposite order.
        let mut log = Log::new();
        let mut state = ptr::null_mut();
        // SAFETY: options and values are arrays of the length given, the log has the size that its
        // option says, and both outlive the link.
        let result = unsafe {
            sys::cuLinkCreate_v2(
                log.options.len() as u32,
                log.options.as_mut_ptr(),
                log.values.as_mut_ptr(),
                &mut state,
            )
        };
        log.check(result)?;
        let link = Link(state);
        // With the zero that ends it.
        let ptx = self.ptx.to_bytes_with_nul();
        // SAFETY: the link is alive; the driver copies from the text, which has the length given,
        // and does not write to it; the name is a constant; there are no options.
        log.check(unsafe {
            sys::cuLinkAddData_v2(
                link.0,
                CUjitInputType::CU_JIT_INPUT_PTX,
                ptx.as_ptr().cast_mut().cast(),
                ptx.len(),
                c"pxvm.ptx".as_ptr(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        })?;
        let (mut cubin, mut len) = (ptr::null_mut(), 0);
        // SAFETY: the link is alive, the out-pointers are to values of the right types.
        log.check(unsafe { sys::cuLinkComplete(link.0, &mut cubin, &mut len) })?;
        if cubin.is_null() || len == 0 {
            return Err(CudaError::Contract("the driver linked nothing"));
        }
        // SAFETY: the driver's, of the length that it told, and there until the link is gone.
        Ok(unsafe { std::slice::from_raw_parts(cubin.cast::<u8>(), len) }.to_vec())
    }

    fn load(&self, cubin: &[u8]) -> Result<Module, CudaError> {
        // The driver finds the end of an image by its headers: nothing else is one.
        if !cubin.starts_with(b"\x7fELF") {
            return Err(CudaError::Contract("the compiled program is no ELF file"));
        }
        // SAFETY: what the driver made of the PTX and, if it comes from a file, was checked to be
        // the same bytes.
        unsafe { Module::load(cubin.as_ptr()) }
    }

    fn load_source(&self) -> Result<Module, CudaError> {
        // SAFETY: PTX that ends with a zero.
        unsafe { Module::load(self.ptx.as_ptr().cast()) }
    }
}

impl Module {
    /// Loads a program into the current context, compiling it if it is PTX.
    ///
    /// # Safety
    /// `image` is a whole ELF file that the driver compiled, or PTX that ends with a zero.
    unsafe fn load(image: *const u8) -> Result<Self, CudaError> {
        let mut log = Log::new();
        let mut module = ptr::null_mut();
        // SAFETY: the image is as the caller says; options and values are arrays of the length
        // given, and the log has the size that its option says.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                image.cast(),
                log.options.len() as u32,
                log.options.as_mut_ptr(),
                log.values.as_mut_ptr(),
            )
        };
        log.check(result)?;
        let mut this = Self { module, functions: [ptr::null_mut(); 4] };
        let names = [c"pxvm_step", c"pxvm_start", c"pxvm_release", c"pxvm_digest"];
        for (function, name) in this.functions.iter_mut().zip(names) {
            cuda!(cuModuleGetFunction(function, module, name.as_ptr()))?;
        }
        let shared = 32 * size_of::<Hot>() as c_int;
        let step = this.function(Kernel::Step);
        cuda!(cuFuncSetAttribute(
            step,
            Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            shared
        ))?;
        tracing::debug!(
            registers = this.attribute(Kernel::Step, Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            stack = this.stack()?,
            "program loaded"
        );
        Ok(this)
    }

    /// The handle of an entry point.
    pub fn function(&self, kernel: Kernel) -> sys::CUfunction {
        let [step, start, release, digest] = self.functions;
        match kernel {
            Kernel::Step => step,
            Kernel::Start => start,
            Kernel::Release => release,
            Kernel::Digest => digest,
        }
    }

    /// Bytes of stack of a thread.
    pub fn stack(&self) -> Result<u32, CudaError> {
        let mut most = STACK_MIN;
        for kernel in [Kernel::Step, Kernel::Start, Kernel::Release, Kernel::Digest] {
            let local = Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES;
            most = most.max(self.attribute(kernel, local)?);
        }
        Ok(most as u32)
    }

    fn attribute(&self, kernel: Kernel, which: Attribute) -> Result<c_int, CudaError> {
        let mut value = 0;
        cuda!(cuFuncGetAttribute(&mut value, which, self.function(kernel)))?;
        Ok(value)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Err(error) = cuda!(cuModuleUnload(self.module)) {
            tracing::debug!(%error, "while the program was unloaded");
        }
    }
}
