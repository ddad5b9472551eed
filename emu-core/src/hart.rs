//! The instruction loop.
//!
//! [`Core::execute`] runs straight through cached translations; whatever needs more (a TLB
//! miss, a device, a CSR) is a call out of the loop. Nothing here looks at interrupts: the caller
//! bounds the number of instructions by the next timer, and an instruction that may change
//! anything the loop relies on ends it (`recheck`).

use crate::abi::{Hot, NO_RESERVATION};
use crate::csr::{CsrOp, Word, mstatus};
use crate::insn::{Decoded, Insn, Op, decode};
use crate::machine::Core;
use crate::mem::{FRAME_SIZE, Frame, Memory, Ram, Window};
use crate::mmu::{AccessType, PAGE_MASK, Privilege, Target};
use crate::port::Port;
use crate::trace::Trace;
use crate::trap::{Trap, cause};

impl<M: Ram, D: Memory, P: Port> Core<'_, M, D, P> {
    /// Executes up to `n` instructions from `hot.pc`. Answers how many retired, and the trap that
    /// the next one raised, if any.
    pub(crate) fn execute<T: Trace>(
        &mut self,
        hot: &mut Hot,
        n: u32,
        trace: &mut T,
    ) -> (u32, Result<(), Trap>) {
        // The instruction is at `page + off`. An offset past the page means that another page must
        // be fetched, which the first instruction does.
        let mut page = hot.pc.wrapping_sub(FRAME_SIZE);
        let mut off = FRAME_SIZE;
        let mut left = n;
        // Instructions given up because the loop must end early, and `left` when
        // `clock.retired` was last brought up to date.
        let mut dropped = 0;
        let mut synced = n;
        let mut frame = Frame::ZERO;
        let mut code = self.ram.no_code();
        let ram = self.ram.window();
        self.recheck = false;

        macro_rules! x {
            ($r:expr) => {
                hot.x[$r]
            };
        }
        // `rd` is not x0: decoding sees to that.
        macro_rules! set {
            ($rd:expr, $value:expr) => {{
                let (rd, value) = ($rd, $value);
                hot.x[rd] = value;
                trace.reg(rd, value);
            }};
        }
        macro_rules! set_or_discard {
            ($rd:expr, $value:expr) => {{
                let (rd, value) = ($rd, $value);
                hot.x[rd] = value;
                hot.x[0] = 0;
                if rd != 0 {
                    trace.reg(rd, value);
                }
            }};
        }
        macro_rules! sync {
            () => {
                hot.pc = page.wrapping_add(off);
                self.sys.clock.retired =
                    self.sys.clock.retired.wrapping_add(u64::from(synced - left));
                synced = left;
            };
        }
        let result = 'run: {
            if n == 0 {
                break 'run Ok(());
            }
            loop {
                if off >= FRAME_SIZE {
                    let pc = page.wrapping_add(off);
                    match self.sys.fetch_page(hot, self.ram, pc) {
                        Ok(fetched) => (frame, code) = fetched,
                        Err(trap) => break 'run Err(trap),
                    }
                    page = pc & PAGE_MASK;
                    off = pc & !PAGE_MASK;
                }
                let mut insn = Decoded(self.ram.decoded(code, off));
                if insn == Decoded::NONE {
                    insn = Decoded::new(ram.load32(frame, off));
                    self.ram.set_decoded(code, off, insn.0);
                }
                let mut next = off.wrapping_add(4);
                let privilege = if T::ENABLED { hot.ctx.privilege as u32 } else { 0 };

                // Ends the loop after this instruction if a slow path asked for it.
                macro_rules! slow {
                    ($call:expr) => {{
                        sync!();
                        match $call {
                            Ok(value) => {
                                if self.recheck {
                                    dropped += left - 1;
                                    synced -= left - 1;
                                    left = 1;
                                }
                                value
                            }
                            Err(trap) => break 'run Err(trap),
                        }
                    }};
                }
                macro_rules! load {
                    ($size:literal, $get:ident, |$v:ident| $extend:expr) => {{
                        let va = x!(insn.rs1()).wrapping_add(insn.imm());
                        let $v = match hot.tlb.data(va, $size - 1, hot.ctx.load) {
                            Some(frame) => ram.$get(frame, va),
                            None => slow!(self.load_slow(hot, va, $size)),
                        };
                        trace.load(va);
                        set_or_discard!(insn.rd(), $extend);
                    }};
                }
                macro_rules! store {
                    ($size:literal, $put:ident) => {{
                        let va = x!(insn.rs1()).wrapping_add(insn.imm());
                        let value = x!(insn.rs2());
                        match hot.tlb.data(va, $size - 1, hot.ctx.store) {
                            Some(frame) => ram.$put(frame, va, value),
                            None => slow!(self.store_slow(hot, va, value, $size)),
                        }
                        trace.store(va, value, $size);
                    }};
                }
                macro_rules! branch {
                    ($taken:expr) => {
                        if $taken {
                            next = off.wrapping_add(insn.imm());
                        }
                    };
                }
                macro_rules! amo {
                    (|$old:ident, $operand:ident| $new:expr) => {{
                        let va = x!(insn.rs1());
                        let $operand = x!(insn.rs2());
                        let frame = slow!(self.amo_frame(hot, va));
                        let $old = ram.load32(frame, va);
                        let new: u32 = $new;
                        ram.store32(frame, va, new);
                        trace.load(va);
                        trace.store(va, new, 4);
                        set_or_discard!(insn.rd(), $old);
                    }};
                }

                match insn.op() {
                    // RV32I
                    Op::Lui => set!(insn.rd(), insn.imm()),
                    Op::Auipc => set!(insn.rd(), page.wrapping_add(off).wrapping_add(insn.imm())),
                    Op::Jal => {
                        set!(insn.rd(), page.wrapping_add(next));
                        next = off.wrapping_add(insn.imm());
                    }
                    Op::J => next = off.wrapping_add(insn.imm()),
                    Op::Jalr => {
                        let target = x!(insn.rs1()).wrapping_add(insn.imm()) & !1;
                        if target & 3 != 0 {
                            break 'run Err(Trap::new(cause::INSN_MISALIGNED, target));
                        }
                        set!(insn.rd(), page.wrapping_add(next));
                        next = target.wrapping_sub(page);
                    }
                    Op::Jr => {
                        let target = x!(insn.rs1()).wrapping_add(insn.imm()) & !1;
                        if target & 3 != 0 {
                            break 'run Err(Trap::new(cause::INSN_MISALIGNED, target));
                        }
                        next = target.wrapping_sub(page);
                    }
                    Op::MisalignedJump => match misaligned_jump(hot, insn.insn(), page + off) {
                        Ok(()) => {}
                        Err(trap) => break 'run Err(trap),
                    },
                    Op::Nop => {}
                    Op::Beq => branch!(x!(insn.rs1()) == x!(insn.rs2())),
                    Op::Bne => branch!(x!(insn.rs1()) != x!(insn.rs2())),
                    Op::Blt => branch!((x!(insn.rs1()) as i32) < x!(insn.rs2()) as i32),
                    Op::Bge => branch!(x!(insn.rs1()) as i32 >= x!(insn.rs2()) as i32),
                    Op::Bltu => branch!(x!(insn.rs1()) < x!(insn.rs2())),
                    Op::Bgeu => branch!(x!(insn.rs1()) >= x!(insn.rs2())),
                    Op::Lb => load!(1, load8, |v| v as i8 as u32),
                    Op::Lh => load!(2, load16, |v| v as i16 as u32),
                    Op::Lw => load!(4, load32, |v| v),
                    Op::Lbu => load!(1, load8, |v| v),
                    Op::Lhu => load!(2, load16, |v| v),
                    Op::Sb => store!(1, store8),
                    Op::Sh => store!(2, store16),
                    Op::Sw => store!(4, store32),
                    Op::Addi => set!(insn.rd(), x!(insn.rs1()).wrapping_add(insn.imm())),
                    Op::Slti => {
                        set!(insn.rd(), u32::from((x!(insn.rs1()) as i32) < insn.imm() as i32))
                    }
                    Op::Sltiu => set!(insn.rd(), u32::from(x!(insn.rs1()) < insn.imm())),
                    Op::Xori => set!(insn.rd(), x!(insn.rs1()) ^ insn.imm()),
                    Op::Ori => set!(insn.rd(), x!(insn.rs1()) | insn.imm()),
                    Op::Andi => set!(insn.rd(), x!(insn.rs1()) & insn.imm()),
                    Op::Slli => set!(insn.rd(), x!(insn.rs1()) << (insn.imm() & 31)),
                    Op::Srli => set!(insn.rd(), x!(insn.rs1()) >> (insn.imm() & 31)),
                    Op::Srai => {
                        set!(insn.rd(), (x!(insn.rs1()) as i32 >> (insn.imm() & 31)) as u32)
                    }
                    Op::Add => set!(insn.rd(), x!(insn.rs1()).wrapping_add(x!(insn.rs2()))),
                    Op::Sub => set!(insn.rd(), x!(insn.rs1()).wrapping_sub(x!(insn.rs2()))),
                    Op::Sll => set!(insn.rd(), x!(insn.rs1()) << (x!(insn.rs2()) & 31)),
                    Op::Slt => {
                        set!(insn.rd(), u32::from((x!(insn.rs1()) as i32) < x!(insn.rs2()) as i32))
                    }
                    Op::Sltu => set!(insn.rd(), u32::from(x!(insn.rs1()) < x!(insn.rs2()))),
                    Op::Xor => set!(insn.rd(), x!(insn.rs1()) ^ x!(insn.rs2())),
                    Op::Srl => set!(insn.rd(), x!(insn.rs1()) >> (x!(insn.rs2()) & 31)),
                    Op::Sra => {
                        set!(insn.rd(), (x!(insn.rs1()) as i32 >> (x!(insn.rs2()) & 31)) as u32)
                    }
                    Op::Or => set!(insn.rd(), x!(insn.rs1()) | x!(insn.rs2())),
                    Op::And => set!(insn.rd(), x!(insn.rs1()) & x!(insn.rs2())),
                    // One hart, and devices that act between instructions: always in order.
                    Op::Fence => {}
                    // Instructions are fetched from memory each time: nothing to invalidate.
                    Op::FenceI => {}

                    // M
                    Op::Mul => set!(insn.rd(), x!(insn.rs1()).wrapping_mul(x!(insn.rs2()))),
                    Op::Mulh => set!(insn.rd(), mulh(x!(insn.rs1()), x!(insn.rs2()))),
                    Op::Mulhsu => set!(insn.rd(), mulhsu(x!(insn.rs1()), x!(insn.rs2()))),
                    Op::Mulhu => set!(insn.rd(), mulhu(x!(insn.rs1()), x!(insn.rs2()))),
                    Op::Div => set!(insn.rd(), div(x!(insn.rs1()), x!(insn.rs2()))),
                    Op::Divu => set!(insn.rd(), divu(x!(insn.rs1()), x!(insn.rs2()))),
                    Op::Rem => set!(insn.rd(), rem(x!(insn.rs1()), x!(insn.rs2()))),
                    Op::Remu => set!(insn.rd(), remu(x!(insn.rs1()), x!(insn.rs2()))),

                    // A
                    Op::LrW => {
                        let va = x!(insn.rs1());
                        let value = slow!(self.load_reserved(hot, va));
                        trace.load(va);
                        set_or_discard!(insn.rd(), value);
                    }
                    Op::ScW => {
                        let va = x!(insn.rs1());
                        let value = x!(insn.rs2());
                        let done = slow!(self.store_conditional(hot, va, value));
                        if done {
                            trace.store(va, value, 4);
                        }
                        set_or_discard!(insn.rd(), u32::from(!done));
                    }
                    Op::AmoswapW => amo!(|_old, v| v),
                    Op::AmoaddW => amo!(|old, v| old.wrapping_add(v)),
                    Op::AmoxorW => amo!(|old, v| old ^ v),
                    Op::AmoandW => amo!(|old, v| old & v),
                    Op::AmoorW => amo!(|old, v| old | v),
                    Op::AmominW => amo!(|old, v| (old as i32).min(v as i32) as u32),
                    Op::AmomaxW => amo!(|old, v| (old as i32).max(v as i32) as u32),
                    Op::AmominuW => amo!(|old, v| old.min(v)),
                    Op::AmomaxuW => amo!(|old, v| old.max(v)),

                    // Zicsr and privileged instructions
                    Op::Csrrw | Op::Csrrs | Op::Csrrc | Op::Csrrwi | Op::Csrrsi | Op::Csrrci => {
                        let old = slow!(self.csr_insn(hot, insn.insn(), trace));
                        set_or_discard!(insn.rd(), old);
                    }
                    Op::Ecall | Op::Ebreak | Op::Sret | Op::Mret | Op::Wfi | Op::SfenceVma => {
                        next = slow!(self.system(hot, insn.insn(), page.wrapping_add(next)))
                            .wrapping_sub(page);
                    }
                    Op::Illegal => break 'run Err(Trap::illegal(insn.imm())),
                }
                if T::ENABLED {
                    let word = self.ram.load32(frame, off);
                    trace.retire(page.wrapping_add(off), word, privilege);
                }
                off = next;
                left -= 1;
                if left == 0 {
                    break 'run Ok(());
                }
            }
        };
        sync!();
        let _ = synced;
        (n - dropped - left, result)
    }

    /// A load that missed the TLB, is misaligned, or goes to a device.
    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, hot: &mut Hot, va: u32, size: u32) -> Result<u32, Trap> {
        if va & (size - 1) != 0 {
            return self.load_misaligned(hot, va, size);
        }
        match self.target(hot, va, AccessType::Load)? {
            Target::Ram(frame) => Ok(match size {
                1 => self.ram.load8(frame, va),
                2 => self.ram.load16(frame, va),
                _ => self.ram.load32(frame, va),
            }),
            Target::Mmio(addr) => {
                self.bus_read(addr, size).map_err(|_| AccessType::Load.access_fault(va))
            }
        }
    }

    /// A store that missed the TLB, is misaligned, or goes to a device.
    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, hot: &mut Hot, va: u32, value: u32, size: u32) -> Result<(), Trap> {
        if va & (size - 1) != 0 {
            return self.store_misaligned(hot, va, value, size);
        }
        match self.target(hot, va, AccessType::Store)? {
            Target::Ram(frame) => {
                match size {
                    1 => self.ram.store8(frame, va, value),
                    2 => self.ram.store16(frame, va, value),
                    _ => self.ram.store32(frame, va, value),
                }
                Ok(())
            }
            Target::Mmio(addr) => self
                .bus_write(hot, addr, size, value)
                .map_err(|_| AccessType::Store.access_fault(va))?,
        }
    }

    fn target(&mut self, hot: &mut Hot, va: u32, access: AccessType) -> Result<Target, Trap> {
        if access == AccessType::Store
            && let Some(frame) = self.sys.store_to_code(hot, self.ram, va)
        {
            self.recheck = true;
            return Ok(Target::Ram(frame));
        }
        let target = self.sys.data_target(hot, self.ram, va, access)?;
        // The page that instructions come from may have another frame now.
        self.recheck |= hot.tlb.take_replaced();
        Ok(target)
    }

    fn ram_frame(&mut self, hot: &mut Hot, va: u32, access: AccessType) -> Result<Frame, Trap> {
        match self.target(hot, va, access)? {
            Target::Ram(frame) => Ok(frame),
            Target::Mmio(_) => Err(access.access_fault(va)),
        }
    }

    // Misaligned accesses work on RAM, also across a page; on devices they are access faults.
    // Both pages are translated before anything is read or written.

    fn both_frames(
        &mut self,
        hot: &mut Hot,
        va: u32,
        size: u32,
        access: AccessType,
    ) -> Result<(Frame, Frame), Trap> {
        let first = self.ram_frame(hot, va, access)?;
        let end = va.wrapping_add(size - 1);
        if (va ^ end) & PAGE_MASK == 0 {
            return Ok((first, first));
        }
        let second = self.ram_frame(hot, end & PAGE_MASK, access)?;
        // Making the second page private may have given the first one another frame.
        Ok((self.ram_frame(hot, va, access)?, second))
    }

    fn load_misaligned(&mut self, hot: &mut Hot, va: u32, size: u32) -> Result<u32, Trap> {
        let (first, second) = self.both_frames(hot, va, size, AccessType::Load)?;
        let mut value = 0;
        for i in 0..size {
            let offset = (va & !PAGE_MASK) + i;
            let frame = if offset < FRAME_SIZE { first } else { second };
            value |= self.ram.load8(frame, offset) << (8 * i);
        }
        Ok(value)
    }

    fn store_misaligned(
        &mut self,
        hot: &mut Hot,
        va: u32,
        value: u32,
        size: u32,
    ) -> Result<(), Trap> {
        let (first, second) = self.both_frames(hot, va, size, AccessType::Store)?;
        for i in 0..size {
            let offset = (va & !PAGE_MASK) + i;
            let frame = if offset < FRAME_SIZE { first } else { second };
            self.ram.store8(frame, offset, value >> (8 * i));
        }
        Ok(())
    }

    /// The frame that an AMO works on.
    fn amo_frame(&mut self, hot: &mut Hot, va: u32) -> Result<Frame, Trap> {
        match hot.tlb.data(va, 3, hot.ctx.store) {
            Some(frame) => Ok(frame),
            None if va & 3 != 0 => Err(Trap::new(cause::STORE_MISALIGNED, va)),
            None => self.ram_frame(hot, va, AccessType::Store),
        }
    }

    fn load_reserved(&mut self, hot: &mut Hot, va: u32) -> Result<u32, Trap> {
        if va & 3 != 0 {
            return Err(Trap::new(cause::LOAD_MISALIGNED, va));
        }
        let frame = self.ram_frame(hot, va, AccessType::Load)?;
        // Traps and changes of translation drop the reservation, so that the virtual address
        // stands for the physical one as long as it lives.
        hot.reservation = va;
        Ok(self.ram.load32(frame, va))
    }

    fn store_conditional(&mut self, hot: &mut Hot, va: u32, value: u32) -> Result<bool, Trap> {
        let frame = self.amo_frame(hot, va)?;
        let reserved = hot.reservation == va;
        hot.reservation = NO_RESERVATION;
        if reserved {
            self.ram.store32(frame, va, value);
        }
        Ok(reserved)
    }

    fn csr_insn<T: Trace>(
        &mut self,
        hot: &mut Hot,
        insn: Insn,
        trace: &mut T,
    ) -> Result<u32, Trap> {
        let (op, immediate) = match decode(insn.0) {
            Op::Csrrw => (CsrOp::Write, false),
            Op::Csrrs => (CsrOp::Set, false),
            Op::Csrrc => (CsrOp::Clear, false),
            Op::Csrrwi => (CsrOp::Write, true),
            Op::Csrrsi => (CsrOp::Set, true),
            _ => (CsrOp::Clear, true),
        };
        let field = insn.rs1();
        let value = if immediate { field as u32 } else { hot.x[field] };
        // Setting or clearing no bits does not write at all.
        let operand = if op == CsrOp::Write || field != 0 { Some(value) } else { None };
        let access = self.sys.csr_access(hot, insn.csr(), op, operand);
        let (old, recheck) = access.map_err(|_| Trap::illegal(insn.0))?;
        self.recheck |= recheck;
        if T::ENABLED && operand.is_some() {
            let now = self.sys.csr_access(hot, insn.csr(), CsrOp::Set, None);
            trace.csr(insn.csr(), now.map_or(old, |(value, _)| value));
        }
        Ok(old)
    }

    /// The remaining system instructions. Answers the next `pc`.
    fn system(&mut self, hot: &mut Hot, insn: Insn, next: u32) -> Result<u32, Trap> {
        let privilege = hot.ctx.privilege;
        let status = self.sys.csr.get(Word::Mstatus);
        let supervisor = privilege == Privilege::Supervisor;
        let trapped = |bit: u32| supervisor && status & bit != 0;
        let illegal = Err(Trap::illegal(insn.0));
        self.recheck = true;
        match decode(insn.0) {
            Op::Ecall if supervisor && self.sys.sbi != 0 => {
                self.sbi_call(hot)?;
                Ok(next)
            }
            Op::Ecall => Err(Trap::new(cause::ECALL_U + privilege as u32, 0)),
            Op::Ebreak => Err(Trap::new(cause::BREAKPOINT, hot.pc)),
            Op::Sret if privilege == Privilege::User || trapped(mstatus::TSR) => illegal,
            Op::Sret => {
                self.sys.sret(hot);
                Ok(hot.pc)
            }
            Op::Mret if privilege != Privilege::Machine => illegal,
            Op::Mret => {
                self.sys.mret(hot);
                Ok(hot.pc)
            }
            Op::Wfi if privilege == Privilege::User || trapped(mstatus::TW) => illegal,
            Op::Wfi => {
                self.sys.waiting = 1;
                Ok(next)
            }
            Op::SfenceVma if privilege == Privilege::User || trapped(mstatus::TVM) => illegal,
            Op::SfenceVma => {
                let va = (insn.rs1() != 0).then(|| hot.x[insn.rs1()]);
                self.sys.sfence_vma(hot, va);
                Ok(next)
            }
            _ => illegal,
        }
    }
}

/// A jump whose target is misaligned traps, if it is taken.
#[cold]
#[inline(never)]
fn misaligned_jump(hot: &Hot, insn: Insn, pc: u32) -> Result<(), Trap> {
    let x = |r: usize| hot.x[r];
    let (a, b) = (x(insn.rs1()), x(insn.rs2()));
    let (taken, offset) = match decode(insn.0) {
        Op::Jal => (true, insn.imm_j()),
        Op::Beq => (a == b, insn.imm_b()),
        Op::Bne => (a != b, insn.imm_b()),
        Op::Blt => ((a as i32) < b as i32, insn.imm_b()),
        Op::Bge => (a as i32 >= b as i32, insn.imm_b()),
        Op::Bltu => (a < b, insn.imm_b()),
        _ => (a >= b, insn.imm_b()),
    };
    if taken {
        return Err(Trap::new(cause::INSN_MISALIGNED, pc.wrapping_add(offset)));
    }
    Ok(())
}

fn mulh(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
}

fn mulhsu(a: u32, b: u32) -> u32 {
    ((i64::from(a as i32) * i64::from(b)) >> 32) as u32
}

fn mulhu(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

// Division by zero and overflow have results, not traps (section 13.2 of the unprivileged
// specification).

fn div(a: u32, b: u32) -> u32 {
    if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 }
}

fn divu(a: u32, b: u32) -> u32 {
    a.checked_div(b).unwrap_or(u32::MAX)
}

fn rem(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }
}

fn remu(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(a)
}
