//! The device tree of a VM: generated for the machine, or given by the user.
//!
//! `dts/*.dts` are sources for human readers; a test compares them with the generated trees and
//! with `emu_core::layout`.

mod emit;
mod given;

pub use emit::emit;
pub use given::parse as given;

use std::ops::Range;

use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property, ToPropertyValue};
use emu_core::layout::MachineKind;

use crate::virtio::Slots;

/// Largest tree that is accepted, in bytes without padding.
pub const BLOB_MAX: usize = 64 << 10;
/// Largest file with a tree, in bytes: programs pad trees, QEMU to 1 MiB.
pub const FILE_MAX: usize = 2 << 20;
/// Largest number of a tree's nodes.
pub const NODES_MAX: usize = 2048;
/// Largest number of nodes in each other.
pub const DEPTH_MAX: usize = 32;
/// Words of `rng-seed`.
pub const SEED_WORDS: usize = 8;

/// Why a device tree cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The file is not a valid blob.
    #[error("the device tree is no valid blob")]
    Blob(#[source] dtoolkit::error::FdtParseError),
    /// The file is larger than [`FILE_MAX`].
    #[error("the device tree's file has {0} bytes, the limit is {FILE_MAX}")]
    FileTooLarge(usize),
    /// The tree is larger than [`BLOB_MAX`].
    #[error("the device tree has {0} bytes without padding, the limit is {BLOB_MAX}")]
    TooLarge(usize),
    /// There are more nodes than [`NODES_MAX`].
    #[error("the device tree has more than {NODES_MAX} nodes, the limit")]
    TooMany,
    /// Nodes are in more nodes than [`DEPTH_MAX`].
    #[error("the device tree has nodes deeper than {DEPTH_MAX} levels, the limit")]
    TooDeep,
    /// A node cannot be understood.
    #[error("the device tree cannot be read: {0}: {1}")]
    Unreadable(&'static str, String),
    /// The tree describes another machine.
    #[error("the device tree does not fit the machine{hint}:{list}")]
    Misfit {
        /// What the user can do, or nothing.
        hint: &'static str,
        /// What does not fit, as the end of the message.
        list: String,
    },
}

impl TreeError {
    /// What the user can do about a tree that does not fit.
    const FIX: &str = "; with --dtb-fix guests get one in which this is changed";
}

/// The machine that a tree describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The memory map.
    pub kind: MachineKind,
    /// Size of RAM in bytes.
    pub memory: u32,
    /// Size of the ROM in bytes, a power of two; zero without one.
    pub rom: u32,
    /// Whether the machine has a disk.
    pub disk: bool,
    /// Where virtio devices are.
    pub slots: Slots,
}

/// The device tree of a fleet. VMs differ in `/chosen` only.
#[derive(Clone, Debug)]
pub struct Template {
    tree: DeviceTree,
    /// Memory that the tree reserves.
    reserved: Vec<Range<u64>>,
}

/// Contents of `/chosen` for one VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// The kernel's command line.
    pub bootargs: String,
    /// Addresses of the initrd.
    pub initrd: Option<Range<u32>>,
    /// Seed of the kernel's random numbers.
    pub rng_seed: [u32; SEED_WORDS],
}

impl Template {
    /// Returns the blob for one VM: the tree with `chosen` in place of its own values.
    pub fn blob(&self, chosen: &Chosen) -> Vec<u8> {
        let mut tree = self.tree.clone();
        if tree.root.child("chosen").is_none() {
            tree.root.add_child(DeviceTreeNode::new_unchecked("chosen"));
        }
        if let Some(node) = tree.root.child_mut("chosen") {
            set(node, "bootargs", chosen.bootargs.as_str());
            match &chosen.initrd {
                Some(initrd) => {
                    set(node, "linux,initrd-start", initrd.start);
                    set(node, "linux,initrd-end", initrd.end);
                }
                None => {
                    node.remove_property("linux,initrd-start");
                    node.remove_property("linux,initrd-end");
                }
            }
            set(node, "rng-seed", cells(&chosen.rng_seed));
        }
        tree.to_dtb()
    }

    /// Returns the memory in which neither images nor the tree may lie.
    pub fn reserved(&self) -> &[Range<u64>] {
        &self.reserved
    }

    /// Returns the command line in the tree.
    pub fn bootargs(&self) -> Option<String> {
        let mut line = value(self.tree.root.child("chosen")?, "bootargs")?;
        line.pop_if(|last| *last == 0);
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}

/// Returns the source text of a blob.
pub fn text(blob: &[u8]) -> Result<String, TreeError> {
    Ok(Fdt::new(blob).map_err(TreeError::Blob)?.to_string())
}

fn value(node: &DeviceTreeNode, name: &str) -> Option<Vec<u8>> {
    node.property(name).map(|property| property.value().to_vec())
}

fn set<T: ToPropertyValue>(node: &mut DeviceTreeNode, name: &str, value: T) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

fn cells(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

fn strings(list: &[&str]) -> Vec<u8> {
    list.iter().flat_map(|s| s.bytes().chain([0])).collect()
}
