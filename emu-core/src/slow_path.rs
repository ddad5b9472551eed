//! The slow path of the instruction loop: TLB misses, device registers, atomics, CSRs, privileged
//! instructions, and jumps to misaligned addresses.

use crate::abi::{Hart, NO_RESERVATION};
use crate::csr::{Change, CsrOp, StoredCsr, mstatus};
use crate::insn::{Decoded, Format, Insn, Op, decode};
use crate::lane::Lane;
use crate::machine::Core;
use crate::mem::{FRAME_SIZE, Frame, Memory, Ram};
use crate::mmu::{AccessType, PAGE_MASK, Privilege, Target};
use crate::port::Port;
use crate::trace::Trace;
use crate::trap::{Trap, cause};

impl<M: Ram, D: Memory, P: Port, L: Lane> Core<'_, M, D, P, L> {
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
        let (a, b) = (hart.x[insn.rs1()], hart.x[insn.rs2()]);
        let va = a.wrapping_add(insn.imm());
        let mut next = hart.pc.wrapping_add(4);
        let op = insn.op();
        let value = match op {
            Op::Lb => self.load(hart, va, 1)? as i8 as u32,
            Op::Lh => self.load(hart, va, 2)? as i16 as u32,
            Op::Lw => self.load(hart, va, 4)?,
            Op::Lbu => self.load(hart, va, 1)?,
            Op::Lhu => self.load(hart, va, 2)?,
            Op::Sb | Op::Sh | Op::Sw => {
                let size = match op {
                    Op::Sb => 1,
                    Op::Sh => 2,
                    _ => 4,
                };
                self.store(hart, va, b, size)?;
                trace.store(va, b, size);
                return Ok(next);
            }
            Op::LrW => self.load_reserved(hart, a)?,
            Op::ScW => {
                let done = self.store_conditional(hart, a, b)?;
                if done {
                    trace.store(a, b, 4);
                }
                u32::from(!done)
            }
            Op::Csrrw | Op::Csrrs | Op::Csrrc | Op::Csrrwi | Op::Csrrsi | Op::Csrrci => {
                self.csr_insn(hart, insn.insn(), trace)?
            }
            Op::Ecall | Op::Ebreak | Op::Sret | Op::Mret | Op::Wfi | Op::SfenceVma => {
                next = self.system(hart, insn.insn(), next)?;
                return Ok(next);
            }
            Op::DiscardedLoad => {
                let va = a.wrapping_add(insn.insn().imm_i());
                // funct3 holds the size.
                self.load(hart, va, 1 << (insn.imm() >> 12 & 3))?;
                trace.load(va);
                return Ok(next);
            }
            Op::Jalr | Op::Jr => return Err(Trap::new(cause::INSN_MISALIGNED, va & !1)),
            Op::MisalignedJump => {
                misaligned_jump(hart, insn.insn())?;
                return Ok(next);
            }
            Op::AmoswapW
            | Op::AmoaddW
            | Op::AmoxorW
            | Op::AmoandW
            | Op::AmoorW
            | Op::AmominW
            | Op::AmomaxW
            | Op::AmominuW
            | Op::AmomaxuW => self.amo(hart, op, a, b, trace)?,
            _ => return Err(Trap::illegal(insn.imm())),
        };
        if matches!(op.row().map(|row| row.format), Some(Format::Load)) {
            trace.load(va);
        } else if op == Op::LrW {
            trace.load(a);
        }
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
        let new = match op {
            Op::AmoswapW => operand,
            Op::AmoaddW => old.wrapping_add(operand),
            Op::AmoxorW => old ^ operand,
            Op::AmoandW => old & operand,
            Op::AmoorW => old | operand,
            Op::AmominW => (old as i32).min(operand as i32) as u32,
            Op::AmomaxW => (old as i32).max(operand as i32) as u32,
            Op::AmominuW => old.min(operand),
            _ => old.max(operand),
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
        if access == AccessType::Store
            && let Some(frame) = self.platform.store_to_code(hart, self.ram, va)
        {
            self.exit_loop = true;
            return Ok(Target::Ram(frame));
        }
        let target = self.platform.data_target(hart, self.ram, va, access)?;
        // The page that is being executed may map to another frame now.
        self.exit_loop |= self.platform.take_replaced();
        Ok(target)
    }

    fn ram_frame(&mut self, hart: &mut Hart, va: u32, access: AccessType) -> Result<Frame, Trap> {
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

    fn load_reserved(&mut self, hart: &mut Hart, va: u32) -> Result<u32, Trap> {
        if va & 3 != 0 {
            return Err(Trap::new(cause::LOAD_MISALIGNED, va));
        }
        let frame = match self.cached(hart, va, hart.ctx.load) {
            Some(frame) => frame,
            None => self.ram_frame(hart, va, AccessType::Load)?,
        };
        // A reservation can be kept as a virtual address, because traps and changes of translation
        // drop it: while it exists, the address maps to the same physical one.
        hart.reservation = va;
        Ok(self.ram.load32(frame, va))
    }

    fn store_conditional(&mut self, hart: &mut Hart, va: u32, value: u32) -> Result<bool, Trap> {
        let frame = self.amo_frame(hart, va)?;
        let reserved = hart.reservation == va;
        hart.reservation = NO_RESERVATION;
        if reserved {
            self.ram.store32(frame, va, value);
        }
        Ok(reserved)
    }

    fn csr_insn<T: Trace>(
        &mut self,
        hart: &mut Hart,
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
        let value = if immediate { field as u32 } else { hart.x[field] };
        // Setting or clearing no bits does not write at all.
        let operand = if op == CsrOp::Write || field != 0 { Some(value) } else { None };
        let access = self.platform.csr_access(hart, insn.csr(), op, operand);
        let (old, change) = access.map_err(|_| Trap::illegal(insn.0))?;
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
            let now = self.platform.csr_access(hart, insn.csr(), CsrOp::Set, None);
            trace.csr(insn.csr(), now.map_or(old, |(value, _)| value));
        }
        Ok(old)
    }

    /// Executes a system instruction other than those on CSRs. Returns the next `pc`.
    fn system(&mut self, hart: &mut Hart, insn: Insn, next: u32) -> Result<u32, Trap> {
        let privilege = hart.ctx.privilege;
        let status = self.platform.csr.get(StoredCsr::Mstatus);
        let supervisor = privilege == Privilege::Supervisor;
        let trapped = |bit: u32| supervisor && status & bit != 0;
        let illegal = Err(Trap::illegal(insn.0));
        self.exit_loop = true;
        match decode(insn.0) {
            Op::Ecall if supervisor && self.platform.sbi != 0 => {
                self.request_poll();
                self.sbi_call(hart)?;
                Ok(next)
            }
            Op::Ecall => Err(Trap::new(cause::ECALL_U + privilege as u32, 0)),
            Op::Ebreak => Err(Trap::new(cause::BREAKPOINT, hart.pc)),
            Op::Sret if privilege == Privilege::User || trapped(mstatus::TSR) => illegal,
            Op::Sret => {
                self.platform.sret(hart);
                Ok(hart.pc)
            }
            Op::Mret if privilege != Privilege::Machine => illegal,
            Op::Mret => {
                self.platform.mret(hart);
                Ok(hart.pc)
            }
            Op::Wfi if privilege == Privilege::User || trapped(mstatus::TW) => illegal,
            Op::Wfi => {
                self.request_poll();
                self.platform.waiting = 1;
                Ok(next)
            }
            Op::SfenceVma if privilege == Privilege::User || trapped(mstatus::TVM) => illegal,
            Op::SfenceVma => {
                let va = (insn.rs1() != 0).then(|| hart.x[insn.rs1()]);
                self.platform.sfence_vma(hart, va);
                Ok(next)
            }
            _ => illegal,
        }
    }
}

/// Raises the trap of a jump or branch to a misaligned target, if it is taken.
fn misaligned_jump(hart: &Hart, insn: Insn) -> Result<(), Trap> {
    let x = |r: usize| hart.x[r];
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
        return Err(Trap::new(cause::INSN_MISALIGNED, hart.pc.wrapping_add(offset)));
    }
    Ok(())
}
