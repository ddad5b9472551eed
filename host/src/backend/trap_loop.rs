//! What is told of a VM whose trap handler traps for ever: the trap with which that began.

use std::fmt;

use emu_core::abi::Vm;
use emu_core::layout::MachineKind;
use emu_core::mmu::Privilege;
use emu_core::trap::{TakenTrap, TrapChain, cause};

use super::guess::guess;

/// The first trap of an endless chain of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrapLoop {
    /// The machine, whose devices tell what an address was meant to be.
    pub machine: MachineKind,
    /// The trap.
    pub first: TakenTrap,
    /// The instruction that raised it, if it could be fetched.
    pub insn: Option<u32>,
}

impl TrapLoop {
    /// Returns what a chain of traps began with.
    pub fn new(machine: MachineKind, traps: &TrapChain) -> Self {
        Self { machine, first: traps.first, insn: traps.insn() }
    }

    /// Returns what a VM's last chain of traps began with.
    pub fn of(vm: &Vm) -> Self {
        Self::new(vm.platform.kind, &vm.platform.trap_chain)
    }
}

impl fmt::Display for TrapLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TakenTrap { cause, pc, tval, from, to } = self.first;
        let [from, to] = [from, to].map(letter);
        write!(f, "it began with cause {:#x} ({}) at pc {pc:#010x}", cause, name(cause))?;
        if let Some(insn) = self.insn {
            write!(f, ", instruction {insn:#010x}")?;
        }
        write!(f, ", tval {tval:#010x}, from {from}-mode to the handler of {to}-mode")?;
        match guess(self) {
            Some(guess) => write!(f, ": {guess}"),
            None => Ok(()),
        }
    }
}

fn letter(privilege: Privilege) -> char {
    match privilege {
        Privilege::User => 'U',
        Privilege::Supervisor => 'S',
        Privilege::Machine => 'M',
    }
}

/// Returns what the specification calls a cause.
fn name(cause: u32) -> &'static str {
    const EXCEPTIONS: [&str; 16] = [
        "instruction address misaligned",
        "instruction access fault",
        "illegal instruction",
        "breakpoint",
        "load address misaligned",
        "load access fault",
        "store address misaligned",
        "store access fault",
        "environment call from U-mode",
        "environment call from S-mode",
        "reserved",
        "environment call from M-mode",
        "instruction page fault",
        "load page fault",
        "reserved",
        "store page fault",
    ];
    if cause & cause::INTERRUPT == 0 {
        return EXCEPTIONS.get(cause as usize).copied().unwrap_or("reserved");
    }
    match cause & !cause::INTERRUPT {
        1 | 3 => "software interrupt",
        5 | 7 => "timer interrupt",
        9 | 11 => "external interrupt",
        _ => "interrupt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(first: TakenTrap, insn: Option<u32>) -> String {
        TrapLoop { machine: MachineKind::Virt, first, insn }.to_string()
    }

    #[test]
    fn the_first_trap_is_told_with_a_guess() {
        let (from, to) = (Privilege::Supervisor, Privilege::Machine);
        let first = TakenTrap { cause: 2, pc: 0x8000_0004, tval: 0x4501, from, to };
        assert_eq!(
            told(first, Some(0x4501)),
            "it began with cause 0x2 (illegal instruction) at pc 0x80000004, instruction \
             0x00004501, tval 0x00004501, from S-mode to the handler of M-mode: compressed code, \
             it seems; this machine is rv32ima: build with -march=rv32ima_zicsr_zifencei"
        );
        let first = TakenTrap { cause: 1, pc: 0, tval: 0, from, to };
        assert!(told(first, None).contains("(instruction access fault) at pc 0x00000000, tval"));
        let timer = TakenTrap { cause: 1 << 31 | 7, ..first };
        assert!(told(timer, None).contains("cause 0x80000007 (timer interrupt)"));
    }
}
