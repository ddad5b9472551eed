//! Sv32 translation (privileged specification, section 10.3), filling the TLBs of [`crate::tlb`].

use crate::abi::{Hart, NO_RESERVATION, Platform};
use crate::csr::{SATP_MODE, StoredCsr, mstatus};
use crate::mem::{FRAME_SHIFT, Frame, Memory, Ram};
use crate::pmp;
use crate::state::{State, Visitor};
use crate::tlb::{L2Tlb, deny};
use crate::trap::{TakenTrap, Trap, cause};
use crate::uniform::{ALL_TOUCHED, TRANSLATIONS_MAX};

/// Privilege modes, with the specification's encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Privilege {
    User = 0,
    Supervisor = 1,
    Machine = 3,
}

impl State for Privilege {
    fn visit(&self, visitor: &mut impl Visitor) {
        (*self as u32).visit(visitor);
    }
}

/// What an access is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessType {
    /// A load or LR.
    Load,
    /// A store, SC or AMO.
    Store,
    /// An instruction fetch.
    Fetch,
}

impl AccessType {
    fn page_fault(self, va: u32) -> Trap {
        Trap::new(
            match self {
                Self::Load => cause::LOAD_PAGE,
                Self::Store => cause::STORE_PAGE,
                Self::Fetch => cause::INSN_PAGE,
            },
            va,
        )
    }

    pub(crate) fn access_fault(self, va: u32) -> Trap {
        Trap::new(
            match self {
                Self::Load => cause::LOAD_ACCESS,
                Self::Store => cause::STORE_ACCESS,
                Self::Fetch => cause::INSN_ACCESS,
            },
            va,
        )
    }
}

/// Mask of the page number in an address.
pub const PAGE_MASK: u32 = !((1 << FRAME_SHIFT) - 1);

/// The part of the hart's state that translation depends on, in the form that TLB lookups need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Context {
    /// Current privilege.
    pub privilege: Privilege,
    /// The deny bit that a load tests.
    pub load: u32,
    /// The deny bits that a store tests.
    pub store: u32,
    /// The deny bit that a fetch tests.
    pub fetch: u32,
}

state!(Context { privilege } except { load, store, fetch });

impl Context {
    /// M-mode.
    pub const RESET: Self = Self {
        privilege: Privilege::Machine,
        load: deny::M_R,
        store: deny::M_W | deny::CODE,
        fetch: deny::M_X,
    };
}

/// Page table entry bits.
mod pte {
    pub const V: u32 = 1 << 0;
    pub const R: u32 = 1 << 1;
    pub const W: u32 = 1 << 2;
    pub const X: u32 = 1 << 3;
    pub const U: u32 = 1 << 4;
    pub const A: u32 = 1 << 6;
    pub const D: u32 = 1 << 7;
}

/// The result of a page-table walk: the page's physical address and its permissions.
struct Leaf {
    /// The physical page number, up to 22 bits.
    ppn: u32,
    /// The PTE bits that apply to the page. Without translation, these are all but U.
    bits: u32,
    superpage: bool,
}

/// What an access reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// A frame of RAM or, for loads and fetches, of ROM. For stores the frame is private.
    Ram(Frame),
    /// The physical address of anything else.
    Mmio(u32),
}

impl Platform {
    /// Changes the privilege mode.
    pub fn set_privilege(&self, hart: &mut Hart, privilege: Privilege) {
        hart.ctx.privilege = privilege;
        self.sync_context(hart);
    }

    /// Recomputes the context after a change of privilege or `mstatus`.
    pub(crate) fn sync_context(&self, hart: &mut Hart) {
        let status = self.csr.get(StoredCsr::Mstatus);
        let data_privilege = self.data_privilege(hart);
        let ctx = &mut hart.ctx;
        ctx.fetch = match ctx.privilege {
            Privilege::User => deny::U_X,
            Privilege::Supervisor => deny::S_X,
            Privilege::Machine => deny::M_X,
        };
        (ctx.load, ctx.store) = match data_privilege {
            Privilege::User => (deny::U_R, deny::U_W),
            Privilege::Supervisor if status & mstatus::SUM != 0 => (deny::SUM_R, deny::SUM_W),
            Privilege::Supervisor => (deny::S_R, deny::S_W),
            Privilege::Machine => (deny::M_R, deny::M_W),
        };
        ctx.store |= deny::CODE;
    }

    /// Returns the privilege of loads and stores, which is `mstatus.MPP` when MPRV is set.
    fn data_privilege(&self, hart: &Hart) -> Privilege {
        let status = self.csr.get(StoredCsr::Mstatus);
        if status & mstatus::MPRV == 0 {
            return hart.ctx.privilege;
        }
        match (status & mstatus::MPP) >> mstatus::MPP_SHIFT {
            0 => Privilege::User,
            1 => Privilege::Supervisor,
            _ => Privilege::Machine,
        }
    }

    fn allowed(&self, leaf: &Leaf, access: AccessType, privilege: Privilege) -> bool {
        let status = self.csr.get(StoredCsr::Mstatus);
        let mode = match privilege {
            Privilege::Machine => true,
            Privilege::User => leaf.bits & pte::U != 0,
            Privilege::Supervisor => {
                leaf.bits & pte::U == 0 || access != AccessType::Fetch && status & mstatus::SUM != 0
            }
        };
        let need = match access {
            AccessType::Load if status & mstatus::MXR != 0 => pte::R | pte::X,
            AccessType::Load => pte::R,
            AccessType::Store => pte::W,
            AccessType::Fetch => pte::X,
        };
        mode && leaf.bits & need != 0
    }

    /// Walks the page table. Sets the A bit, and the D bit for stores: the scheme in which hardware
    /// updates them.
    fn walk<M: Ram>(
        &mut self,
        hart: &mut Hart,
        ram: &mut M,
        va: u32,
        access: AccessType,
        privilege: Privilege,
    ) -> Result<Leaf, Trap> {
        let satp = self.csr.get(StoredCsr::Satp);
        if privilege == Privilege::Machine || satp & SATP_MODE == 0 {
            return Ok(Leaf { ppn: va >> FRAME_SHIFT, bits: !pte::U, superpage: false });
        }
        let mut table = satp & 0x003f_ffff;
        for level in [1u32, 0] {
            let index = va >> (FRAME_SHIFT + 10 * level) & 0x3ff;
            let page = self.ram_page(ram, table, access, va, false)?;
            let frame = ram.frame(page).ok_or(access.access_fault(va))?;
            let entry = ram.load32(frame, index * 4);
            if entry & pte::V == 0 || entry & (pte::R | pte::W) == pte::W {
                return Err(access.page_fault(va));
            }
            let ppn = entry >> 10;
            if entry & (pte::R | pte::X) == 0 {
                // The entry points to the next level. D, A and U are reserved in such an entry.
                if entry & (pte::D | pte::A | pte::U) != 0 {
                    return Err(access.page_fault(va));
                }
                table = ppn;
                continue;
            }
            let low = va >> FRAME_SHIFT & ((1 << (10 * level)) - 1);
            if ppn & ((1 << (10 * level)) - 1) != 0 {
                return Err(access.page_fault(va));
            }
            let leaf = Leaf { ppn: ppn | low, bits: entry, superpage: level == 1 };
            if !self.allowed(&leaf, access, privilege) {
                return Err(access.page_fault(va));
            }
            let dirty = if access == AccessType::Store { pte::D } else { 0 };
            let updated = entry | pte::A | dirty;
            if updated != entry {
                self.ram_page(ram, table, access, va, true)?;
                let frame = self.private(hart, ram, page)?;
                if ram.is_code(page, frame) {
                    ram.drop_code(frame);
                    self.replaced = 1;
                    self.touched = ALL_TOUCHED;
                }
                ram.store32(frame, index * 4, updated);
            }
            return Ok(Leaf { bits: updated, ..leaf });
        }
        Err(access.page_fault(va))
    }

    /// Returns the page of RAM that holds a page table, after checking PMP as for an implicit
    /// access from S-mode.
    fn ram_page<M: Memory>(
        &self,
        ram: &M,
        ppn: u32,
        access: AccessType,
        va: u32,
        write: bool,
    ) -> Result<u32, Trap> {
        let allowed = self.csr.pmp.check(u64::from(ppn) << FRAME_SHIFT, false);
        let page = ppn.wrapping_sub(self.kind.map().ram_base >> FRAME_SHIFT);
        if page < ram.pages() && allowed.r && (!write || allowed.w) {
            Ok(page)
        } else {
            Err(access.access_fault(va))
        }
    }

    /// Returns the ROM's frame at a physical address. Page tables cannot be in ROM, so walks do not
    /// use this.
    fn rom_frame<M: Ram>(&self, ram: &M, physical: u64) -> Option<Frame> {
        let offset = self.kind.map().rom.offset(u32::try_from(physical).ok()?)?;
        ram.rom(offset >> FRAME_SHIFT)
    }

    /// Makes a page of RAM private, and drops translations to the frame it had.
    fn private<M: Memory>(
        &mut self,
        hart: &mut Hart,
        ram: &mut M,
        page: u32,
    ) -> Result<Frame, Trap> {
        let old = ram.frame(page).unwrap_or(Frame::ZERO);
        if ram.is_private(old) {
            return Ok(old);
        }
        let new = ram.make_private(page).map_err(|_| Trap::NoFrame)?;
        self.reserved_word.moved(page, new);
        hart.tlb.forget(old);
        self.dtlb.forget(old);
        self.itlb.forget(old);
        self.touched = ALL_TOUCHED;
        self.replaced = 1;
        Ok(new)
    }

    /// Handles a store that missed the TLB only because its frame has decoded instructions: drops
    /// those that it changes and returns the frame. Returns `None` if the store missed for another
    /// reason.
    pub(crate) fn store_to_code<M: Ram>(
        &mut self,
        hart: &mut Hart,
        ram: &mut M,
        va: u32,
    ) -> Option<Frame> {
        let denied = hart.ctx.store & !deny::CODE;
        // Both levels, as for other stores: a guest that forgets a fence could otherwise observe
        // what is decoded.
        let frame = match hart.tlb.get(va, 0, denied) {
            Some(frame) => frame,
            None => hart.tlb.refill(&self.dtlb, va, 0, denied)?,
        };
        if ram.drop_code_at(frame, va) {
            hart.tlb.unprotect_code(frame);
            self.dtlb.unprotect_code(frame);
            self.touched = ALL_TOUCHED;
            self.replaced = 1;
        }
        Some(frame)
    }

    /// Translates a data access that missed the TLB and caches the result.
    #[inline(never)]
    pub(crate) fn data_target<M: Ram>(
        &mut self,
        hart: &mut Hart,
        ram: &mut M,
        va: u32,
        access: AccessType,
    ) -> Result<Target, Trap> {
        let privilege = self.data_privilege(hart);
        let leaf = self.walk(hart, ram, va, access, privilege)?;
        let physical = u64::from(leaf.ppn) << FRAME_SHIFT;
        let allowed = self.csr.pmp.check(physical, privilege == Privilege::Machine);
        if !(if access == AccessType::Store { allowed.w } else { allowed.r }) {
            return Err(access.access_fault(va));
        }
        let page = leaf.ppn.wrapping_sub(self.kind.map().ram_base >> FRAME_SHIFT);
        let frame = if page < ram.pages() {
            match access {
                AccessType::Store => self.private(hart, ram, page)?,
                AccessType::Load | AccessType::Fetch => {
                    ram.frame(page).ok_or(access.access_fault(va))?
                }
            }
        } else {
            match self.rom_frame(ram, physical) {
                Some(frame) if access != AccessType::Store => frame,
                // A store to ROM finds no device.
                _ => {
                    let addr = u32::try_from(physical).map_err(|_| access.access_fault(va))?;
                    return Ok(Target::Mmio(addr | va & !PAGE_MASK));
                }
            }
        };
        let mut denied = self.data_deny(&leaf, privilege, allowed, ram.is_private(frame));
        if ram.is_code(page, frame) {
            if access == AccessType::Store && ram.drop_code_at(frame, va) {
                self.replaced = 1;
                self.touched = ALL_TOUCHED;
            } else {
                denied |= deny::CODE;
            }
        }
        hart.tlb.insert(va, denied, frame);
        self.dtlb.insert(va, denied, frame);
        self.touched |= 1 << (L2Tlb::index(va) as u32 % TRANSLATIONS_MAX);
        Ok(Target::Ram(frame))
    }

    fn data_deny(&self, leaf: &Leaf, privilege: Privilege, pmp: pmp::Access, private: bool) -> u32 {
        let mxr = self.csr.get(StoredCsr::Mstatus) & mstatus::MXR != 0;
        let r = pmp.r && leaf.bits & (if mxr { pte::R | pte::X } else { pte::R }) != 0;
        // The first store must come here: to set D, or to get a private frame.
        let w = pmp.w && private && leaf.bits & pte::W != 0 && leaf.bits & pte::D != 0;
        let (read, write) = if privilege == Privilege::Machine {
            (deny::M_R, deny::M_W)
        } else if self.csr.get(StoredCsr::Satp) & SATP_MODE == 0 {
            (deny::U_R | deny::S_R | deny::SUM_R, deny::U_W | deny::S_W | deny::SUM_W)
        } else if leaf.bits & pte::U != 0 {
            (deny::U_R | deny::SUM_R, deny::U_W | deny::SUM_W)
        } else {
            (deny::S_R | deny::SUM_R, deny::S_W | deny::SUM_W)
        };
        let allowed = if r { read } else { 0 } | if w { write } else { 0 };
        let superpage = if leaf.superpage { deny::SUPERPAGE } else { 0 };
        deny::ALL & !allowed | superpage
    }

    /// Returns the frame that instructions at `va` are fetched from, its decoded instructions, and
    /// whether these were empty, and so may have taken the place of another page's.
    #[inline]
    pub(crate) fn fetch_page<M: Ram>(
        &mut self,
        hart: &mut Hart,
        ram: &mut M,
        shared: M::SharedCode,
        va: u32,
    ) -> Result<(Frame, M::Code, bool), Trap> {
        let fetch = hart.ctx.fetch;
        let (page, frame) = match self.itlb.get(va, fetch) {
            Some(hit) => hit,
            None => self.fetch_miss(hart, ram, va)?,
        };
        if let Some(code) = M::code_in(shared, frame) {
            return Ok((frame, code, false));
        }
        let fresh = !ram.is_code(page, frame);
        if ram.is_private(frame) && fresh {
            hart.tlb.protect_code(frame);
            self.dtlb.protect_code(frame);
            self.touched = ALL_TOUCHED;
        }
        Ok((frame, ram.code(page, frame), fresh))
    }

    /// Returns the page of RAM that a load at `va` reads, if its frame is `frame`.
    #[cold]
    #[inline(never)]
    pub(crate) fn page_of<M: Ram>(
        &mut self,
        hart: &mut Hart,
        ram: &mut M,
        va: u32,
        frame: Frame,
    ) -> Option<u32> {
        let privilege = self.data_privilege(hart);
        let leaf = self.walk(hart, ram, va, AccessType::Load, privilege).ok()?;
        let page = leaf.ppn.wrapping_sub(self.kind.map().ram_base >> FRAME_SHIFT);
        (ram.frame(page) == Some(frame)).then_some(page)
    }

    /// Returns the instruction that raised `trap`, unless it is one that could not be fetched.
    pub(crate) fn insn_that_trapped<M: Ram>(
        &mut self,
        hart: &mut Hart,
        ram: &mut M,
        trap: &TakenTrap,
    ) -> Option<u32> {
        let interrupt = trap.cause & cause::INTERRUPT != 0;
        if interrupt || matches!(trap.cause, cause::INSN_ACCESS | cause::INSN_PAGE) {
            return None;
        }
        let privilege = hart.ctx.privilege;
        self.set_privilege(hart, trap.from);
        let page = self.fetch_miss(hart, ram, trap.pc);
        self.set_privilege(hart, privilege);
        let (_, frame) = page.ok()?;
        Some(ram.load32(frame, trap.pc & !PAGE_MASK))
    }

    #[cold]
    #[inline(never)]
    fn fetch_miss<M: Ram>(
        &mut self,
        hart: &mut Hart,
        ram: &mut M,
        va: u32,
    ) -> Result<(u32, Frame), Trap> {
        let access = AccessType::Fetch;
        let privilege = hart.ctx.privilege;
        let leaf = self.walk(hart, ram, va, access, privilege)?;
        let physical = u64::from(leaf.ppn) << FRAME_SHIFT;
        let page = leaf.ppn.wrapping_sub(self.kind.map().ram_base >> FRAME_SHIFT);
        let allowed = self.csr.pmp.check(physical, privilege == Privilege::Machine).x;
        let frame = ram.frame(page).or_else(|| self.rom_frame(ram, physical));
        let frame = frame.filter(|_| allowed).ok_or(access.access_fault(va))?;
        let x = if privilege != Privilege::Machine && self.csr.get(StoredCsr::Satp) & SATP_MODE == 0
        {
            deny::U_X | deny::S_X
        } else {
            hart.ctx.fetch
        };
        let superpage = if leaf.superpage { deny::SUPERPAGE } else { 0 };
        self.itlb.insert(va, deny::ALL & !x | superpage, page, frame);
        Ok((page, frame))
    }

    /// Returns whether a page was given another frame since the last call. A caller that holds a
    /// frame must then look it up again.
    pub(crate) fn take_replaced(&mut self) -> bool {
        core::mem::take(&mut self.replaced) != 0
    }

    /// Drops all cached translations.
    pub fn flush_tlbs(&mut self, hart: &mut Hart) {
        hart.tlb.flush();
        self.dtlb.flush();
        self.itlb.flush();
        self.touched = ALL_TOUCHED;
    }

    /// Executes SFENCE.VMA for the address `va`, or for all addresses if it is `None`.
    pub(crate) fn sfence_vma(&mut self, hart: &mut Hart, va: Option<u32>) {
        hart.reservation = NO_RESERVATION;
        match va {
            Some(va) => {
                hart.tlb.flush_page(va);
                self.dtlb.flush_page(va);
                self.itlb.flush_page(va);
                self.touched = ALL_TOUCHED;
            }
            None => self.flush_tlbs(hart),
        }
    }
}
