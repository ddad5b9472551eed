//! The fast path: the common instructions, which the instruction loop executes itself.

use crate::abi::Hart;
use crate::disk::Disk;
use crate::hart::Count;
use crate::insn::compute::{AluOp, Condition, UpperOp};
use crate::insn::table::{if_op, match_op};
use crate::insn::{Class, Decoded, Extend, INSN_SIZE, Op};
use crate::lane::Lane;
use crate::machine::Core;
use crate::mem::{Ram, RawFrames};
use crate::port::Port;
use crate::trace::Trace;

/// What the instruction loop keeps in registers and the fast path reads.
#[derive(Clone, Copy)]
pub(crate) struct Site<C, R> {
    /// The address of the page that is executed.
    pub page: u32,
    /// The number of the instruction in its page.
    pub at: u32,
    /// The number of the instruction that follows it.
    pub following: u32,
    /// The page's decoded instructions.
    pub code: C,
    /// Raw access to RAM.
    pub ram: R,
    /// The deny bits of loads.
    pub load: u32,
    /// The deny bits of stores.
    pub store: u32,
    /// See [`Lane::expected`].
    pub expected: u32,
}

/// Where execution continues after the fast path. A jump has the number of the next instruction,
/// relative to the page, and that instruction if it was prefetched.
pub(crate) enum Flow {
    /// At the following instruction.
    Following,
    /// At that instruction.
    Jump(u32, Decoded),
    /// In the L2 TLB. Nothing has happened yet.
    Missed,
    /// In the slow path. Nothing has happened yet.
    SlowPath,
}

impl<M: Ram, D: Disk, P: Port, L: Lane> Core<'_, M, D, P, L> {
    /// Reads instruction number `at` of a page ahead of its execution, if that pays.
    #[inline(always)]
    pub(crate) fn prefetch(&self, code: M::Code, at: u32) -> Decoded {
        if L::PREFETCH { Decoded(self.ram.decoded(code, at)) } else { Decoded(0) }
    }

    /// Executes an instruction, if it is one of the common ones.
    ///
    /// It is part of the loop: all of it must be inlined, and no path may become longer.
    #[inline(always)]
    pub(crate) fn fast_path<T: Trace, const ALONE: bool>(
        &mut self,
        hart: &mut Hart,
        site: Site<M::Code, M::RawFrames>,
        insn: Decoded,
        count: &mut Count,
        trace: &mut T,
    ) -> Flow {
        let Site { page, at, following, code, ram, load, store, expected } = site;
        let (rd, imm) = (insn.rd(), insn.imm());
        // Reading both sources before the dispatch hides the latency of a GPU's shared memory. A CPU
        // would read registers that are not needed.
        let sources = if L::PREFETCH { (hart.x[insn.rs1()], hart.x[insn.rs2()]) } else { (0, 0) };
        macro_rules! a {
            () => {
                if L::PREFETCH { sources.0 } else { hart.x[insn.rs1()] }
            };
        }
        macro_rules! b {
            () => {
                if L::PREFETCH { sources.1 } else { hart.x[insn.rs2()] }
            };
        }
        macro_rules! pc {
            () => {
                page.wrapping_add(at.wrapping_mul(INSN_SIZE))
            };
        }
        // `rd` is never x0 here: `Decoded::new` makes other operations of those instructions.
        macro_rules! set {
            ($value:expr) => {{
                let value: u32 = $value;
                hart.x[rd] = value;
                trace.reg(rd, value);
            }};
        }
        macro_rules! load {
            ($size:literal, $get:ident, $extend:ident) => {{
                let va = a!().wrapping_add(imm);
                let Some(data) = hart.tlb.get(va, $size - 1, load) else {
                    return Flow::Missed;
                };
                trace.load(va);
                set!(Extend::$extend.apply(ram.$get(data, va), $size));
            }};
        }
        macro_rules! store {
            ($size:literal, $put:ident) => {{
                let va = a!().wrapping_add(imm);
                let Some(data) = hart.tlb.get(va, $size - 1, store) else {
                    return Flow::Missed;
                };
                ram.$put(data, va, b!());
                trace.store(va, b!(), $size);
            }};
        }
        macro_rules! jump {
            ($at:expr) => {{
                let to: u32 = $at;
                return Flow::Jump(to, self.prefetch(code, to));
            }};
        }
        macro_rules! branch {
            ($taken:expr) => {
                // On a GPU, selecting the target costs less than a branch that makes lanes diverge
                // and reconverge.
                if L::PREFETCH {
                    let to = at.wrapping_add(imm);
                    jump!(if $taken { to } else { following });
                } else if $taken {
                    jump!(at.wrapping_add(imm));
                }
            };
        }
        macro_rules! target {
            () => {{
                let target = a!().wrapping_add(imm) & !1;
                if target & 2 != 0 {
                    return Flow::SlowPath;
                }
                target
            }};
        }
        // What an instruction of each class does here.
        macro_rules! meaning {
            (Upper($op:ident)) => {
                set!(UpperOp::$op.compute(pc!(), imm))
            };
            (Alu($op:ident)) => {
                set!(AluOp::$op.compute(a!(), b!()))
            };
            (AluImm($op:ident)) => {
                set!(AluOp::$op.compute(a!(), imm))
            };
            (Jump()) => {{
                set!(pc!().wrapping_add(INSN_SIZE));
                jump!(at.wrapping_add(imm));
            }};
            (JumpRegister()) => {{
                let target = target!();
                set!(pc!().wrapping_add(INSN_SIZE));
                jump!(target.wrapping_sub(page) / INSN_SIZE);
            }};
            (Branch($condition:ident)) => {
                branch!(Condition::$condition.holds(a!(), b!()))
            };
            (Load(1, $extend:ident)) => {
                load!(1, load8, $extend)
            };
            (Load(2, $extend:ident)) => {
                load!(2, load16, $extend)
            };
            (Load(4, $extend:ident)) => {
                load!(4, load32, $extend)
            };
            (Store(1)) => {
                store!(1, store8)
            };
            (Store(2)) => {
                store!(2, store16)
            };
            (Store(4)) => {
                store!(4, store32)
            };
            (Fence()) => {{}};
            ($class:ident $meaning:tt) => {{
                const _: () = assert!(!Class::$class.in_loop());
                return Flow::SlowPath;
            }};
        }
        match_op!(insn.slot(), meaning, {
            Op::Nop => {}
            Op::J => jump!(at.wrapping_add(imm)),
            Op::Jr => {
                let target = target!();
                // All paths through a function lead to its return, so this is where diverged lanes
                // can reconverge. The loop ends for it on the way to the jump: a way of its own
                // makes the loop slower on a GPU.
                if !ALONE
                    && L::diverged(expected)
                    && !self.lane.skips_sync(hart.x[2], target)
                {
                    self.exit_loop = true;
                    count.end(1);
                }
                jump!(target.wrapping_sub(page) / INSN_SIZE)
            }
            Op::Undecoded | Op::DiscardedLoad | Op::MisalignedJump | Op::Illegal => {
                return Flow::SlowPath;
            }
        });
        Flow::Following
    }

    /// Calls [`Self::l2_hit`] without inlining it, so that on a CPU it takes no registers from
    /// the loop.
    #[cold]
    #[inline(never)]
    pub(crate) fn l2_hit_outlined<T: Trace>(
        &mut self,
        hart: &mut Hart,
        ram: M::RawFrames,
        insn: Decoded,
        trace: &mut T,
    ) -> bool {
        self.l2_hit(hart, ram, insn, trace)
    }

    /// Executes a load or store that missed the L1 TLB, if the L2 TLB has its translation. Returns
    /// whether it did.
    ///
    /// The access happens here and not by repeating the loop's iteration, which would put the lane
    /// behind the other lanes of its warp.
    #[inline(always)]
    pub(crate) fn l2_hit<T: Trace>(
        &mut self,
        hart: &mut Hart,
        ram: M::RawFrames,
        insn: Decoded,
        trace: &mut T,
    ) -> bool {
        let va = hart.x[insn.rs1()].wrapping_add(insn.imm());
        let op = insn.slot();
        // LLVM makes better code of this than of `Op::access`.
        let size = 'size: {
            macro_rules! narrow {
                (Load(4, $extend:ident)) => {{}};
                (Load($size:literal, $extend:ident)) => {
                    break 'size $size
                };
                (Store(4)) => {{}};
                (Store($size:literal)) => {
                    break 'size $size
                };
                ($class:ident $meaning:tt) => {{}};
            }
            if_op!(op, narrow);
            4
        };
        let store = 'store: {
            macro_rules! store {
                (Store $size:tt) => {
                    break 'store true
                };
                ($class:ident $meaning:tt) => {{}};
            }
            if_op!(op, store);
            false
        };
        let denied = if store { hart.ctx.store } else { hart.ctx.load };
        let Some(frame) = hart.tlb.refill(&self.platform.dtlb, va, size - 1, denied) else {
            return false;
        };
        if store {
            let value = hart.x[insn.rs2()];
            match size {
                1 => ram.store8(frame, va, value),
                2 => ram.store16(frame, va, value),
                _ => ram.store32(frame, va, value),
            }
            trace.store(va, value, size);
            return true;
        }
        let value = 'value: {
            macro_rules! narrow {
                (Load(1, $extend:ident)) => {
                    break 'value Extend::$extend.apply(ram.load8(frame, va), 1)
                };
                (Load(2, $extend:ident)) => {
                    break 'value Extend::$extend.apply(ram.load16(frame, va), 2)
                };
                ($class:ident $meaning:tt) => {{}};
            }
            if_op!(op, narrow);
            ram.load32(frame, va)
        };
        trace.load(va);
        hart.x[insn.rd()] = value;
        trace.reg(insn.rd(), value);
        true
    }
}
