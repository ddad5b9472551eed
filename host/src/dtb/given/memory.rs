//! The memory of a given tree: all that the machine has, because images lie at both ends of it, and
//! no other.

use std::ops::Range;

use emu_core::layout::Region;
use fdt::Fdt;

use super::super::{Shape, TreeError};
use super::misfit::{Misfits, Repair};
use super::node::{Node, check_cells, encode_reg, is_enabled, reg, text};
use crate::units::Size;

/// Whether a node describes RAM.
pub fn is_memory(node: Node<'_, '_>) -> bool {
    text(node, "device_type") == "memory"
}

/// Checks the memory, whose nodes are below the root.
pub fn check(root: Node<'_, '_>, shape: &Shape, misfits: &mut Misfits) {
    let mut nodes = root.children().filter(|node| is_memory(*node));
    let Some(first) = nodes.next() else {
        misfits.add("/", "it has no memory", Repair::Impossible);
        return;
    };
    let given = root.children().filter(|node| is_memory(*node)).flat_map(reg).collect();
    let ram = Region { base: shape.kind.map().ram_base, size: shape.memory };
    let Err(what) = check_ranges(given, ram) else { return };
    let ours = encode_reg(root.cell_sizes(), ram.base.into(), ram.size.into());
    let repair = ours.map_or(Repair::Impossible, |ours| Repair::Set("reg", ours));
    misfits.add(format!("/{}", first.name), what, repair);
    for other in nodes {
        misfits.add(format!("/{}", other.name), "more of that memory", Repair::Remove);
    }
}

/// Checks that these ranges are the machine's RAM, in any order and number.
fn check_ranges(mut given: Vec<Range<u64>>, ram: Region) -> Result<(), String> {
    given.sort_unstable_by_key(|range| range.start);
    let base = u64::from(ram.base);
    let end = base + u64::from(ram.size);
    let mut covered = base;
    for range in &given {
        if range.start < base || range.start > covered {
            return Err(format!(
                "its memory at {:#x} does not follow on the machine's, which is at {base:#x}",
                range.start
            ));
        }
        covered = covered.max(range.end);
    }
    if covered == base {
        return Err("it is no memory".into());
    }
    if covered != end {
        let (given, ours) = (Size(covered - base), Size(end - base));
        return Err(format!(
            "its memory is {given}, the machine's {ours}; give --memory {}",
            given.option()
        ));
    }
    Ok(())
}

/// Returns the ranges in which neither images nor the tree may lie.
pub fn reserved(fdt: &Fdt<'_>) -> Result<Vec<Range<u64>>, TreeError> {
    let block = fdt.memory_reservations().map(|r| {
        let start = r.address() as u64;
        start..start.saturating_add(r.size() as u64)
    });
    let mut reserved: Vec<Range<u64>> = block.collect();
    if let Some(parent) = fdt.find_node("/reserved-memory") {
        check_cells(parent).map_err(|what| TreeError::Unreadable("/reserved-memory", what))?;
        reserved.extend(parent.children().filter(|node| is_enabled(*node)).flat_map(reg));
    }
    reserved.retain(|range| !range.is_empty());
    Ok(reserved)
}
