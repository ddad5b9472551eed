//! Comparison of two states of one VM, for lockstep.

use emu_core::abi::Vm;
use emu_core::state::{Name, State, Visitor};

/// The values of a state.
#[derive(Default)]
struct Values(Vec<u64>);

impl Visitor for Values {
    fn value(&mut self, value: u64, _: usize) {
        self.0.push(value);
    }
}

/// Compares a state with the values of another.
struct Comparison {
    /// What is still to come of the other state.
    expected: std::vec::IntoIter<u64>,
    /// Where in the state the visit is.
    path: Vec<Name>,
    /// The first difference.
    found: Option<String>,
}

impl Visitor for Comparison {
    fn enter(&mut self, name: Name) {
        self.path.push(name);
    }

    fn leave(&mut self) {
        self.path.pop();
    }

    fn value(&mut self, gpu: u64, bytes: usize) {
        let cpu = self.expected.next();
        if self.found.is_some() || cpu == Some(gpu) {
            return;
        }
        let cpu = cpu.unwrap_or_default();
        let path = self.path.iter().map(Name::to_string).collect::<Vec<_>>().join(".");
        let digits = 2 + 2 * bytes;
        self.found =
            Some(format!("{path} is {cpu:#0digits$x} on the CPU and {gpu:#0digits$x} on the GPU"));
    }
}

/// Returns the first difference between two states, with its value on the CPU and on the GPU.
/// Caches do not count ([`emu_core::state`]): they hold handles of frames, which differ between the
/// two.
pub fn difference(cpu: &Vm, gpu: &Vm) -> Option<String> {
    let mut values = Values::default();
    cpu.visit(&mut values);
    let mut comparison =
        Comparison { expected: values.0.into_iter(), path: Vec::new(), found: None };
    gpu.visit(&mut comparison);
    comparison.found
}

#[cfg(test)]
mod tests {
    use emu_core::csr::StoredCsr;
    use emu_core::layout::MachineKind;

    use super::*;

    #[test]
    fn a_difference_is_named_and_equal_states_have_none() {
        let cpu = Vm::new(MachineKind::Virt);
        assert_eq!(difference(&cpu, &cpu.clone()), None);
        let mut gpu = cpu.clone();
        gpu.platform.clock.set_timecmp(5);
        assert_eq!(
            difference(&cpu, &gpu).unwrap(),
            "platform.clock.timecmp is 0x0000000000000000 on the CPU and 0x0000000000000005 on the \
             GPU"
        );
        gpu.platform.csr.set(StoredCsr::Sepc, 0x80);
        gpu.hart.x[10] = 7;
        assert_eq!(
            difference(&cpu, &gpu).unwrap(),
            "hart.x.a0 is 0x00000000 on the CPU and 0x00000007 on the GPU"
        );
    }
}
