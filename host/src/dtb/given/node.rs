//! Reads nodes of a given tree: their properties, and where the hart sees their registers.

use std::ops::Range;

use fdt::node::{CellSizes, FdtNode};

/// A node of the tree.
pub type Node<'b, 'a> = FdtNode<'b, 'a>;

/// Whether one of the node's compatible strings meets a condition.
pub fn is_compatible(node: Node<'_, '_>, with: impl Fn(&str) -> bool) -> bool {
    node.compatible().is_some_and(|names| names.all().any(with))
}

/// Whether the node has no status that says otherwise.
pub fn is_enabled(node: Node<'_, '_>) -> bool {
    ["", "okay", "ok"].contains(&text(node, "status"))
}

/// Returns a property's text, empty if there is none.
pub fn text<'a>(node: Node<'_, 'a>, name: &str) -> &'a str {
    node.property(name).and_then(|property| property.as_str()).unwrap_or_default()
}

/// Returns a property of one or two cells as a number.
pub fn value(node: Node<'_, '_>, name: &str) -> Option<u64> {
    number(node.property(name)?.value)
}

/// Returns the number in one or two cells.
pub fn number(cells: &[u8]) -> Option<u64> {
    [4, 8].contains(&cells.len()).then(|| cells.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
}

/// Returns the ranges of the property `reg`.
pub fn reg<'a>(node: Node<'_, 'a>) -> impl Iterator<Item = Range<u64>> + 'a {
    node.reg().into_iter().flatten().map(|region| {
        let start = region.starting_address as u64;
        start..start.saturating_add(region.size.unwrap_or(0) as u64)
    })
}

/// Returns a value of `reg` in these cells; `None` where they have no room for it.
pub fn encode_reg(sizes: CellSizes, start: u64, len: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for (value, cells) in [(start, sizes.address_cells), (len, sizes.size_cells)] {
        match cells {
            1 => bytes.extend(u32::try_from(value).ok()?.to_be_bytes()),
            2 => bytes.extend(value.to_be_bytes()),
            _ => return None,
        }
    }
    Some(bytes)
}

/// Returns what is wrong with address and size cells that `fdt` and this module cannot read.
pub fn check_cells(node: Node<'_, '_>) -> Result<(), String> {
    for name in ["#address-cells", "#size-cells"] {
        if let Some(cells) = node.property(name)
            && (cells.value.len() != 4 || cells.as_usize().is_none_or(|n| n > 4))
        {
            return Err(format!("its {name} is {:?}", cells.value));
        }
    }
    Ok(())
}

/// A window of a bus: where the hart sees its addresses.
#[derive(Clone, Copy)]
pub struct Window {
    from: u64,
    to: u64,
    len: u64,
}

impl Window {
    /// All addresses of the machine.
    pub const EVERYTHING: Self = Self { from: 0, to: 0, len: 1 << 32 };
}

/// Returns the address at which the hart sees an address of a bus.
pub fn seen(windows: &[Window], at: u64) -> Option<u64> {
    windows.iter().find_map(|window| {
        let offset = at.checked_sub(window.from).filter(|offset| *offset < window.len)?;
        window.to.checked_add(offset)
    })
}

/// Returns the address of a bus that the hart sees at `at`.
pub fn on_bus(windows: &[Window], at: u64) -> Option<u64> {
    windows.iter().find_map(|window| {
        let offset = at.checked_sub(window.to).filter(|offset| *offset < window.len)?;
        window.from.checked_add(offset)
    })
}

/// Returns the windows through which the hart sees the bus `node`, if it does.
pub fn inner_windows(
    parent: Node<'_, '_>,
    node: Node<'_, '_>,
    windows: &[Window],
) -> Option<Vec<Window>> {
    let ranges = node.property("ranges")?.value;
    if ranges.is_empty() {
        return Some(windows.to_vec());
    }
    check_cells(node).ok()?;
    let (inner, outer) = (node.cell_sizes(), parent.cell_sizes());
    let [from, to, len] =
        [inner.address_cells, outer.address_cells, inner.size_cells].map(|n| 4 * n);
    let one = |entry: &[u8]| {
        let (at, rest) = entry.split_at(from);
        let (outside, length) = rest.split_at(to);
        let to = seen(windows, number(outside)?)?;
        Some(Window { from: number(at)?, to, len: number(length)? })
    };
    Some(ranges.chunks_exact((from + to + len).max(1)).filter_map(one).collect())
}
