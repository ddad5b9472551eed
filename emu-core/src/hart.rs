//! The instruction loop.
//!
//! The loop must be small: it has to fit a GPU's instruction cache, and the fewer paths it has, the
//! less the lanes of a warp diverge. So [`Core::execute`] itself executes only the common
//! instructions ([`Core::fast_path`]): register arithmetic, jumps, and loads and stores that hit the
//! TLB. All others leave it by one way, to [`Core::slow_path`].
//!
//! The loop does not check for interrupts. Its caller limits the number of instructions so that the
//! loop ends when the next timer is due, and an instruction that may change anything the loop
//! relies on ends it by setting `exit_loop`.

use crate::abi::Hart;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::fast_path::{Flow, Site};
use crate::insn::{Decoded, INSN_SIZE, Op};
use crate::lane::Lane;
use crate::machine::Core;
use crate::mem::{FRAME_INSNS, FRAME_SIZE, Frame, Ram};
use crate::mmu::{Context, PAGE_MASK};
use crate::port::Port;
use crate::trace::Trace;
use crate::trap::Trap;

/// Where the hart executes: instruction number `at` of a page.
///
/// A number past the end of the page means that another page must be fetched. It reads as an
/// undecoded instruction, so the loop needs no bounds check of its own.
struct Cursor<C> {
    page: u32,
    at: u32,
    frame: Frame,
    code: C,
}

impl<C> Cursor<C> {
    /// Returns the address of instruction `at` of the page.
    #[inline(always)]
    fn address(&self, at: u32) -> u32 {
        self.page.wrapping_add(at.wrapping_mul(INSN_SIZE))
    }

    /// Returns the number of the instruction at `pc`, relative to the page.
    #[inline(always)]
    fn number(&self, pc: u32) -> u32 {
        pc.wrapping_sub(self.page) / INSN_SIZE
    }
}

/// How many instructions are left, and what that means for the count of retired ones.
pub(crate) struct Count {
    left: u32,
    /// Instructions given up because the loop must end early.
    dropped: u32,
    /// What `left` was when `Clock::retired` was last updated.
    synced: u32,
}

impl Count {
    /// Makes the count of `n` instructions.
    #[inline(always)]
    pub(crate) const fn new(n: u32) -> Self {
        Self { left: n, dropped: 0, synced: n }
    }

    /// Returns how many instructions are left.
    #[inline(always)]
    pub(crate) const fn left(&self) -> u32 {
        self.left
    }

    /// Sets how many instructions are left: no more than there were.
    #[inline(always)]
    pub(crate) fn set_left(&mut self, left: u32) {
        self.left = left;
    }

    /// Counts an instruction that has retired.
    #[inline(always)]
    pub(crate) fn retire(&mut self) {
        self.left -= 1;
    }

    /// Ends at once. The instruction retires (1) or does not (0).
    #[inline(always)]
    pub(crate) fn stop(&mut self, retires: u32) {
        self.end(retires);
        self.left = 0;
    }

    /// Returns how many of the `n` instructions have retired.
    #[inline(always)]
    pub(crate) const fn spent(&self, n: u32) -> u32 {
        n - self.dropped - self.left
    }

    /// Makes the loop end with this instruction, which retires (1) or does not (0).
    #[inline(always)]
    pub(crate) fn end(&mut self, retires: u32) {
        self.dropped += self.left - retires;
        self.synced -= self.left - retires;
        self.left = 1;
    }

    /// Updates the count of retired instructions.
    #[inline(always)]
    pub(crate) fn sync(&mut self, clock: &mut Clock) {
        clock.retired = clock.retired.wrapping_add(u64::from(self.synced - self.left));
        self.synced = self.left;
    }
}

impl<M: Ram, D: Disk, P: Port, L: Lane> Core<'_, M, D, P, L> {
    /// Executes up to `n` instructions from `hart.pc`. Returns how many retired, and the trap that
    /// the next one raised, if any.
    ///
    /// `ALONE` selects the variant for a VM that is the only one in its warp, and for a CPU. It
    /// omits the checks that let lanes reconverge. Lanes that share a warp fetch pages and decode
    /// inside an iteration of the inner loop. An iteration has a single end, so that diverged lanes
    /// reconverge there. A VM that is alone in its warp has nobody to reconverge with: it leaves and
    /// enters the inner loop in the middle, and pays nothing for that end.
    pub(crate) fn execute<T: Trace, const ALONE: bool>(
        &mut self,
        hart: &mut Hart,
        n: u32,
        trace: &mut T,
    ) -> (u32, Result<(), Trap>) {
        // The loop starts past the end of a page, to fetch its first one.
        let mut cursor = Cursor {
            page: hart.pc.wrapping_sub(FRAME_SIZE),
            at: FRAME_INSNS,
            frame: Frame::ZERO,
            code: self.ram.no_code(),
        };
        let mut count = Count::new(n);
        let (ram, shared) = (self.ram.raw_frames(), self.ram.shared_code());
        // An instruction that changes these ends the loop, so they can be kept in registers.
        let Context { load, store, .. } = hart.ctx;
        self.exit_loop = false;
        debug_assert!(n > 0);
        let expected = self.lane.expected();
        let mut result = Ok(());
        // With `PREFETCH`, instruction `at`, read while the one before it was executed.
        let mut prefetched = Decoded(0);
        'page: loop {
            if ALONE {
                match self.turn_page(hart, shared, &mut cursor) {
                    Ok(insn) => prefetched = insn,
                    Err(trap) => {
                        result = Err(trap);
                        break;
                    }
                }
            }
            'insn: loop {
                if count.left == 0 {
                    break 'page;
                }
                let Cursor { page, at, code, .. } = cursor;
                let insn =
                    if L::PREFETCH { prefetched } else { Decoded(self.ram.decoded(code, at)) };
                // On a CPU the constant keeps `following` independent of `insn`. For a GPU see
                // `Decoded::one`.
                let one = if L::PREFETCH { insn.one() } else { 1 };
                let following = at.wrapping_add(one);
                prefetched = self.prefetch(code, following);
                let privilege = if T::ENABLED { hart.ctx.privilege as u32 } else { 0 };
                // The number of the next instruction.
                let next = 'done: {
                    let trap = 'trap: {
                        let site = Site { page, at, following, code, ram, load, store, expected };
                        match self.fast_path::<T, ALONE>(hart, site, insn, &mut count, trace) {
                            Flow::Following => break 'done following,
                            Flow::Jump(to, insn) => {
                                prefetched = insn;
                                break 'done to;
                            }
                            Flow::Missed => {
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
                            Flow::SlowPath => {}
                        }
                        if insn.slot() == Op::Undecoded {
                            if at < FRAME_INSNS {
                                prefetched = self.decode(cursor.frame, code, at);
                                if ALONE {
                                    continue 'insn;
                                }
                            } else if ALONE {
                                continue 'page;
                            } else {
                                match self.turn_page(hart, shared, &mut cursor) {
                                    Ok(insn) => prefetched = insn,
                                    Err(trap) => break 'trap trap,
                                }
                            }
                            // This iteration retires no instruction.
                            count.left += 1;
                            break 'done cursor.at;
                        }
                        hart.pc = cursor.address(L::opaque(at.into()) as u32);
                        count.sync(&mut self.platform.clock);
                        match self.slow_path(hart, insn, trace) {
                            Ok(pc) => {
                                if self.exit_loop {
                                    count.end(1);
                                }
                                let to = cursor.number(pc);
                                prefetched = self.prefetch(code, to);
                                break 'done to;
                            }
                            Err(trap) => trap,
                        }
                    };
                    result = Err(trap);
                    count.end(0);
                    at
                };
                L::region_end();
                if T::ENABLED && result.is_ok() && insn.slot() != Op::Undecoded {
                    let word = self.ram.load32(cursor.frame, at * INSN_SIZE);
                    trace.retire(cursor.address(at), word, privilege);
                }
                cursor.at = next;
                count.left -= 1;
            }
        }
        hart.pc = cursor.address(cursor.at);
        count.sync(&mut self.platform.clock);
        (count.spent(n), result)
    }

    /// Fetches the page of the cursor's address, and returns its first instruction if that was
    /// prefetched.
    #[inline(always)]
    fn turn_page(
        &mut self,
        hart: &mut Hart,
        shared: M::SharedCode,
        cursor: &mut Cursor<M::Code>,
    ) -> Result<Decoded, Trap> {
        let pc = cursor.address(cursor.at);
        (cursor.frame, cursor.code, _) = self.platform.fetch_page(hart, self.ram, shared, pc)?;
        cursor.page = pc & PAGE_MASK;
        cursor.at = (pc & !PAGE_MASK) / INSN_SIZE;
        Ok(self.prefetch(cursor.code, cursor.at))
    }

    /// Decodes instruction number `at` of a frame, and keeps the result for later executions.
    #[cold]
    #[inline(never)]
    pub(crate) fn decode(&mut self, frame: Frame, code: M::Code, at: u32) -> Decoded {
        let decoded = Decoded::new(self.ram.load32(frame, at * INSN_SIZE));
        self.ram.set_decoded(code, at, decoded.0);
        decoded
    }
}
