//! The interface to a GPU ("device"): memory, copies, launches, events. A trait, so that tests can
//! run the backend without a card.
//!
//! Work is queued and done in order, as in a CUDA stream. Only [`Gpu::wait`], `upload` and
//! `download` wait for it, no longer than [`Gpu::timeout`].

use std::time::{Duration, Instant};

use super::error::CudaError;

/// Address in device memory.
pub type Address = u64;

/// Entry points (kernels) of `emu-device`. All take the address of a `Launch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Runs VMs by the dispatching loop.
    Step,
    /// Runs VMs by the uniform loop.
    StepUniform,
    /// Resets VMs to their first instruction.
    Start,
    /// Takes VMs' private frames back.
    Release,
    /// Computes fingerprints of VMs' memory.
    Digest,
}

/// Mapped (pinned) host memory, which the device can access.
pub trait Mapped: Send {
    /// Address of this memory for the device.
    fn address(&self) -> Address;
    /// Copies `bytes` into this memory. Panics past its end.
    fn write(&mut self, at: usize, bytes: &[u8]);
    /// Copies out of this memory. Panics past its end.
    fn read(&self, at: usize, bytes: &mut [u8]);
}

/// A GPU. Its allocations live as long as it does.
pub trait Gpu: Send {
    /// Number of multiprocessors (SMs).
    fn multiprocessors(&self) -> u32;
    /// Bytes that can be allocated, besides what the driver needs to run the kernels.
    fn available(&self) -> Result<u64, CudaError>;
    /// Allocates device memory, any content, aligned to 256 bytes.
    fn alloc(&mut self, bytes: u64) -> Result<Address, CudaError>;
    /// Allocates host memory that the device can reach.
    fn map(&mut self, bytes: usize) -> Result<Box<dyn Mapped>, CudaError>;
    /// Queues filling device memory with zero.
    fn zero(&mut self, at: Address, bytes: u64) -> Result<(), CudaError>;
    /// Queues a copy of `bytes` bytes between device memory, mapped memory included.
    fn copy(&mut self, to: Address, from: Address, bytes: usize) -> Result<(), CudaError>;
    /// Copies to device memory after all that is queued, and waits for it.
    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), CudaError>;
    /// Copies from device memory after all that is queued, and waits for it.
    fn download(&mut self, from: Address, bytes: &mut [u8]) -> Result<(), CudaError>;
    /// Queues a kernel of that many warps, with that much shared memory for each.
    fn launch(
        &mut self,
        kernel: Kernel,
        warps: u32,
        shared: u32,
        at: Address,
    ) -> Result<(), CudaError>;
    /// Marks the beginning of the time that [`Gpu::took`] returns.
    fn begin(&mut self) -> Result<(), CudaError>;
    /// Marks the end of what is queued, for [`Gpu::done`].
    fn mark(&mut self) -> Result<(), CudaError>;
    /// Whether everything before the mark is done.
    fn done(&mut self) -> Result<bool, CudaError>;
    /// The device's time between the last [`Gpu::begin`] and the last mark, which is done.
    fn took(&mut self) -> Result<Duration, CudaError>;
    /// Gives all allocations of device memory back.
    fn clear(&mut self) -> Result<(), CudaError>;
    /// Gives up a device that does not respond. No call is made to it any more, not even to free
    /// memory, because that would wait for it.
    fn abandon(&mut self);

    /// Longest time to wait for the device.
    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    /// Waits for the mark set by [`Gpu::mark`].
    fn wait(&mut self) -> Result<(), CudaError> {
        let timeout = self.timeout();
        let result = wait_for("cuLaunchKernel", timeout, || self.done());
        if matches!(result, Err(CudaError::Hung { .. })) {
            self.abandon();
        }
        result
    }
}

/// Polls `done` until it returns true, or returns an error after `call` has taken too long.
pub fn wait_for(
    call: &'static str,
    timeout: Duration,
    mut done: impl FnMut() -> Result<bool, CudaError>,
) -> Result<(), CudaError> {
    let start = Instant::now();
    while !done()? {
        let waited = start.elapsed();
        if waited > timeout {
            return Err(CudaError::Hung { call, seconds: timeout.as_secs() });
        }
        if waited > SPIN {
            std::thread::sleep(POLL_EVERY);
        } else {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// Timeout of the device. A launch is sized for some 10 ms, so a device that takes this long is
/// gone.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Time to poll before sleeping: short launches end within it.
const SPIN: Duration = Duration::from_micros(100);
/// Time between two polls of a longer launch: under 1 % of one of 10 ms.
const POLL_EVERY: Duration = Duration::from_micros(30);
