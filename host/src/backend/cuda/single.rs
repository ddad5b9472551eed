//! One VM on a device, step by step: bare-metal programs and comparisons.

use emu_core::abi::{Exit, ExitCode};
use emu_core::machine::Now;
use emu_device::launch::{Entry, SLICE, WAKE};

use super::error::CudaError;
use super::fleet::{DeviceFleet, Start, Turn};
use super::gpu::Gpu;
use super::outbox::{Body, messages};
use crate::backend::BackendError;
use crate::machine::Fleet;

/// The VM.
pub struct Single {
    fleet: DeviceFleet,
    ram_base: u64,
}

impl Single {
    /// Starts the only VM of a fleet.
    pub fn start(gpu: Box<dyn Gpu>, fleet: &Fleet) -> Result<Self, BackendError> {
        let mut device = DeviceFleet::new(gpu, &fleet.base, 1)?;
        device.start(&[Start { vm: 0, origin: 0, staged: fleet.stage(0) }])?;
        Ok(Self { fleet: device, ram_base: fleet.plan.kind.map().ram_base.into() })
    }

    /// Runs for about `budget` instructions under the `instret` clock, adds what it printed to
    /// `output`, and answers how it stopped.
    pub fn run(&mut self, budget: u32, output: &mut Vec<u8>) -> Result<Exit, CudaError> {
        let slice = (1 << budget.clamp(1, SLICE).ilog2()).min(SLICE);
        self.fleet.submit(&Turn {
            active: &[Entry { vm: WAKE, inbox: 0 }],
            inbox: &[],
            slices: (budget / slice).max(1),
            slice,
            now: Now::Instret,
            lanes: 1,
        })?;
        let ended = self.fleet.wait()?;
        let report = self.fleet.report(ended)?;
        let mut result = Exit { code: ExitCode::Budget, arg: 0 };
        for message in messages(&report.log) {
            match message.body {
                Body::Console(bytes) => output.extend_from_slice(bytes),
                Body::Exit(exit, _) => result = exit,
                Body::Frame(_) | Body::Taken(_) => {}
            }
        }
        Ok(result)
    }

    /// Instructions retired.
    pub fn instret(&mut self) -> Result<u64, CudaError> {
        Ok(self.fleet.instrets()?.first().copied().unwrap_or_default())
    }

    /// Reads RAM by guest-physical address; `false` outside of it.
    pub fn read(&mut self, addr: u64, bytes: &mut [u8]) -> Result<bool, CudaError> {
        match addr.checked_sub(self.ram_base) {
            Some(at) => self.fleet.read_ram(0, at, bytes),
            None => Ok(false),
        }
    }

    /// Writes a word of RAM that the guest has written before.
    pub fn write_u32(&mut self, addr: u64, word: u32) -> Result<bool, CudaError> {
        match addr.checked_sub(self.ram_base) {
            Some(at) => self.fleet.write_ram(0, at, word),
            None => Ok(false),
        }
    }

    /// Gives the device on.
    pub fn into_gpu(self) -> Result<Box<dyn Gpu>, CudaError> {
        self.fleet.into_gpu()
    }
}
