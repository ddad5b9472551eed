//! The slow path of the instruction loop: TLB misses, device registers, atomics, CSRs, privileged
//! instructions, and jumps to misaligned addresses.

use crate::abi::{Hart, NO_RESERVATION, ReservedWord};
use crate::csr::{Change, CsrOp, MSTATUS, MSTATUSH, StoredCsr, mstatus};
use crate::disk::Disk;
use crate::insn::compute::Condition;
use crate::insn::table::{if_op, match_op};
use crate::insn::{Class, Decoded, Format, INSN_SIZE, Insn, Op, Row, decode};
use crate::lane::Lane;
use crate::machine::Core;
use crate::mem::{FRAME_SIZE, Frame, Ram};
use crate::mmu::{AccessType, PAGE_MASK, Privilege, Target};
use crate::port::Port;
use crate::trace::Trace;
use crate::trap::{Trap, cause};

impl<M: Ram, D: Disk, P: Port, L: Lane> Core<'_, M, D, P, L> {
    /// Executes one instruction at `hart.pc` and returns the next `pc`. Sets `exit_loop` when the
    /// instruction loop must end after it.
    #[cold]
    #[inline(never)]
    pub(crate) fn slow_path<T: Trace>(
        &mut self,
        hart: &mut Hart,
        insn: Decoded,
        trace: &mut T,
    ) -> Result<u32, Trap> {
        let a = hart.x[insn.rs1()];
        let va = a.wrapping_add(insn.imm());
        let next = hart.pc.wrapping_add(INSN_SIZE);
        let op = insn.op();
        macro_rules! illegal {
            ($($row:tt)*) => {
                return Err(Trap::illegal(insn.imm()))
            };
        }
        let value = match op.class() {
            Some(Class::Load) => {
                let (size, extend) = op.access();
                let value = self.load(hart, va, size)?;
                trace.load(va);
                extend.apply(value, size)
            }
            Some(Class::Store) => {
                let b = hart.x[insn.rs2()];
                let (size, _) = op.access();
                self.store(hart, va, b, size)?;
                trace.store(va, b, size);
                return Ok(next);
            }
            Some(Class::JumpRegister) => return Err(Trap::new(cause::INSN_MISALIGNED, va & !1)),
            Some(Class::Csr) => self.csr_insn(hart, op, insn.insn(), trace)?,
            Some(Class::System) => {
                let next = self.system(hart, op, insn.insn(), next)?;
                if T::ENABLED {
                    self.trace_return(op, trace);
                }
                return Ok(next);
            }
            Some(Class::LoadReserved) => {
                let value = self.load_reserved(hart, a)?;
                trace.load(a);
                value
            }
            Some(Class::StoreConditional) => {
                let b = hart.x[insn.rs2()];
                let done = self.store_conditional(hart, a, b)?;
                if done {
                    trace.store(a, b, 4);
                }
                u32::from(!done)
            }
            Some(Class::Amo) => self.amo(hart, op, a, hart.x[insn.rs2()], trace)?,
            // The instruction loop has executed all of these itself.
            Some(
                Class::Upper
                | Class::Alu
                | Class::AluImm
                | Class::Jump
                | Class::Branch
                | Class::Fence,
            ) => illegal!(),
            None => match_op!(op, illegal, {
                Op::DiscardedLoad => {
                    let va = a.wrapping_add(insn.insn().imm_i());
                    let (size, _) = decode(insn.insn().0).access();
                    self.load(hart, va, size)?;
                    trace.load(va);
                    return Ok(next);
                }
                Op::Jr => return Err(Trap::new(cause::INSN_MISALIGNED, va & !1)),
                Op::MisalignedJump => {
                    misaligned_jump(hart, insn.insn())?;
                    return Ok(next);
                }
                Op::Undecoded | Op::Nop | Op::J | Op::Illegal => illegal!(),
            }),
        };
        let rd = insn.rd();
        hart.x[rd] = value;
        hart.x[0] = 0;
        if rd != 0 {
            trace.reg(rd, value);
        }
        Ok(next)
    }

    fn amo<T: Trace>(
        &mut self,
        hart: &mut Hart,
        op: Op,
        va: u32,
        operand: u32,
        trace: &mut T,
    ) -> Result<u32, Trap> {
        let frame = self.amo_frame(hart, va)?;
        let old = self.ram.load32(frame, va);
        let new = 'new: {
            macro_rules! amo {
                (Amo(|$old:pat_param, $operand:pat_param| $new:expr)) => {{
                    let ($old, $operand) = (old, operand);
                    break 'new $new;
                }};
                ($class:ident $meaning:tt) => {{}};
            }
            if_op!(op, amo);
            old
        };
        self.ram.store32(frame, va, new);
        trace.load(va);
        trace.store(va, new, 4);
        Ok(old)
    }

    /// Executes a load that missed the TLB, is misaligned, or goes to a device.
    fn load(&mut self, hart: &mut Hart, va: u32, size: u32) -> Result<u32, Trap> {
        if va & (size - 1) != 0 {
            return self.load_misaligned(hart, va, size);
        }
        match self.target(hart, va, AccessType::Load)? {
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

    /// Executes a store that missed the TLB, is misaligned, or goes to a device.
    fn store(&mut self, hart: &mut Hart, va: u32, value: u32, size: u32) -> Result<(), Trap> {
        if va & (size - 1) != 0 {
            return self.store_misaligned(hart, va, value, size);
        }
        match self.target(hart, va, AccessType::Store)? {
            Target::Ram(frame) => {
                match size {
                    1 => self.ram.store8(frame, va, value),
                    2 => self.ram.store16(frame, va, value),
                    _ => self.ram.store32(frame, va, value),
                }
                Ok(())
            }
            Target::Mmio(addr) => self
                .bus_write(hart, addr, size, value)
                .map_err(|_| AccessType::Store.access_fault(va))?,
        }
    }

    fn target(&mut self, hart: &mut Hart, va: u32, access: AccessType) -> Result<Target, Trap> {
        // Misaligned accesses come here although the TLB has their pages.
        let denied = if access == AccessType::Store { hart.ctx.store } else { hart.ctx.load };
        if let Some(frame) = hart.tlb.get(va, 0, denied) {
            return Ok(Target::Ram(frame));
        }
        if access == AccessType::Store
            && let Some(frame) = self.platform.store_to_code(hart, self.ram, va)
        {
            // The page that is being executed may have lost its decoded instructions.
            self.exit_loop |= self.platform.take_replaced();
            return Ok(Target::Ram(frame));
        }
        let target = self.platform.data_target(hart, self.ram, va, access)?;
        // The page that is being executed may map to another frame now.
        self.exit_loop |= self.platform.take_replaced();
        Ok(target)
    }

    pub(crate) fn ram_frame(
        &mut self,
        hart: &mut Hart,
        va: u32,
        access: AccessType,
    ) -> Result<Frame, Trap> {
        match self.target(hart, va, access)? {
            Target::Ram(frame) => Ok(frame),
            Target::Mmio(_) => Err(access.access_fault(va)),
        }
    }

    // Misaligned accesses to RAM work, also across pages; those to devices are access faults. Both
    // pages are translated before anything is read or written, so that a trap leaves memory
    // unchanged.

    fn both_frames(
        &mut self,
        hart: &mut Hart,
        va: u32,
        size: u32,
        access: AccessType,
    ) -> Result<(Frame, Frame), Trap> {
        let first = self.ram_frame(hart, va, access)?;
        let end = va.wrapping_add(size - 1);
        if (va ^ end) & PAGE_MASK == 0 {
            return Ok((first, first));
        }
        let second = self.ram_frame(hart, end & PAGE_MASK, access)?;
        // Making the second page private may have given the first one another frame.
        Ok((self.ram_frame(hart, va, access)?, second))
    }

    fn load_misaligned(&mut self, hart: &mut Hart, va: u32, size: u32) -> Result<u32, Trap> {
        let (first, second) = self.both_frames(hart, va, size, AccessType::Load)?;
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
        hart: &mut Hart,
        va: u32,
        value: u32,
        size: u32,
    ) -> Result<(), Trap> {
        let (first, second) = self.both_frames(hart, va, size, AccessType::Store)?;
        for i in 0..size {
            let offset = (va & !PAGE_MASK) + i;
            let frame = if offset < FRAME_SIZE { first } else { second };
            self.ram.store8(frame, offset, value >> (8 * i));
        }
        Ok(())
    }

    /// Looks up the frame of an aligned word in both levels of the TLB.
    fn cached(&self, hart: &mut Hart, va: u32, denied: u32) -> Option<Frame> {
        let first = hart.tlb.get(va, 3, denied);
        first.or_else(|| hart.tlb.refill(&self.platform.dtlb, va, 3, denied))
    }

    /// Returns the frame that an AMO or SC accesses.
    fn amo_frame(&mut self, hart: &mut Hart, va: u32) -> Result<Frame, Trap> {
        match self.cached(hart, va, hart.ctx.store) {
            Some(frame) => Ok(frame),
            None if va & 3 != 0 => Err(Trap::new(cause::STORE_MISALIGNED, va)),
            None => self.ram_frame(hart, va, AccessType::Store),
        }
    }

    // Without the hint LLVM calls it, although it is called from one place.
    #[inline]
    fn load_reserved(&mut self, hart: &mut Hart, va: u32) -> Result<u32, Trap> {
        if va & 3 != 0 {
            return Err(Trap::new(cause::LOAD_MISALIGNED, va));
        }
        let frame = match self.cached(hart, va, hart.ctx.load) {
            Some(frame) => frame,
            None => self.ram_frame(hart, va, AccessType::Load)?,
        };
        let value = self.ram.load32(frame, va);
        let mut reserved = ReservedWord::new(value, frame);
        hart.reservation = va;
        if !self.ram.is_private(frame) {
            // Other pages may have this frame, too. SC gives the page a frame of its own.
            match self.platform.page_of(hart, self.ram, va, frame) {
                Some(page) => reserved.page = page,
                // The page table has changed, and the TLB has not seen it. SC may always fail.
                None => hart.reservation = NO_RESERVATION,
            }
            // The walk may have set A in the page that is being executed.
            self.exit_loop |= self.platform.take_replaced();
        }
        self.platform.reserved_word = reserved;
        Ok(value)
    }

    /// Executes SC. It succeeds for the virtual address of the LR, if that still stands for the same
    /// bytes of memory: the TLB may have lost its translation, and the page table may have changed
    /// without a fence. As in QEMU, the bytes must also be what the LR loaded.
    fn store_conditional(&mut self, hart: &mut Hart, va: u32, value: u32) -> Result<bool, Trap> {
        let frame = self.amo_frame(hart, va)?;
        let reserved = self.platform.reserved_word;
        let holds = hart.reservation == va
            && reserved.frame == frame
            && reserved.value == self.ram.load32(frame, va);
        hart.reservation = NO_RESERVATION;
        if holds {
            self.ram.store32(frame, va, value);
        }
        Ok(holds)
    }

    fn csr_insn<T: Trace>(
        &mut self,
        hart: &mut Hart,
        op: Op,
        insn: Insn,
        trace: &mut T,
    ) -> Result<u32, Trap> {
        let access = 'access: {
            macro_rules! csr {
                (Csr($access:ident)) => {
                    break 'access CsrOp::$access
                };
                ($class:ident $meaning:tt) => {{}};
            }
            if_op!(op, csr);
            CsrOp::Set
        };
        let immediate = matches!(op.row(), Some(Row { format: Format::CsrImm, .. }));
        let field = insn.rs1();
        let value = if immediate { field as u32 } else { hart.x[field] };
        // Setting or clearing no bits does not write at all.
        let operand = if access == CsrOp::Write || field != 0 { Some(value) } else { None };
        let accessed = self.platform.csr_access(hart, insn.csr(), access, operand);
        let (old, change) = accessed.map_err(|_| Trap::illegal(insn.0))?;
        match change {
            Change::Nothing => {}
            // Kernels disable and enable interrupts all the time, and nearly always none is
            // pending, so ending the loop each time would be wasteful.
            Change::Interrupts => {
                self.exit_loop |=
                    self.lane.wants_sync() || self.platform.pending_interrupt(hart).is_some();
            }
            Change::Translation => self.exit_loop = true,
        }
        if T::ENABLED && operand.is_some() {
            let (number, value) = self.platform.csr_written(insn.csr());
            trace.csr(number, value);
        }
        Ok(old)
    }

    /// Executes a system instruction and returns the next `pc`.
    fn system(&mut self, hart: &mut Hart, op: Op, insn: Insn, next: u32) -> Result<u32, Trap> {
        self.exit_loop = true;
        macro_rules! system {
            (System($method:ident)) => {
                return self.$method(hart, insn, next)
            };
            ($class:ident $meaning:tt) => {{}};
        }
        if_op!(op, system);
        Err(Trap::illegal(insn.0))
    }

    /// Reports the CSRs that a return from a trap has changed.
    fn trace_return<T: Trace>(&mut self, op: Op, trace: &mut T) {
        let changed: &[u32] = match op {
            Op::Mret => &[MSTATUS, MSTATUSH],
            Op::Sret => &[MSTATUS],
            _ => &[],
        };
        for &number in changed {
            let (number, value) = self.platform.csr_written(number);
            trace.csr(number, value);
        }
    }

    fn ecall(&mut self, hart: &mut Hart, _: Insn, next: u32) -> Result<u32, Trap> {
        let privilege = hart.ctx.privilege;
        if privilege == Privilege::Supervisor && self.platform.sbi != 0 {
            self.request_poll();
            self.sbi_call(hart)?;
            return Ok(next);
        }
        if self.is_newlib_call(hart) {
            return self.newlib_call(hart, next);
        }
        Err(Trap::new(cause::ECALL_U + privilege as u32, 0))
    }

    fn ebreak(&mut self, hart: &mut Hart, _: Insn, next: u32) -> Result<u32, Trap> {
        if self.is_semihosting(hart)? {
            return self.semihosting_call(hart, next);
        }
        Err(Trap::new(cause::BREAKPOINT, hart.pc))
    }

    fn sret(&mut self, hart: &mut Hart, insn: Insn, _: u32) -> Result<u32, Trap> {
        self.require_supervisor(hart, mstatus::TSR, insn)?;
        self.platform.sret(hart);
        Ok(hart.pc)
    }

    fn mret(&mut self, hart: &mut Hart, insn: Insn, _: u32) -> Result<u32, Trap> {
        if hart.ctx.privilege != Privilege::Machine {
            return Err(Trap::illegal(insn.0));
        }
        self.platform.mret(hart);
        Ok(hart.pc)
    }

    fn wfi(&mut self, hart: &mut Hart, insn: Insn, next: u32) -> Result<u32, Trap> {
        self.require_supervisor(hart, mstatus::TW, insn)?;
        self.request_poll();
        self.platform.waiting = 1;
        Ok(next)
    }

    fn sfence_vma(&mut self, hart: &mut Hart, insn: Insn, next: u32) -> Result<u32, Trap> {
        self.require_supervisor(hart, mstatus::TVM, insn)?;
        let va = (insn.rs1() != 0).then(|| hart.x[insn.rs1()]);
        self.platform.sfence_vma(hart, va);
        Ok(next)
    }

    /// Refuses an instruction in U-mode, and in S-mode while `trapped`, a bit of `mstatus`, is set.
    fn require_supervisor(&self, hart: &Hart, trapped: u32, insn: Insn) -> Result<(), Trap> {
        match hart.ctx.privilege {
            Privilege::Machine => Ok(()),
            Privilege::Supervisor if self.platform.csr.get(StoredCsr::Mstatus) & trapped == 0 => {
                Ok(())
            }
            Privilege::Supervisor | Privilege::User => Err(Trap::illegal(insn.0)),
        }
    }
}

/// Raises the trap of a jump or branch to a misaligned target, if it is taken.
fn misaligned_jump(hart: &Hart, insn: Insn) -> Result<(), Trap> {
    let op = decode(insn.0);
    let (taken, offset) = 'jump: {
        macro_rules! jump {
            (Jump()) => {
                break 'jump (true, insn.imm_j())
            };
            (Branch($condition:ident)) => {{
                let (a, b) = (hart.x[insn.rs1()], hart.x[insn.rs2()]);
                break 'jump (Condition::$condition.holds(a, b), insn.imm_b());
            }};
            ($class:ident $meaning:tt) => {{}};
        }
        if_op!(op, jump);
        (false, 0)
    };
    if taken {
        return Err(Trap::new(cause::INSN_MISALIGNED, hart.pc.wrapping_add(offset)));
    }
    Ok(())
}
