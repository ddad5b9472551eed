//! The CUDA module: our PTX, compiled and loaded by the driver.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUjit_option, CUresult};

use super::driver::cuda;
use super::error::CudaError;
use super::gpu::Kernel;
use super::packing::InsnLoop;

/// Bytes of the compiler's log that are kept.
const LOG: usize = 16 << 10;
/// Smallest stack that the driver reserves for a thread that calls functions.
const STACK_MIN: c_int = 1 << 10;

/// The loaded module.
pub struct Module {
    module: sys::CUmodule,
    /// The entry points; null if this build does not have it.
    functions: [sys::CUfunction; 5],
}

impl Module {
    /// Loads PTX into the current context. The driver compiles it, unless the result is in its
    /// cache ([`super::compiled`]).
    pub fn load(ptx: &CStr) -> Result<Self, CudaError> {
        let mut log = vec![0u8; LOG];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG)];
        let mut module = ptr::null_mut();
        // SAFETY: the text ends with a zero; options and values are arrays of the length given,
        // and the log has the size that its option says.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                ptx.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if result != CUresult::CUDA_SUCCESS {
            let text = String::from_utf8_lossy(&log);
            let log = text.trim_matches(['\0', '\n']).to_owned();
            let log = if log.is_empty() { "nothing".to_owned() } else { log };
            return Err(CudaError::Refused { code: result as u32, log });
        }
        let mut this = Self { module, functions: [ptr::null_mut(); 5] };
        let names = [c"pxvm_step", c"pxvm_start", c"pxvm_release", c"pxvm_digest"];
        let uniform = InsnLoop::HAS_UNIFORM.then_some(c"pxvm_step_uniform");
        for (function, name) in this.functions.iter_mut().zip(names.into_iter().chain(uniform)) {
            cuda!(cuModuleGetFunction(function, module, name.as_ptr()))?;
        }
        for &insn_loop in InsnLoop::ON_GPU {
            let kernel = insn_loop.kernel();
            let shared = 32 * insn_loop.shared() as c_int;
            cuda!(cuFuncSetAttribute(
                this.function(kernel),
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared
            ))?;
            tracing::debug!(
                ?insn_loop,
                registers = this.attribute(kernel, Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
                stack = this.stack()?,
                "program loaded"
            );
        }
        Ok(this)
    }

    /// Returns the handle of an entry point.
    pub fn function(&self, kernel: Kernel) -> sys::CUfunction {
        let [step, start, release, digest, step_uniform] = self.functions;
        match kernel {
            Kernel::Step => step,
            Kernel::StepUniform => step_uniform,
            Kernel::Start => start,
            Kernel::Release => release,
            Kernel::Digest => digest,
        }
    }

    /// Returns the bytes of stack that a thread needs.
    pub fn stack(&self) -> Result<u32, CudaError> {
        let mut most = STACK_MIN;
        for kernel in
            [Kernel::Step, Kernel::StepUniform, Kernel::Start, Kernel::Release, Kernel::Digest]
        {
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
