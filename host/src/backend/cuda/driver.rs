//! The CUDA driver API, behind the [`Gpu`] interface. All calls of CUDA are in this file and in
//! `module.rs`.
//!
//! The driver's library is opened at run time: [`present`] must return true before anything else
//! here is called.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::compiled;
use super::error::{CudaError, oldest_driver};
use super::gpu::{Address, Gpu, Kernel, Mapped, wait_for};
use super::module::Module;
use crate::units::{Size, hex};

/// Device memory left free for the driver's own tables and for other programs, besides what the
/// kernels need.
const HEADROOM: u64 = 384 << 20;

/// Calls a function of CUDA and turns its result into a `Result`.
macro_rules! cuda {
    ($function:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: the library is there, as a `Device` exists only then. Handles are the device's
        // own and alive, pointers are to live values or to memory of at least the size given.
        $crate::backend::cuda::driver::check(stringify!($function), unsafe {
            cudarc::driver::sys::$function($($arg),*)
        })
    };
}
pub(super) use cuda;

/// Turns a CUDA result code into a `Result` with CUDA's description of the error.
pub(super) fn check(call: &'static str, result: CUresult) -> Result<(), CudaError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text: *const c_char = ptr::null();
    // SAFETY: the out-pointer is valid; the text, if any, is static.
    let what = unsafe {
        match sys::cuGetErrorString(result, &mut text) {
            CUresult::CUDA_SUCCESS if !text.is_null() => {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
            _ => "unknown error".to_owned(),
        }
    };
    Err(CudaError::Call { call, what, code: result as u32, advice: advice(result) })
}

fn advice(result: CUresult) -> &'static str {
    match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "another process may use the card (see nvidia-smi), or run fewer machines"
        }
        CUresult::CUDA_ERROR_NO_DEVICE
        | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUresult::CUDA_ERROR_SYSTEM_NOT_READY => "see whether nvidia-smi lists the card",
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "driver and library do not match: reinstall NVIDIA's driver, or restart the machine"
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            concat!("a driver of version ", oldest_driver!(), " or later is needed")
        }
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR => {
            "a bug of pxvm's, not of a guest: run compute-sanitizer, and report it"
        }
        CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => {
            "the card drives a display and its watchdog ended the launch: use another card"
        }
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => "the card's memory is faulty",
        _ => "see dmesg for messages of NVIDIA's driver (Xid)",
    }
}

/// Whether there is a CUDA driver.
pub fn present() -> bool {
    // SAFETY: it tries to open the library by its usual names, as every other call would.
    unsafe { sys::is_culib_present() }
}

/// Description of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Name of the device.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Size of the device's memory.
    pub memory: Size,
    /// Newest version of CUDA that the driver supports.
    pub cuda: (i32, i32),
    /// UUID of the device, as nvidia-smi writes it.
    pub uuid: String,
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, capability: (major, minor), memory, cuda: (x, y), .. } = self;
        write!(f, "{name}, {memory}, compute capability {major}.{minor}, driver for CUDA {x}.{y}")
    }
}

/// Makes the driver keep compiled programs in `folder`: see [`compiled`]. To be called while the
/// process has one thread; does nothing when there are more.
pub fn keep_compiled_in(folder: &Path) {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let wanted = compiled::wanted(&|name| std::env::var_os(name), folder);
    if let (1, Some(folder)) = (threads, wanted) {
        // SAFETY: nobody else reads or changes the environment meanwhile, as this is the only
        // thread of the process: the kernel lists no other, and none but this could start one.
        unsafe { std::env::set_var(compiled::FOLDER, folder) };
    }
}

/// Returns the number of devices that the driver sees.
pub fn count() -> Result<u32, CudaError> {
    tracing::debug!(compiled = ?compiled::cache_location(), "looking for a GPU");
    if !present() {
        return Err(CudaError::NoDriver);
    }
    compiled::make_folder();
    let mut count = 0;
    const NO_DEVICE: u32 = CUresult::CUDA_ERROR_NO_DEVICE as u32;
    match cuda!(cuInit(0)) {
        Err(CudaError::Call { code: NO_DEVICE, .. }) => return Ok(0),
        other => other?,
    }
    cuda!(cuDeviceGetCount(&mut count))?;
    Ok(count.max(0) as u32)
}

/// Returns the description of a device, without opening it.
pub fn info(index: u32) -> Result<Info, CudaError> {
    let count = count()?;
    if index >= count {
        return Err(CudaError::NoDevice { index, count });
    }
    let (mut device, mut name, mut bytes, mut version) = (0, [0; 256], 0, 0);
    cuda!(cuDeviceGet(&mut device, index as c_int))?;
    cuda!(cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device))?;
    cuda!(cuDeviceTotalMem_v2(&mut bytes, device))?;
    cuda!(cuDriverGetVersion(&mut version))?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // Without one, cards of a name are taken for the same.
    let _ = cuda!(cuDeviceGetUuid_v2(&mut uuid, device));
    let name: Vec<u8> = name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Info {
        name: String::from_utf8_lossy(&name).into_owned(),
        capability: (major, minor),
        memory: Size(bytes as u64),
        cuda: (version / 1000, version % 1000 / 10),
        uuid: uuid_text(uuid.bytes.map(|byte| byte as u8)),
    })
}

/// Writes a UUID as nvidia-smi does.
fn uuid_text(bytes: [u8; 16]) -> String {
    let parts = [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex(&bytes[part]));
    format!("GPU-{}", parts.join("-"))
}

fn attribute(device: sys::CUdevice, which: Attribute) -> Result<i32, CudaError> {
    let mut value = 0;
    cuda!(cuDeviceGetAttribute(&mut value, which, device))?;
    Ok(value)
}

/// Callback that prints that something takes long.
pub type Say<'a> = &'a (dyn Fn(&str) + Sync);

/// An open CUDA device with our program loaded.
pub struct Device {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    begin: sys::CUevent,
    event: sys::CUevent,
    module: Option<Module>,
    allocations: Vec<Address>,
    multiprocessors: u32,
    /// Bytes that the driver reserves for the threads' stacks at the first launch.
    stacks: u64,
    /// Pinned memory through which uploads and downloads pass: the driver's copies from and to
    /// other host memory wait for the device without a timeout.
    staging: Option<Pinned>,
    /// Event at the end of such a copy.
    copied: sys::CUevent,
    /// Set by [`Gpu::abandon`]; shared with the mapped memory.
    abandoned: Arc<AtomicBool>,
}

/// Bytes that are uploaded or downloaded at once.
const STAGING: usize = 4 << 20;

// SAFETY: CUDA's handles may be used from any thread that has the context, which every method
// makes sure of (`enter`).
unsafe impl Send for Device {}

impl Device {
    /// Opens a device and loads the program. Calls `say` when that takes long.
    pub fn open(index: u32, ptx: &CStr, say: Say) -> Result<Self, CudaError> {
        let Info { name, capability: (major, minor), .. } = info(index)?;
        if (major, minor) < (7, 5) {
            return Err(CudaError::TooOld { name, major, minor });
        }
        let mut device = 0;
        cuda!(cuDeviceGet(&mut device, index as c_int))?;
        let say = || say(&format!("compiling for {name}, about 10 s, once"));
        Self::take(device, ptx, &say).map_err(|error| match error {
            CudaError::Call { code: OUT_OF_MEMORY, .. }
            | CudaError::Refused { code: OUT_OF_MEMORY, .. } => {
                CudaError::Full { name: name.clone() }
            }
            CudaError::Call { code: UNAVAILABLE, .. } => {
                CudaError::Exclusive { name: name.clone() }
            }
            other => other,
        })
    }

    fn take(device: sys::CUdevice, ptx: &CStr, say: &(dyn Fn() + Sync)) -> Result<Self, CudaError> {
        let mut context = ptr::null_mut();
        cuda!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        // From here on `Drop` cleans up.
        let mut this = Self {
            device,
            context,
            stream: ptr::null_mut(),
            begin: ptr::null_mut(),
            event: ptr::null_mut(),
            module: None,
            allocations: Vec::new(),
            multiprocessors: 0,
            stacks: 0,
            staging: None,
            copied: ptr::null_mut(),
            abandoned: Arc::default(),
        };
        this.enter()?;
        cuda!(cuStreamCreate(
            &mut this.stream,
            sys::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint
        ))?;
        let timed = sys::CUevent_flags::CU_EVENT_DEFAULT as c_uint;
        cuda!(cuEventCreate(&mut this.begin, timed))?;
        cuda!(cuEventCreate(&mut this.event, timed))?;
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
        cuda!(cuEventCreate(&mut this.copied, untimed))?;
        this.staging = Some(this.pinned(STAGING)?);
        let multiprocessors =
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let threads =
            attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?;
        let module = compiled::watched(compiled::LONG, say, || Module::load(ptx))?;
        let module = this.module.insert(module);
        this.multiprocessors = multiprocessors.max(1) as u32;
        this.stacks = multiprocessors as u64 * threads as u64 * u64::from(module.stack()?);
        Ok(this)
    }

    fn enter(&self) -> Result<(), CudaError> {
        cuda!(cuCtxSetCurrent(self.context))
    }

    fn pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        let mut host = ptr::null_mut();
        let len = bytes.max(256);
        // Not write-combined: the host reads it, too.
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_PORTABLE;
        cuda!(cuMemHostAlloc(&mut host, len, flags))?;
        let (context, abandoned) = (self.context, Arc::clone(&self.abandoned));
        let mut mapped = Pinned { host: host.cast(), device: 0, len, context, abandoned };
        cuda!(cuMemHostGetDevicePointer_v2(&mut mapped.device, host, 0))?;
        // SAFETY: just allocated with this length, and not given to the device yet.
        unsafe { mapped.host.write_bytes(0, len) };
        Ok(mapped)
    }

    /// Waits for a copy between the staging memory and the device.
    fn wait_for_copy(&mut self, call: &'static str) -> Result<(), CudaError> {
        cuda!(cuEventRecord(self.copied, self.stream))?;
        let result = wait_for(call, self.timeout(), || happened(self.copied));
        if matches!(result, Err(CudaError::Hung { .. })) {
            self.abandon();
        }
        result
    }

    fn staging(&mut self) -> Result<&mut Pinned, CudaError> {
        self.staging.as_mut().ok_or(CudaError::Contract("no memory for copies"))
    }
}

/// Whether the device has reached an event.
fn happened(event: sys::CUevent) -> Result<bool, CudaError> {
    // SAFETY: the event is a device's own and alive.
    match unsafe { sys::cuEventQuery(event) } {
        CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        other => check("cuEventQuery", other).map(|()| true),
    }
}

impl Gpu for Device {
    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn available(&self) -> Result<u64, CudaError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        cuda!(cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free as u64).saturating_sub(HEADROOM + self.stacks))
    }

    fn alloc(&mut self, bytes: u64) -> Result<Address, CudaError> {
        self.enter()?;
        let mut address = 0;
        cuda!(cuMemAlloc_v2(&mut address, bytes.max(256) as usize))
            .map_err(|e| no_memory(e, bytes))?;
        self.allocations.push(address);
        Ok(address)
    }

    fn map(&mut self, bytes: usize) -> Result<Box<dyn Mapped>, CudaError> {
        self.enter()?;
        Ok(Box::new(self.pinned(bytes)?))
    }

    fn zero(&mut self, at: Address, bytes: u64) -> Result<(), CudaError> {
        self.enter()?;
        cuda!(cuMemsetD8Async(at, 0, bytes as usize, self.stream))
    }

    fn copy(&mut self, to: Address, from: Address, bytes: usize) -> Result<(), CudaError> {
        self.enter()?;
        cuda!(cuMemcpyAsync(to, from, bytes, self.stream))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), CudaError> {
        self.enter()?;
        for (to, piece) in (to..).step_by(STAGING).zip(bytes.chunks(STAGING)) {
            let staging = self.staging()?;
            staging.write(0, piece);
            let from = staging.host.cast_const().cast();
            cuda!(cuMemcpyHtoDAsync_v2(to, from, piece.len(), self.stream))?;
            self.wait_for_copy("cuMemcpyHtoDAsync")?;
        }
        Ok(())
    }

    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.enter()?;
        for (from, piece) in (from..).step_by(STAGING).zip(bytes.chunks_mut(STAGING)) {
            let to = self.staging()?.host.cast();
            cuda!(cuMemcpyDtoHAsync_v2(to, from, piece.len(), self.stream))?;
            self.wait_for_copy("cuMemcpyDtoHAsync")?;
            self.staging()?.read(0, piece);
        }
        Ok(())
    }

    fn launch(
        &mut self,
        kernel: Kernel,
        warps: u32,
        shared: u32,
        at: Address,
    ) -> Result<(), CudaError> {
        self.enter()?;
        let Some(module) = &self.module else {
            return Err(CudaError::Contract("no program was loaded"));
        };
        let mut argument = at;
        let mut arguments = [ptr::from_mut(&mut argument).cast::<c_void>()];
        cuda!(cuLaunchKernel(
            module.function(kernel),
            warps,
            1,
            1,
            32,
            1,
            1,
            shared,
            self.stream,
            arguments.as_mut_ptr(),
            ptr::null_mut(),
        ))
    }

    fn mark(&mut self) -> Result<(), CudaError> {
        self.enter()?;
        cuda!(cuEventRecord(self.event, self.stream))
    }

    fn done(&mut self) -> Result<bool, CudaError> {
        self.enter()?;
        happened(self.event)
    }

    fn begin(&mut self) -> Result<(), CudaError> {
        self.enter()?;
        cuda!(cuEventRecord(self.begin, self.stream))
    }

    fn took(&mut self) -> Result<Duration, CudaError> {
        self.enter()?;
        let mut ms = 0.0;
        cuda!(cuEventElapsedTime(&mut ms, self.begin, self.event))?;
        Ok(Duration::try_from_secs_f32(ms / 1e3).unwrap_or_default())
    }

    fn clear(&mut self) -> Result<(), CudaError> {
        self.enter()?;
        for address in self.allocations.drain(..) {
            cuda!(cuMemFree_v2(address))?;
        }
        Ok(())
    }

    fn abandon(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
        HUNG.store(true, Ordering::Relaxed);
    }
}

/// Whether a device of this process was abandoned.
static HUNG: AtomicBool = AtomicBool::new(false);

/// Ends the process at once if a device does not respond: on the ordinary way out, the driver's
/// library would wait for it.
pub fn leave_if_hung(code: u8) {
    unsafe extern "C" {
        fn _exit(status: c_int) -> !;
    }
    if HUNG.load(Ordering::Relaxed) {
        // SAFETY: POSIX's function, which any thread may call at any time.
        unsafe { _exit(code.into()) }
    }
}

/// The result for a device that another process has for itself, or that nobody may use.
const UNAVAILABLE: u32 = CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE as u32;
const OUT_OF_MEMORY: u32 = CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32;

fn no_memory(error: CudaError, bytes: u64) -> CudaError {
    match error {
        CudaError::Call { call, code: code @ OUT_OF_MEMORY, .. } => {
            CudaError::NoMemory { call, bytes: Size(bytes), code }
        }
        other => other,
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Freeing anything, the module included, waits for the device: for ever.
        if self.abandoned.load(Ordering::Relaxed) {
            std::mem::forget(self.module.take());
            return;
        }
        let note = |result: Result<(), CudaError>| {
            if let Err(error) = result {
                tracing::debug!(%error, "while the GPU was given back");
            }
        };
        note(self.enter());
        for address in self.allocations.drain(..) {
            note(cuda!(cuMemFree_v2(address)));
        }
        drop(self.module.take());
        drop(self.staging.take());
        for event in [self.begin, self.event, self.copied] {
            if !event.is_null() {
                note(cuda!(cuEventDestroy_v2(event)));
            }
        }
        if !self.stream.is_null() {
            note(cuda!(cuStreamDestroy_v2(self.stream)));
        }
        note(cuda!(cuDevicePrimaryCtxRelease_v2(self.device)));
    }
}

/// Pinned host memory that the device accesses over the bus.
struct Pinned {
    host: *mut u8,
    device: Address,
    len: usize,
    context: sys::CUcontext,
    /// Whether the device was given up: see [`Gpu::abandon`].
    abandoned: Arc<AtomicBool>,
}

// SAFETY: the memory is this value's alone; any thread may use it.
unsafe impl Send for Pinned {}

impl Mapped for Pinned {
    fn address(&self) -> Address {
        self.device
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at);
        // SAFETY: in range. No reference to this memory exists, here or elsewhere: what a device
        // that is still at work reads may be torn, and nothing else.
        unsafe { self.host.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn read(&self, at: usize, bytes: &mut [u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at);
        // SAFETY: as `write`; any bytes are good.
        unsafe { self.host.add(at).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.abandoned.load(Ordering::Relaxed) {
            return;
        }
        let freed = cuda!(cuCtxSetCurrent(self.context))
            .and_then(|()| cuda!(cuMemFreeHost(self.host.cast())));
        if let Err(error) = freed {
            tracing::debug!(%error, "while host memory was given back");
        }
    }
}
