//! What a VM's state is: its fields, their order and their names, in one place for all who read it.
//!
//! A fingerprint, a comparison of two machines, a hash in a test and whatever else needs the whole
//! state walk it with [`State::visit`] and a [`Visitor`] of their own. Each type lists its fields
//! beside its definition; a field that is in no list is an error of the compiler.
//!
//! Not everything in a VM is its state. A visitor receives no values of the rest, which is:
//!
//! - Caches. The TLBs decide what a guest sees that changes a page table without a fence, so all
//!   backends fill them alike (ADR 0006). But they hold handles of frames, which mean something to
//!   one memory only. So two VMs cannot be compared by them, and a VM that is captured starts again
//!   without them.
//! - What follows from other fields, such as which deny bits an access tests.
//! - What keeps fields aligned.

/// A part of a VM's state.
pub trait State {
    /// Calls `visitor` with each value, in an order that is always the same.
    fn visit(&self, visitor: &mut impl Visitor);
}

/// Receives the values of a state in their order.
pub trait Visitor {
    /// What comes until the next [`Visitor::leave`] belongs to `name`. Names are for people: what
    /// must not change when a field is renamed, such as a digest, ignores them.
    fn enter(&mut self, _name: Name) {}

    /// The part that was entered last is complete.
    fn leave(&mut self) {}

    /// Receives a value of `bytes` bytes.
    fn value(&mut self, value: u64, bytes: usize);

    /// Passes a field of `bytes` bytes that is not part of the state.
    fn skip(&mut self, _name: &'static str, _bytes: usize) {}
}

/// The name of a part of the state, within the part around it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// A field or register.
    Field(&'static str),
    /// An element of an array.
    Index(usize),
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Field(name) => f.write_str(name),
            Self::Index(index) => write!(f, "{index}"),
        }
    }
}

/// Visits a part of the state under its name.
pub(crate) fn visit_named(visitor: &mut impl Visitor, name: Name, state: &impl State) {
    visitor.enter(name);
    state.visit(visitor);
    visitor.leave();
}

/// Implements [`State`] for a struct. The lists in braces must have all fields: those that are part
/// of the state, and after `except` those that are not.
macro_rules! state {
    ($Type:ty { $($field:ident),* $(,)? } $(except { $($other:ident),* $(,)? })?) => {
        impl $crate::state::State for $Type {
            fn visit(&self, visitor: &mut impl $crate::state::Visitor) {
                let Self { $($field,)* $($($other,)*)? } = self;
                $($crate::state::visit_named(
                    visitor,
                    $crate::state::Name::Field(stringify!($field)),
                    $field,
                );)*
                $($(visitor.skip(stringify!($other), size_of_val($other));)*)?
            }
        }
    };
}

macro_rules! unsigned {
    ($($Int:ty),*) => {
        $(impl State for $Int {
            fn visit(&self, visitor: &mut impl Visitor) {
                visitor.value(u64::from(*self), size_of::<Self>());
            }
        })*
    };
}
unsigned!(u8, u16, u32, u64);

impl<T: State, const N: usize> State for [T; N] {
    fn visit(&self, visitor: &mut impl Visitor) {
        for (index, element) in self.iter().enumerate() {
            visit_named(visitor, Name::Index(index), element);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use super::*;
    use crate::abi::Vm;
    use crate::layout::MachineKind;

    /// Records all values with their paths.
    #[derive(Default)]
    struct Recorder {
        path: Vec<Name>,
        values: Vec<(String, u64)>,
        bytes: usize,
    }

    impl Visitor for Recorder {
        fn enter(&mut self, name: Name) {
            self.path.push(name);
        }
        fn leave(&mut self) {
            self.path.pop().expect("entered");
        }
        fn value(&mut self, value: u64, bytes: usize) {
            let path: Vec<String> = self.path.iter().map(|name| std::format!("{name}")).collect();
            self.values.push((path.join("."), value));
            self.bytes += bytes;
        }
        fn skip(&mut self, _: &'static str, bytes: usize) {
            self.bytes += bytes;
        }
    }

    fn record(state: &impl State) -> Recorder {
        let mut recorder = Recorder::default();
        state.visit(&mut recorder);
        assert_eq!(recorder.path, []);
        recorder
    }

    #[test]
    fn all_bytes_of_a_vm_are_visited_or_skipped() {
        assert_eq!(record(&Vm::new(MachineKind::Virt)).bytes, size_of::<Vm>());
    }

    #[test]
    fn values_have_their_fields_names() {
        let mut vm = Vm::new(MachineKind::Semu);
        (vm.hart.x[10], vm.platform.clock.retired) = (7, 1 << 40);
        vm.platform.csr.set(crate::csr::StoredCsr::Mepc, 0x100);
        let values = record(&vm).values;
        for expected in [
            ("hart.x.a0", 7),
            ("hart.ctx.privilege", 3),
            ("platform.clock.retired", 1 << 40),
            ("platform.csr.stored.mepc", 0x100),
            ("platform.kind", 1),
            ("platform.dev.virtio.net.queues.1.avail_idx", 0),
        ] {
            let found = values.iter().any(|(path, value)| (path.as_str(), *value) == expected);
            assert!(found, "{expected:?}");
        }
    }

    #[test]
    fn each_value_has_a_path_of_its_own() {
        let values = record(&Vm::new(MachineKind::Virt)).values;
        let mut paths: Vec<&String> = values.iter().map(|(path, _)| path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), values.len());
    }

    #[test]
    fn a_visitor_that_ignores_names_sees_no_renaming() {
        struct Before {
            work: u32,
            link: [u16; 2],
        }
        struct After {
            budget: u32,
            status: [u16; 2],
        }
        state!(Before { work, link });
        state!(After { budget, status });
        let values = |state: Recorder| -> Vec<u64> {
            state.values.into_iter().map(|(_, value)| value).collect()
        };
        let before = values(record(&Before { work: 1, link: [2, 3] }));
        assert_eq!(before, values(record(&After { budget: 1, status: [2, 3] })));
        assert_eq!(before, [1, 2, 3]);
    }
}
