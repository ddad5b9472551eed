//! What the backend needs of a GPU, so that tests can run it without one.
//!
//! Work is queued and done in order. Nothing here waits for it but [`Gpu::wait`], `upload` and
//! `download`, and these wait no longer than [`Gpu::patience`].

use std::time::{Duration, Instant};

use super::error::CudaError;

/// An address in device memory.
pub type Address = u64;

/// The entry points of `emu-device`. All take the address of a `Launch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Runs VMs.
    Step,
    /// Puts VMs to their first instruction.
    Start,
    /// Takes VMs' private frames back.
    Release,
    /// Fingerprints of VMs' memory.
    Digest,
}

/// Memory of the host that the device can reach.
pub trait Mapped: Send {
    /// Where the device sees it.
    fn address(&self) -> Address;
    /// Copies `bytes` into it. Panics past its end.
    fn write(&mut self, at: usize, bytes: &[u8]);
    /// Copies out of it. Panics past its end.
    fn read(&self, at: usize, bytes: &mut [u8]);
}

/// A device. Its allocations live as long as it does.
pub trait Gpu: Send {
    /// Multiprocessors.
    fn processors(&self) -> u32;
    /// Memory that can be allocated, apart from what the driver needs to run the kernels.
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
    /// Queues a kernel of so many warps with so much shared memory each.
    fn launch(
        &mut self,
        kernel: Kernel,
        warps: u32,
        shared: u32,
        at: Address,
    ) -> Result<(), CudaError>;
    /// Marks where the time that [`Gpu::took`] tells begins.
    fn begin(&mut self) -> Result<(), CudaError>;
    /// Marks the end of what is queued, for [`Gpu::done`].
    fn mark(&mut self) -> Result<(), CudaError>;
    /// Whether everything before the mark is done.
    fn done(&mut self) -> Result<bool, CudaError>;
    /// The device's time between the last [`Gpu::begin`] and the last mark, which is done.
    fn took(&mut self) -> Result<Duration, CudaError>;
    /// Gives all allocations of device memory back.
    fn clear(&mut self) -> Result<(), CudaError>;
    /// Gives the device up: it does not answer. No call is made to it any more, also not to give
    /// memory back, as that would wait for it.
    fn abandon(&mut self);

    /// How long a device may take for an answer.
    fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Waits for the mark.
    fn wait(&mut self) -> Result<(), CudaError> {
        let patience = self.patience();
        let result = wait_for("cuLaunchKernel", patience, || self.done());
        if matches!(result, Err(CudaError::Hung { .. })) {
            self.abandon();
        }
        result
    }
}

/// Waits until `done`, for the end of `call`, but not for ever.
pub fn wait_for(
    call: &'static str,
    patience: Duration,
    mut done: impl FnMut() -> Result<bool, CudaError>,
) -> Result<(), CudaError> {
    let start = Instant::now();
    while !done()? {
        let waited = start.elapsed();
        if waited > patience {
            return Err(CudaError::Hung { call, seconds: patience.as_secs() });
        }
        if waited > SPIN {
            std::thread::sleep(NAP);
        } else {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// A launch is sized for some 10 ms. A device that takes this long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time that short launches take; not worth a sleep.
const SPIN: Duration = Duration::from_micros(100);
/// Between two looks at a longer launch: under 1 % of one of 10 ms.
const NAP: Duration = Duration::from_micros(30);
