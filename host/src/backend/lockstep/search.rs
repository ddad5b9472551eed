//! The search for the first instruction after which CPU and GPU differ.

use emu_core::abi::ExitCode;
use emu_core::insn::decode;
use emu_core::mem::FRAME_SIZE;
use emu_core::trace::{NoTrace, Trace};
use emu_device::protocol::launch::SLICE;

use super::compare::difference;
use super::{CpuSide, Pair};
use crate::backend::BackendError;

/// Trace that keeps the last retired instruction.
#[derive(Default)]
struct Last {
    pc: u32,
    insn: u32,
}

impl Trace for Last {
    fn retire(&mut self, pc: u32, insn: u32, _: u32) {
        (self.pc, self.insn) = (pc, insn);
    }
}

impl Pair {
    /// Runs a VM again from its start, the last slice instruction by instruction, and returns where
    /// the two sides diverge, which is before `end`.
    pub(super) fn search(&mut self, index: u32, end: u64, what: &str) -> BackendError {
        let found = self.first_difference(index, end);
        let name = self.shared.part.name(index);
        BackendError::Apart(match found {
            Ok(Some(found)) => found,
            Ok(None) => format!(
                "{name} differs by instruction {end}: {what}; a second run of it alone did not"
            ),
            Err(error) => format!("{name} differs by instruction {end}: {what}; then: {error}"),
        })
    }

    fn first_difference(&mut self, index: u32, end: u64) -> Result<Option<String>, BackendError> {
        let name = self.shared.part.name(index);
        self.device.release(&[index])?;
        let mut side = self.make(index, 0)?;
        let last_good = end.saturating_sub(1) / u64::from(SLICE) * u64::from(SLICE);
        let mut trace = Last::default();
        while side.retired() < last_good {
            self.gpu_slice(&[index], SLICE)?;
            let gpu = self.device.vm(index)?;
            side.follow(&mut self.context, SLICE, &gpu, &mut NoTrace);
        }
        while side.retired() < end {
            let before = side.retired();
            self.gpu_slice(&[index], 1)?;
            let gpu = self.device.vm(index)?;
            let exit = side.follow(&mut self.context, 1, &gpu, &mut trace);
            if let Some(what) = difference(side.guest.vm(), &gpu) {
                let Last { pc, insn } = trace;
                let op = decode(insn);
                return Ok(Some(format!(
                    "{name} differs after instruction {before}, at pc {pc:#010x}, {insn:#010x} \
                     ({op:?}): {what}"
                )));
            }
            let stuck = side.retired() == before;
            if stuck || !matches!(exit.code, ExitCode::Budget | ExitCode::Stalled) {
                break;
            }
        }
        let digest = self.device.digests(&[index])?;
        if digest != [side.guest.session(&mut self.context).private_pages()] {
            return self.first_wrong_byte(index, &mut side).map(Some);
        }
        Ok(None)
    }

    /// Returns the first byte of RAM that differs.
    fn first_wrong_byte(&mut self, index: u32, side: &mut CpuSide) -> Result<String, BackendError> {
        let name = self.shared.part.name(index);
        let plan = &self.shared.part.fleet.plan;
        let (base, pages) = (plan.kind.map().ram_base, plan.memory / FRAME_SIZE);
        let mut session = side.guest.session(&mut self.context);
        let (mut ours, mut theirs) = ([0; FRAME_SIZE as usize], [0; FRAME_SIZE as usize]);
        for page in 0..pages {
            let at = u64::from(page * FRAME_SIZE);
            // Both addresses are inside RAM.
            let _ = session.with_ram(|ram| ram.read(u64::from(base) + at, &mut ours));
            self.device.read_ram(index, at, &mut theirs)?;
            if let Some(i) = ours.iter().zip(&theirs).position(|(a, b)| a != b) {
                let addr = u64::from(base) + at + i as u64;
                return Ok(format!(
                    "{name} differs in RAM: byte {addr:#x} is {:#04x} on the CPU and {:#04x} on \
                     the GPU",
                    ours[i], theirs[i]
                ));
            }
        }
        Ok(format!("{name} has other private pages on the GPU, of the same content"))
    }
}
