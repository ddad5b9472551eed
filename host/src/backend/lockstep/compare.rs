//! Comparison of two states of one VM, for lockstep.

use std::fmt::Debug;

use emu_core::abi::Vm;

/// Names of the integer registers in the calling convention (ABI).
const NAMES: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4",
    "a5", "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4",
    "t5", "t6",
];
/// Characters shown around a difference in the text of state that has no names of its own.
const CONTEXT: usize = 40;

/// Returns the first difference between two states, with its value on the CPU and on the GPU.
/// Cached translations do not count: they hold frame numbers, which differ between the two.
pub fn difference(cpu: &Vm, gpu: &Vm) -> Option<String> {
    let hex = |what: &str, a: u32, b: u32| {
        (a != b).then(|| format!("{what} is {a:#010x} on the CPU and {b:#010x} on the GPU"))
    };
    let (a, b) = (&cpu.hart, &gpu.hart);
    let registers =
        (0..32).find_map(|i| hex(&format!("register x{i} ({})", NAMES[i]), a.x[i], b.x[i]));
    registers
        .or_else(|| hex("pc", a.pc, b.pc))
        .or_else(|| hex("the LR reservation", a.reservation, b.reservation))
        .or_else(|| hex("the privilege", a.ctx.privilege as u32, b.ctx.privilege as u32))
        .or_else(|| hex("WFI", cpu.platform.waiting, gpu.platform.waiting))
        .or_else(|| text("the clock", &cpu.platform.clock, &gpu.platform.clock))
        .or_else(|| text("a CSR", &cpu.platform.csr, &gpu.platform.csr))
        .or_else(|| text("the CLINT", &cpu.platform.dev.clint, &gpu.platform.dev.clint))
        .or_else(|| text("the PLIC", &cpu.platform.dev.plic, &gpu.platform.dev.plic))
        .or_else(|| text("the UART", &cpu.platform.dev.uart, &gpu.platform.dev.uart))
        .or_else(|| text("the clock chip", &cpu.platform.dev.rtc, &gpu.platform.dev.rtc))
        .or_else(|| text("a virtio device", &cpu.platform.dev.virtio, &gpu.platform.dev.virtio))
}

/// Compares two values by their `Debug` text.
fn text(what: &str, cpu: &dyn Debug, gpu: &dyn Debug) -> Option<String> {
    let (a, b) = (format!("{cpu:?}"), format!("{gpu:?}"));
    if a == b {
        return None;
    }
    let at = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let around = |s: &str| {
        let part = |(i, c): (usize, char)| (i + CONTEXT >= at && i < at + CONTEXT).then_some(c);
        s.char_indices().filter_map(part).collect::<String>()
    };
    Some(format!("{what} is ...{}... on the CPU and ...{}... on the GPU", around(&a), around(&b)))
}

#[cfg(test)]
mod tests {
    use emu_core::layout::MachineKind;

    use super::*;

    #[test]
    fn a_difference_is_named_and_equal_states_have_none() {
        let cpu = Vm::new(MachineKind::Virt);
        assert_eq!(difference(&cpu, &cpu.clone()), None);
        let mut gpu = cpu.clone();
        gpu.hart.x[10] = 7;
        let found = difference(&cpu, &gpu).unwrap();
        assert!(found.contains("x10 (a0)") && found.contains("0x00000007"), "{found}");
        let mut gpu = cpu.clone();
        gpu.platform.clock.timecmp = 5;
        assert!(difference(&cpu, &gpu).unwrap().contains("the clock"));
    }
}
