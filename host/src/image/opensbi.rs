//! What an OpenSBI firmware does after its start, read from its code.
//!
//! OpenSBI comes in three kinds. `fw_dynamic` is told where the next stage is; `fw_jump` starts
//! what is at an address that was chosen when it was built; `fw_payload` has the next stage in it.
//! The last two copy the device tree to an address of their own, as a rule 34 MiB above the start
//! of RAM, and stand still without a word where there is no memory.
//!
//! A raw binary has no symbols that say all this. But its first functions are written in assembly,
//! in the same order in versions 1.2 to 1.9, which were tried, and are short.

use super::Payload;

/// Instructions of a function that this module can execute.
const LEN_MAX: usize = 8;

const LI_A0_MINUS_1: u32 = 0xfff0_0513;
const RET: u32 = 0x0000_8067;
const NOP: u32 = 0x0000_0013;
/// The functions `fw_boot_hart` and `fw_save_info` of `fw_jump` and `fw_payload`. What follows is
/// `fw_next_arg1`, which returns the address of the device tree, and `fw_next_addr`; each begins at
/// a multiple of eight.
const NOT_TOLD: [u32; 4] = [LI_A0_MINUS_1, RET, RET, NOP];
/// Start of `fw_boot_hart` of `fw_dynamic`: it compares the magic number of what it is told.
const TOLD: [u32; 3] = [0x4942_55b7, 0x34f5_8593, 0x0006_2503];

/// An OpenSBI firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenSbi {
    /// `fw_dynamic`: the machine says where the next stage is.
    Dynamic,
    /// `fw_jump` or `fw_payload`.
    Own {
        /// Address of the next stage.
        next: u32,
        /// Address to which it copies the device tree; `None` if it leaves it in place.
        tree: Option<u32>,
    },
}

impl OpenSbi {
    /// Recognises a firmware that lies at its final addresses.
    pub fn of(firmware: &Payload) -> Option<Self> {
        let code = firmware.segments.iter().find(|s| {
            firmware.entry.checked_sub(s.addr).is_some_and(|at| (at as usize) < s.bytes.len())
        })?;
        let words: Vec<u32> = code
            .bytes
            .chunks_exact(4)
            // The functions are in the first section, which has a few KiB.
            .take(4096)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        if words.windows(TOLD.len()).any(|at| at == TOLD) {
            return Some(Self::Dynamic);
        }
        let found = words.windows(NOT_TOLD.len()).position(|at| at == NOT_TOLD)?;
        let tree_at = found + NOT_TOLD.len();
        let (tree, len) = execute(firmware, code.addr, &words, tree_at)?;
        let next_at = (tree_at + len).next_multiple_of(2);
        let (next, _) = execute(firmware, code.addr, &words, next_at)?;
        let Value::Number(next) = next else { return None };
        let tree = match tree {
            Value::Number(tree) => Some(tree),
            Value::Tree => None,
        };
        Some(Self::Own { next, tree })
    }
}

/// Contents of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Value {
    Number(u32),
    /// The device tree's address, which is in `a1` at the start.
    Tree,
}

/// Executes the function at `words[start]`, which computes an address from constants. Returns what
/// is in `a0` at its end, and its length; `None` if it does anything else.
fn execute(firmware: &Payload, base: u32, words: &[u32], start: usize) -> Option<(Value, usize)> {
    use Value::{Number, Tree};
    const A0: u32 = 10;
    const A1: u32 = 11;
    let mut a = [Number(0), Tree];
    for (i, &insn) in words.get(start..)?.iter().take(LEN_MAX).enumerate() {
        if insn == RET {
            return Some((a[0], i + 1));
        }
        let read = |register: u32| match register {
            0 => Some(Number(0)),
            A0 | A1 => Some(a[(register - A0) as usize]),
            _ => None,
        };
        let (rd, rs1, rs2) = (insn >> 7 & 31, read(insn >> 15 & 31), read(insn >> 20 & 31));
        let upper = insn & 0xffff_f000;
        let imm = (insn.cast_signed() >> 20).cast_unsigned();
        let pc = base.wrapping_add(4 * (start + i) as u32);
        let value = match (insn & 0x7f, insn >> 12 & 7) {
            (0x37, _) => Number(upper),
            (0x17, _) => Number(pc.wrapping_add(upper)),
            (0x13, 0) => sum(rs1?, Number(imm))?,
            (0x33, 0) if insn >> 25 == 0 => sum(rs1?, rs2?)?,
            (0x03, 2) => match sum(rs1?, Number(imm))? {
                Number(at) => Number(word(firmware, at)?),
                Tree => return None,
            },
            _ => return None,
        };
        *a.get_mut(rd.checked_sub(A0)? as usize)? = value;
    }
    None
}

fn sum(a: Value, b: Value) -> Option<Value> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => Some(Value::Number(a.wrapping_add(b))),
        (Value::Tree, Value::Number(0)) | (Value::Number(0), Value::Tree) => Some(Value::Tree),
        _ => None,
    }
}

/// Returns the word of the firmware at an address.
fn word(firmware: &Payload, at: u32) -> Option<u32> {
    firmware.segments.iter().find_map(|segment| {
        let from = at.checked_sub(segment.addr)? as usize;
        let bytes = segment.bytes.get(from..from.checked_add(4)?)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::testing::damage;

    const BASE: u32 = 0x8000_0000;
    const ADD_A0_A0_A1: u32 = 0x00b5_0533;
    const LUI_A1_34_MIB: u32 = 0x0220_05b7;

    fn image(words: &[u32]) -> Payload {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let size = bytes.len() as u32;
        Payload::flat(bytes, size).moved_to(BASE)
    }

    /// Returns a `fw_jump` as OpenSBI 1.5 and later have it: the device tree goes 34 MiB above
    /// itself, the next stage is 4 MiB above.
    pub fn jump() -> Vec<u8> {
        // auipc a0, 0; addi a0, a0, -24; lui a1, 34 MiB; add a0, a0, a1; ret; nop
        let tree = [0x0000_0517, 0xfe85_0513, LUI_A1_34_MIB, ADD_A0_A0_A1, RET, NOP];
        // auipc a0, 0; addi a0, a0, -48; lui a1, 4 MiB; add a0, a0, a1; ret
        let next = [0x0000_0517, 0xfd05_0513, 0x0040_05b7, ADD_A0_A0_A1, RET];
        let words = [&[NOP, NOP][..], &NOT_TOLD, &tree, &next].concat();
        words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect()
    }

    /// Returns a `fw_jump` that was built for other addresses than those of semu: the device tree
    /// goes to 0x8220_0000, the next stage is at 4 MiB.
    pub fn older() -> Vec<u8> {
        // lui a0, 0x82200; ret. lui a0, 0x400; ret.
        let words = [&NOT_TOLD[..], &[0x8220_0537, RET, 0x0040_0537, RET]].concat();
        words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect()
    }

    /// Returns what is recognised as `fw_dynamic`.
    pub fn dynamic() -> Vec<u8> {
        [&[NOP][..], &TOLD, &[RET]].concat().iter().flat_map(|w: &u32| w.to_le_bytes()).collect()
    }

    #[test]
    fn the_kinds_are_told_apart() {
        let flat = |bytes: Vec<u8>| Payload::flat(bytes, 0).moved_to(BASE);
        assert_eq!(OpenSbi::of(&flat(dynamic())), Some(OpenSbi::Dynamic));
        let own = OpenSbi::Own { next: BASE + (4 << 20), tree: Some(BASE + (34 << 20)) };
        assert_eq!(OpenSbi::of(&flat(jump())), Some(own));
        assert_eq!(OpenSbi::of(&image(&[NOP; 64])), None);
    }

    #[test]
    fn damaged_firmware_never_panics() {
        damage(&jump(), 20_000, |bytes| {
            OpenSbi::of(&Payload::flat(bytes, 0).moved_to(BASE));
        });
    }

    #[test]
    fn addresses_may_be_constants_or_in_memory() {
        // As version 1.4 has it: lui a0, 0x82200; ret. Then auipc a0, 0; lw a0, 16(a0); ret; 0; word
        let older = [0x8220_0537, RET, 0x0000_0517, 0x0105_2503, RET, 0, 0x8040_0000];
        let own = OpenSbi::Own { next: 0x8040_0000, tree: Some(0x8220_0000) };
        assert_eq!(OpenSbi::of(&image(&[&NOT_TOLD[..], &older].concat())), Some(own));
        // The tree stays: add a0, a1, zero; ret.
        let staying = [0x0005_8533, RET, 0x8040_0537, RET];
        let own = OpenSbi::Own { next: 0x8040_0000, tree: None };
        assert_eq!(OpenSbi::of(&image(&[&NOT_TOLD[..], &staying].concat())), Some(own));
        // Functions that do more than that, or have no end, say nothing.
        for other in [&[0x0000_0073, RET][..], &[NOP; 20], &[0x8220_0537]] {
            assert_eq!(OpenSbi::of(&image(&[&NOT_TOLD[..], other].concat())), None, "{other:x?}");
        }
    }
}
