//! Fingerprint of a machine: its whole state hashed to one number, to compare runs by.

use emu_core::abi::Vm;
use sha2::{Digest, Sha256};

/// Returns a fingerprint of all state that a guest can observe: registers, devices, clock, and
/// `pages`, the fingerprint of its private memory. Cached translations do not count.
pub fn fingerprint(vm: &Vm, pages: u64) -> u64 {
    let (hart, platform, dev) = (&vm.hart, &vm.platform, &vm.platform.dev);
    let hart = (hart.x, hart.pc, hart.reservation, hart.ctx.privilege as u32, platform.waiting);
    let devices = (&dev.clint, &dev.plic, &dev.uart, &dev.rtc, &dev.virtio);
    // State without registers of its own is hashed by its `Debug` text, which omits padding fields.
    let text = format!("{hart:?} {:?} {:?} {devices:?} {pages:x}", platform.clock, platform.csr);
    let text = text.replace(", reserved: 0", "");
    let hash = Sha256::digest(text);
    hash.iter().take(8).fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use emu_core::layout::MachineKind;

    use super::*;

    #[test]
    fn it_is_the_same_in_all_versions_with_this_state() {
        assert_eq!(fingerprint(&Vm::new(MachineKind::Virt), 1), 14_148_052_385_641_163_703);
    }

    #[test]
    fn every_part_of_the_state_counts() {
        let vm = Vm::new(MachineKind::Virt);
        let same = fingerprint(&vm, 1);
        assert_eq!(fingerprint(&vm.clone(), 1), same);
        assert_ne!(fingerprint(&vm, 2), same);
        let changes: [fn(&mut Vm); 4] = [
            |vm| vm.hart.x[31] ^= 1,
            |vm| vm.hart.pc ^= 4,
            |vm| vm.platform.clock.timecmp ^= 1,
            |vm| vm.platform.dev.rtc.epoch_ns ^= 1,
        ];
        for change in changes {
            let mut other = vm.clone();
            change(&mut other);
            assert_ne!(fingerprint(&other, 1), same);
        }
    }
}
