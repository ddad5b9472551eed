//! The instruction loop.
//!
//! The loop must be small: it has to fit a GPU's instruction cache, and the fewer paths it has, the
//! less the lanes of a warp diverge. So [`Core::execute`] itself executes only the common
//! instructions: register arithmetic, jumps, and loads and stores that hit the TLB. All others
//! leave it by one way, to [`Core::slow_path`].
//!
//! The loop does not check for interrupts. Its caller limits the number of instructions so that the
//! loop ends when the next timer is due, and an instruction that may change anything the loop
//! relies on ends it by setting `exit_loop`.

use crate::abi::Hart;
use crate::insn::table::{if_op, match_op};
use crate::insn::{Class, Decoded, Extend, INSN_SIZE, Op};
use crate::lane::Lane;
use crate::machine::Core;
use crate::mem::{FRAME_INSNS, FRAME_SIZE, Frame, Memory, Ram, RawFrames};
use crate::mmu::{Context, PAGE_MASK};
use crate::port::Port;
use crate::trace::Trace;
use crate::trap::Trap;

impl<M: Ram, D: Memory, P: Port, L: Lane> Core<'_, M, D, P, L> {
    /// Executes up to `n` instructions from `hart.pc`. Returns how many retired, and the trap that
    /// the next one raised, if any.
    ///
    /// `ALONE` selects the variant for a VM that is the only one in its warp, and for a CPU. It
    /// omits the checks that let lanes reconverge.
    pub(crate) fn execute<T: Trace, const ALONE: bool>(
        &mut self,
        hart: &mut Hart,
        n: u32,
        trace: &mut T,
    ) -> (u32, Result<(), Trap>) {
        // The hart executes instruction number `at` of `page`. A number past the end of the page
        // means that another page must be fetched. It reads as an undecoded instruction, so the
        // loop needs no bounds check of its own. The loop starts with such a number to fetch its
        // first page.
        let mut page = hart.pc.wrapping_sub(FRAME_SIZE);
        let mut at = FRAME_INSNS;
        let mut left = n;
        // `dropped` counts the instructions given up because the loop must end early; `synced` is
        // what `left` was when `clock.retired` was last updated.
        let mut dropped = 0;
        let mut synced = n;
        let mut frame = Frame::ZERO;
        let mut code = self.ram.no_code();
        let (ram, shared) = (self.ram.raw_frames(), self.ram.shared_code());
        // An instruction that changes these ends the loop, so they can be kept in registers.
        let Context { load, store, .. } = hart.ctx;
        self.exit_loop = false;
        debug_assert!(n > 0);
        let expected = self.lane.expected();

        // The address of instruction `at`.
        macro_rules! pc {
            () => {
                pc!(at)
            };
            ($at:expr) => {
                page.wrapping_add($at.wrapping_mul(INSN_SIZE))
            };
        }
        macro_rules! sync {
            ($pc:expr) => {
                hart.pc = $pc;
                self.platform.clock.retired =
                    self.platform.clock.retired.wrapping_add(u64::from(synced - left));
                synced = left;
            };
        }
        let mut result = Ok(());
        // Makes the loop end with this instruction, which retires (1) or does not (0).
        macro_rules! end {
            ($retires:literal) => {
                dropped += left - $retires;
                synced -= left - $retires;
                left = 1;
            };
        }
        // With `PREFETCH`, instruction `at`, read while the one before it was executed.
        let mut prefetched = Decoded(0);
        macro_rules! read {
            ($at:expr) => {
                if L::PREFETCH {
                    prefetched = Decoded(self.ram.decoded(code, $at));
                }
            };
        }
        macro_rules! turn_page {
            () => {{
                let pc = pc!();
                let fetched = self.platform.fetch_page(hart, self.ram, shared, pc);
                fetched.map(|fetched| {
                    (frame, code) = fetched;
                    page = pc & PAGE_MASK;
                    at = (pc & !PAGE_MASK) / INSN_SIZE;
                    read!(at);
                })
            }};
        }
        // Lanes that share a warp fetch pages and decode inside an iteration of the inner loop. An
        // iteration has a single end, so that diverged lanes reconverge there. A VM that is alone
        // in its warp has nobody to reconverge with: it leaves and enters the inner loop in the
        // middle, and pays nothing for that end.
        'page: loop {
            if ALONE && let Err(trap) = turn_page!() {
                result = Err(trap);
                break;
            }
            'insn: loop {
                if left == 0 {
                    break 'page;
                }
                let insn =
                    if L::PREFETCH { prefetched } else { Decoded(self.ram.decoded(code, at)) };
                // On a CPU the constant keeps `following` independent of `insn`. For a GPU see
                // `Decoded::one`.
                let one = if L::PREFETCH { insn.one() } else { 1 };
                let following = at.wrapping_add(one);
                read!(following);
                let privilege = if T::ENABLED { hart.ctx.privilege as u32 } else { 0 };
                // The number of the next instruction.
                let next = 'done: {
                    let trap = 'trap: {
                        'slow_path: {
                            'missed: {
                                let (rd, imm) = (insn.rd(), insn.imm());
                                // Reading both sources before the dispatch hides the latency of a
                                // GPU's shared memory. A CPU would read registers that are not
                                // needed.
                                let sources = if L::PREFETCH {
                                    (hart.x[insn.rs1()], hart.x[insn.rs2()])
                                } else {
                                    (0, 0)
                                };
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
                                // `rd` is never x0 here: `Decoded::new` makes other operations of
                                // those instructions.
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
                                            break 'missed;
                                        };
                                        trace.load(va);
                                        set!(Extend::$extend.apply(ram.$get(data, va), $size));
                                    }};
                                }
                                macro_rules! store {
                                    ($size:literal, $put:ident) => {{
                                        let va = a!().wrapping_add(imm);
                                        let Some(data) = hart.tlb.get(va, $size - 1, store) else {
                                            break 'missed;
                                        };
                                        ram.$put(data, va, b!());
                                        trace.store(va, b!(), $size);
                                    }};
                                }
                                macro_rules! go {
                                    ($at:expr) => {{
                                        let to: u32 = $at;
                                        read!(to);
                                        break 'done to;
                                    }};
                                }
                                macro_rules! branch {
                                    ($taken:expr) => {
                                        // On a GPU, selecting the target costs less than a branch
                                        // that makes lanes diverge and reconverge.
                                        if L::PREFETCH {
                                            let to = at.wrapping_add(imm);
                                            go!(if $taken { to } else { following });
                                        } else if $taken {
                                            go!(at.wrapping_add(imm));
                                        }
                                    };
                                }

                                macro_rules! jump_register {
                                    (|$target:ident| $before:expr) => {{
                                        let $target = a!().wrapping_add(imm) & !1;
                                        if $target & 2 != 0 {
                                            break 'slow_path;
                                        }
                                        $before;
                                        go!($target.wrapping_sub(page) / INSN_SIZE);
                                    }};
                                }
                                // What an instruction of each class does here.
                                macro_rules! meaning {
                                    (Upper(|$pc:pat_param, $imm:pat_param| $value:expr)) => {{
                                        let ($pc, $imm) = (pc!(), imm);
                                        set!($value)
                                    }};
                                    (Alu(|$a:pat_param, $b:pat_param| $value:expr)) => {{
                                        let ($a, $b) = (a!(), b!());
                                        set!($value)
                                    }};
                                    (AluImm(|$a:pat_param, $imm:pat_param| $value:expr)) => {{
                                        let ($a, $imm) = (a!(), imm);
                                        set!($value)
                                    }};
                                    (Jump()) => {{
                                        set!(pc!().wrapping_add(INSN_SIZE));
                                        go!(at.wrapping_add(imm));
                                    }};
                                    (JumpRegister()) => {
                                        jump_register!(|target| set!(pc!().wrapping_add(INSN_SIZE)))
                                    };
                                    (Branch(|$a:pat_param, $b:pat_param| $taken:expr)) => {{
                                        let ($a, $b) = (a!(), b!());
                                        branch!($taken)
                                    }};
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
                                        break 'slow_path;
                                    }};
                                }
                                match_op!(insn.slot(), meaning, {
                                    Op::Nop => {}
                                    Op::J => go!(at.wrapping_add(imm)),
                                    // All paths through a function lead to its return, so this is
                                    // where diverged lanes can reconverge.
                                    Op::Jr => jump_register!(|target| {
                                        if !ALONE
                                            && L::diverged(expected)
                                            && !self.lane.skips_sync(hart.x[2], target)
                                        {
                                            self.exit_loop = true;
                                            end!(1);
                                        }
                                    }),
                                    Op::Undecoded
                                    | Op::DiscardedLoad
                                    | Op::MisalignedJump
                                    | Op::Illegal => break 'slow_path,
                                });
                                break 'done following;
                            }
                            let insn = Decoded(L::opaque(insn.0));
                            let done = if L::PREFETCH {
                                self.l2_hit(hart, ram, insn, trace)
                            } else {
                                self.l2_hit_outlined(hart, ram, insn, trace)
                            };
                            if done {
                                break 'done following;
                            }
                        }
                        if insn.slot() == Op::Undecoded {
                            if at < FRAME_INSNS {
                                prefetched = self.decode(frame, code, at);
                                if ALONE {
                                    continue 'insn;
                                }
                            } else if ALONE {
                                continue 'page;
                            } else if let Err(trap) = turn_page!() {
                                break 'trap trap;
                            }
                            // This iteration retires no instruction.
                            left += 1;
                            break 'done at;
                        }
                        let here = L::opaque(at.into()) as u32;
                        sync!(pc!(here));
                        match self.slow_path(hart, insn, trace) {
                            Ok(pc) => {
                                if self.exit_loop {
                                    end!(1);
                                }
                                let to = pc.wrapping_sub(page) / INSN_SIZE;
                                read!(to);
                                break 'done to;
                            }
                            Err(trap) => trap,
                        }
                    };
                    result = Err(trap);
                    end!(0);
                    at
                };
                L::region_end();
                if T::ENABLED && result.is_ok() && insn.slot() != Op::Undecoded {
                    let word = ram.load32(frame, at * INSN_SIZE);
                    trace.retire(pc!(), word, privilege);
                }
                at = next;
                left -= 1;
            }
        }
        sync!(pc!());
        let _ = synced;
        (n - dropped - left, result)
    }

    /// Decodes instruction number `at` of a frame, and keeps the result for later executions.
    #[cold]
    #[inline(never)]
    fn decode(&mut self, frame: Frame, code: M::Code, at: u32) -> Decoded {
        let decoded = Decoded::new(self.ram.load32(frame, at * INSN_SIZE));
        self.ram.set_decoded(code, at, decoded.0);
        decoded
    }

    /// Calls [`Self::l2_hit`] without inlining it, so that on a CPU it takes no registers from
    /// the loop.
    #[cold]
    #[inline(never)]
    fn l2_hit_outlined<T: Trace>(
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
    fn l2_hit<T: Trace>(
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
