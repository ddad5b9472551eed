//! Physical memory protection (privileged specification, section 3.7).
//!
//! The granularity is one 4 KiB page (G = 10), so that all of a page has the same permissions, and
//! a TLB entry can include them. NA4 regions therefore do not exist.

/// Number of entries.
pub const ENTRIES: usize = 16;

/// G - 1, where the granularity is 2^(G+2) bytes.
const GRAIN_BITS: u32 = 9;

mod cfg {
    pub const R: u8 = 1;
    pub const W: u8 = 2;
    pub const X: u8 = 4;
    pub const A: u8 = 3 << 3;
    pub const TOR: u8 = 1 << 3;
    pub const NA4: u8 = 2 << 3;
    pub const NAPOT: u8 = 3 << 3;
    pub const L: u8 = 1 << 7;
    pub const WRITABLE: u8 = R | W | X | A | L;
}

/// Permission to read, write and execute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Loads.
    pub r: bool,
    /// Stores and AMOs.
    pub w: bool,
    /// Instruction fetch.
    pub x: bool,
}

impl Access {
    const ALL: Self = Self { r: true, w: true, x: true };
    const NONE: Self = Self { r: false, w: false, x: false };
}

/// `pmpcfg` and `pmpaddr` registers.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Pmp {
    cfg: [u8; ENTRIES],
    addr: [u32; ENTRIES],
    /// Non-zero when an entry is not OFF, which most guests never do.
    active: u32,
}

state!(Pmp { cfg, addr } except { active });

impl Pmp {
    /// The state after reset: all entries are OFF.
    pub const RESET: Self = Self { cfg: [0; ENTRIES], addr: [0; ENTRIES], active: 0 };

    /// The state in which firmware starts an operating system: entry 0 allows every access.
    pub const OPEN: Self = {
        let mut open = Self::RESET;
        open.cfg[0] = cfg::NAPOT | cfg::R | cfg::W | cfg::X;
        open.addr[0] = u32::MAX;
        open.active = 1;
        open
    };

    fn cfg_of(&self, i: usize) -> u8 {
        self.cfg.get(i).copied().unwrap_or(0)
    }

    fn addr_of(&self, i: usize) -> u32 {
        self.addr.get(i).copied().unwrap_or(0)
    }

    /// Reads `pmpcfg<n>`, which holds entries 4n to 4n+3.
    pub fn read_cfg(&self, n: usize) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|i| self.cfg_of(4 * n + i)))
    }

    /// Writes `pmpcfg<n>`. Locked entries keep their value; W without R and NA4 are not accepted.
    pub fn write_cfg(&mut self, n: usize, value: u32) {
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            let old = self.cfg_of(4 * n + i);
            let mut new = byte & cfg::WRITABLE;
            if new & cfg::A == cfg::NA4 {
                new = new & !cfg::A | old & cfg::A;
            }
            if new & (cfg::R | cfg::W) == cfg::W {
                new = new & !(cfg::R | cfg::W | cfg::X) | old & (cfg::R | cfg::W | cfg::X);
            }
            if old & cfg::L == 0
                && let Some(slot) = self.cfg.get_mut(4 * n + i)
            {
                *slot = new;
            }
        }
        self.active = u32::from(self.cfg.iter().any(|c| c & cfg::A != 0));
    }

    /// Reads `pmpaddr<i>`. Bits below the granularity read as the entry's mode requires.
    pub fn read_addr(&self, i: usize) -> u32 {
        let low = (1 << GRAIN_BITS) - 1;
        if self.cfg_of(i) & cfg::A == cfg::NAPOT {
            self.addr_of(i) | low
        } else {
            self.addr_of(i) & !(low << 1 | 1)
        }
    }

    /// Writes `pmpaddr<i>`, unless the entry or a TOR entry above it is locked.
    pub fn write_addr(&mut self, i: usize, value: u32) {
        let above = self.cfg_of(i + 1);
        let locked =
            self.cfg_of(i) & cfg::L != 0 || above & cfg::L != 0 && above & cfg::A == cfg::TOR;
        if !locked && let Some(slot) = self.addr.get_mut(i) {
            *slot = value;
        }
    }

    /// Returns the permissions of the page at physical address `addr`, for M-mode if `machine` is
    /// true and for S and U mode otherwise. The lowest-numbered matching entry decides.
    pub fn check(&self, addr: u64, machine: bool) -> Access {
        if self.active == 0 && machine {
            return Access::ALL;
        }
        let page = (addr >> 12) as u32;
        let mut below = 0;
        for (&c, &a) in self.cfg.iter().zip(&self.addr) {
            let top = a >> (GRAIN_BITS + 1);
            let hit = match c & cfg::A {
                cfg::TOR => below <= page && page < top,
                cfg::NAPOT => {
                    let a = a | ((1 << GRAIN_BITS) - 1);
                    // Bits up to and including the lowest zero are "don't care".
                    let any = a ^ a.wrapping_add(1);
                    (page ^ top) & !(any >> (GRAIN_BITS + 1)) == 0
                }
                _ => false,
            };
            if hit {
                if machine && c & cfg::L == 0 {
                    return Access::ALL;
                }
                return Access { r: c & cfg::R != 0, w: c & cfg::W != 0, x: c & cfg::X != 0 };
            }
            below = top;
        }
        if machine { Access::ALL } else { Access::NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(cfg: u8, addr: u32) -> Pmp {
        let mut pmp = Pmp::RESET;
        pmp.write_addr(0, addr);
        pmp.write_cfg(0, u32::from(cfg));
        pmp
    }

    #[test]
    fn with_every_entry_off_only_machine_mode_has_access() {
        assert_eq!(Pmp::RESET.check(0x8000_0000, true), Access::ALL);
        assert_eq!(Pmp::RESET.check(0x8000_0000, false), Access::NONE);
    }

    #[test]
    fn open_lets_every_mode_do_everything() {
        assert_eq!(Pmp::OPEN.check(0, false), Access::ALL);
        assert_eq!(Pmp::OPEN.check(0xffff_f000, false), Access::ALL);
    }

    #[test]
    fn napot_covers_its_power_of_two() {
        // 64 KiB at 0x8001_0000.
        let pmp = one(cfg::NAPOT | cfg::R, 0x8001_0000 >> 2 | 0x1fff);
        let r = Access { r: true, w: false, x: false };
        assert_eq!(pmp.check(0x8001_0000, false), r);
        assert_eq!(pmp.check(0x8001_f000, false), r);
        assert_eq!(pmp.check(0x8002_0000, false), Access::NONE);
        assert_eq!(pmp.check(0x8000_f000, false), Access::NONE);
    }

    #[test]
    fn napot_all_ones_covers_everything() {
        let pmp = one(cfg::NAPOT | cfg::R | cfg::W | cfg::X, 0xffff_ffff);
        assert_eq!(pmp.check(0, false), Access::ALL);
        assert_eq!(pmp.check(0xffff_f000, false), Access::ALL);
    }

    #[test]
    fn tor_covers_from_the_entry_below() {
        let mut pmp = Pmp::RESET;
        pmp.write_addr(0, 0x1000 >> 2);
        pmp.write_addr(1, 0x3000 >> 2);
        pmp.write_cfg(0, u32::from(cfg::TOR | cfg::X) << 8);
        assert!(pmp.check(0x1000, false).x && pmp.check(0x2000, false).x);
        assert!(!pmp.check(0x0, false).x && !pmp.check(0x3000, false).x);
    }

    #[test]
    fn machine_mode_is_bound_by_locked_entries_alone() {
        assert_eq!(one(cfg::NAPOT, 0xffff_ffff).check(0x1000, true), Access::ALL);
        assert_eq!(one(cfg::NAPOT | cfg::L, 0xffff_ffff).check(0x1000, true), Access::NONE);
    }

    #[test]
    fn a_locked_entry_ignores_writes() {
        let mut pmp = one(cfg::NAPOT | cfg::L | cfg::R, 0xffff_ffff);
        pmp.write_cfg(0, 0);
        pmp.write_addr(0, 0);
        assert_eq!(pmp.read_cfg(0), u32::from(cfg::NAPOT | cfg::L | cfg::R));
        assert_eq!(pmp.read_addr(0), 0xffff_ffff);
    }

    #[test]
    fn software_finds_the_granularity() {
        let pmp = one(0, 0xffff_ffff);
        assert_eq!(pmp.read_addr(0), 0xffff_fc00);
    }
}
