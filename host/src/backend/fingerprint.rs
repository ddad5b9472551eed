//! Fingerprint of a machine: its whole state hashed to one number, to compare runs by.

use emu_core::abi::Vm;
use emu_core::state::{State, Visitor};
use sha2::{Digest, Sha256};

/// A digest of values. Names do not count, so a field can be renamed.
#[derive(Default)]
struct StateDigest(Sha256);

impl Visitor for StateDigest {
    fn value(&mut self, value: u64, bytes: usize) {
        self.0.update(value.to_le_bytes().get(..bytes).unwrap_or_default());
    }
}

/// Returns a fingerprint of a VM's state ([`emu_core::state`]) and of `pages`, the fingerprint of
/// its private memory.
pub fn fingerprint(vm: &Vm, pages: u64) -> u64 {
    let mut digest = StateDigest::default();
    vm.visit(&mut digest);
    pages.visit(&mut digest);
    let hash = digest.0.finalize();
    hash.iter().take(8).fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use emu_core::chacha::ChaCha;
    use emu_core::dev::virtio::{blk::Blk, net::Net, rng::Rng};
    use emu_core::layout::MachineKind;
    use emu_core::state::Name;
    use zerocopy::{IntoBytes, TryFromBytes};

    use super::*;

    /// What is no state: fields with what they are in, and how many bytes in all.
    #[derive(Default)]
    struct Skipped {
        path: Vec<Name>,
        names: BTreeSet<String>,
        bytes: usize,
    }

    impl Visitor for Skipped {
        fn enter(&mut self, name: Name) {
            self.path.push(name);
        }
        fn leave(&mut self) {
            self.path.pop();
        }
        fn value(&mut self, _: u64, _: usize) {}
        fn skip(&mut self, name: &'static str, bytes: usize) {
            let parent = self.path.last().expect("a field of something");
            self.names.insert(format!("{parent}.{name}"));
            self.bytes += bytes;
        }
    }

    fn vm() -> Vm {
        let mut vm = Vm::new(MachineKind::Virt);
        let virtio = &mut vm.platform.dev.virtio;
        virtio.net = Net::new([2, 0, 0, 0, 0, 1]);
        virtio.rng = Rng::new(ChaCha::new([1; 8]));
        virtio.blk = Blk::new(64);
        vm
    }

    #[test]
    fn it_is_the_same_in_all_versions_with_this_state() {
        assert_eq!(fingerprint(&Vm::new(MachineKind::Virt), 1), 5_310_037_909_832_957_777);
    }

    #[test]
    fn memory_counts() {
        assert_eq!(fingerprint(&vm(), 1), fingerprint(&vm(), 1));
        assert_ne!(fingerprint(&vm(), 1), fingerprint(&vm(), 2));
    }

    #[test]
    fn every_byte_counts_but_those_of_what_is_no_state() {
        let vm = vm();
        let same = fingerprint(&vm, 0);
        let bytes = vm.as_bytes();
        let mut changed = bytes.to_vec();
        let ignored = (0..bytes.len()).filter(|&at| {
            // Not every value of a byte is one of an enum.
            let others: Vec<u64> = (0..8)
                .filter_map(|bit| {
                    changed[at] = bytes[at] ^ 1 << bit;
                    let other = Vm::try_read_from_bytes(&changed).ok();
                    changed[at] = bytes[at];
                    other.map(|other| fingerprint(&other, 0))
                })
                .collect();
            assert!(others.iter().all(|&other| other == same) || !others.contains(&same));
            others.contains(&same)
        });
        let ignored = ignored.count();
        let mut skipped = Skipped::default();
        vm.visit(&mut skipped);
        assert_eq!(ignored, skipped.bytes);
        let names: Vec<&str> = skipped.names.iter().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "clock.reserved",
                "csr.reserved",
                "ctx.fetch",
                "ctx.load",
                "ctx.store",
                "hart.tlb",
                "platform.dtlb",
                "platform.itlb",
                "platform.next_event_at",
                "platform.replaced",
                "platform.touched",
                "pmp.active",
                "progress.reserved",
                "reserved_word.frame",
                "reserved_word.page",
                "reserved_word.reserved",
                "transport.budget",
            ]
        );
    }
}
