//! A bare fleet: a few VMs on a device that run bare-metal programs, launch by launch, without
//! timers or network of the host.

use emu_core::abi::{Exit, ExitCode, Vm};
use emu_core::clock::Now;
use emu_device::protocol::inbox::{Offer, Writer};
use emu_device::protocol::launch::{Entry, SLICE, WAKE};
use emu_device::protocol::outbox::{Body, messages};

use super::error::CudaError;
use super::fleet::{DeviceFleet, INBOX, LaunchArgs, Start};
use super::gpu::Gpu;
use super::packing::{Choice, InsnLoop};
use super::slot::InputQueue;
use crate::backend::BackendError;
use crate::machine::Fleet;
use crate::net::Packet;

/// A bare fleet on a device.
pub struct BareFleet {
    device: DeviceFleet,
    ram_base: u64,
    packing: Choice,
    /// Console input of each VM that has not been read.
    input: Vec<InputQueue<u8>>,
}

impl BareFleet {
    /// Starts the VMs of a fleet, packed as `packing` says.
    pub fn start(gpu: Box<dyn Gpu>, fleet: &Fleet, packing: Choice) -> Result<Self, BackendError> {
        let mut device = DeviceFleet::new(gpu, fleet)?;
        let starts: Vec<Start> = (0..fleet.count)
            .map(|vm| Start { vm, origin: 0, staged: fleet.stage(vm, 0) })
            .collect();
        device.start(&starts)?;
        let input = (0..fleet.count).map(|_| InputQueue::default()).collect();
        Ok(Self { device, ram_base: fleet.plan.kind.map().ram_base.into(), packing, input })
    }

    /// Runs each of `vms`, which are in order, to its next multiple of `slice` instructions, under
    /// the `instret` clock. `slice` is a power of two and at most [`SLICE`]. Returns how each VM
    /// stopped and what it printed.
    pub fn run_slice(
        &mut self,
        vms: &[u32],
        slice: u32,
    ) -> Result<Vec<(Exit, Vec<u8>)>, CudaError> {
        let mut inbox = Writer::new(INBOX);
        let active: Vec<Entry> = vms
            .iter()
            .map(|&vm| Entry { vm: vm | WAKE, inbox: self.offer(vm, &mut inbox) })
            .collect();
        let (runnable, multiprocessors) = (vms.len() as u32, self.device.multiprocessors());
        let packing = self.packing.packing(runnable, multiprocessors, InsnLoop::Dispatch);
        let now = Now::Instret;
        let slice = slice.min(SLICE);
        let args = LaunchArgs {
            active: &active,
            inbox: inbox.bytes(),
            slices: 1,
            slice,
            now,
            packing,
            time: None,
        };
        self.device.submit(&args)?;
        let running = Exit { code: ExitCode::Budget, arg: 0 };
        let mut ended = vec![(running, Vec::new()); vms.len()];
        let mut waiting_for_disk = Vec::new();
        loop {
            let completed = self.device.wait()?;
            let result = self.device.result(completed)?;
            for message in messages(&result.log) {
                let Ok(at) = vms.binary_search(&message.vm) else { continue };
                let (exit, printed) = &mut ended[at];
                match message.body {
                    Body::Console(bytes) => printed.extend_from_slice(bytes),
                    // It goes on with the next launch, or asks again.
                    Body::Exit(Exit { code: ExitCode::Disk, arg }, _) => {
                        waiting_for_disk.push((message.vm, arg));
                    }
                    Body::Exit(how, _) => *exit = how,
                    Body::Taken(record) => self.input[message.vm as usize]
                        .acknowledge(record.taken.console, record.offered.console),
                    Body::Packet(_) | Body::TrapLoop(_) => {}
                }
            }
            if !result.full {
                break;
            }
            // A launch without slices reports what the log had no room for.
            self.device.submit(&LaunchArgs { slices: 0, ..args })?;
        }
        if !waiting_for_disk.is_empty() {
            self.device.load_disk(&mut waiting_for_disk)?;
        }
        Ok(ended)
    }

    /// Adds a VM's input to the inbox of a launch. Returns where it is there.
    fn offer(&self, vm: u32, inbox: &mut Writer) -> u32 {
        let InputQueue { queue, at, .. } = &self.input[vm as usize];
        if queue.is_empty() {
            return 0;
        }
        let packets: (&[Packet], &[Packet]) = (&[], &[]);
        inbox.add(&Offer { console_at: *at, console: queue.as_slices(), packets_at: 0, packets })
    }

    /// Queues console input for a VM.
    pub fn queue_input(&mut self, vm: u32, bytes: &[u8]) {
        self.input[vm as usize].queue.extend(bytes);
    }

    /// Returns how many bytes of console input the VM has not read.
    pub fn input_waiting(&self, vm: u32) -> usize {
        self.input[vm as usize].queue.len()
    }

    /// Whether console input may wake a VM that is idle.
    pub fn wants_input(&mut self, vm: u32) -> Result<bool, CudaError> {
        Ok(self.device.vm(vm)?.wants_input())
    }

    /// Returns how many instructions each VM has retired.
    pub fn instrets(&mut self) -> Result<Vec<u64>, CudaError> {
        self.device.instrets()
    }

    /// Returns a VM's state and a fingerprint of its private pages.
    pub fn state(&mut self, vm: u32) -> Result<(Vm, u64), CudaError> {
        let pages = self.device.digests(&[vm])?.first().copied().unwrap_or_default();
        Ok((self.device.vm(vm)?, pages))
    }

    /// Returns a VM's state.
    pub fn vm(&mut self, vm: u32) -> Result<Vm, CudaError> {
        self.device.vm(vm)
    }

    /// Reads RAM by guest-physical address; `false` outside of it.
    pub fn read(&mut self, vm: u32, addr: u64, bytes: &mut [u8]) -> Result<bool, CudaError> {
        match addr.checked_sub(self.ram_base) {
            Some(at) => self.device.read_ram(vm, at, bytes),
            None => Ok(false),
        }
    }

    /// Writes a word of RAM that the guest has written before.
    pub fn write_u32(&mut self, vm: u32, addr: u64, word: u32) -> Result<bool, CudaError> {
        match addr.checked_sub(self.ram_base) {
            Some(at) => self.device.write_ram(vm, at, word),
            None => Ok(false),
        }
    }

    /// Frees the fleet's memory and returns the device, for another fleet.
    pub fn into_gpu(self) -> Result<Box<dyn Gpu>, CudaError> {
        self.device.into_gpu()
    }
}
