//! The uniform loop: an instruction loop for lanes of a warp that execute different instructions.
//!
//! The dispatching loop (`hart.rs`) jumps to code of its own for each operation. Lanes that are
//! at different instructions then wait for each other at every step. Here all operations take the
//! same straight path: their results are computed side by side, and selects pick the one that the
//! decoded instruction names (`Unit`). One step costs more than there, but takes the same time for
//! 32 different instructions as for one.
//!
//! What is rare leaves the straight path (`Core::attend`): translations and pages that are not at
//! hand, divisions, the slow path, and whatever happens between two runs of the loop. It never leaves
//! the loop before the VM's part of the launch is over: lanes that leave a loop at different times do
//! not come together in it again.
//!
//! Registers and the most recent translations lie in a [`HotState`], so that a GPU can interleave them
//! by lane in its shared memory. The slow path works on [`Hart`], which has the registers of one
//! instruction while that is executed there.
//!
//! The translations at hand are always some of those in the TLBs, and the pages some of those in the
//! instruction TLB. So a guest cannot observe which loop executes it.

use crate::abi::{Exit, Hart, Platform};
use crate::clock::Now;
use crate::disk::Disk;
use crate::hart::Count;
use crate::insn::compute::{AluOp, Condition, UpperOp};
use crate::insn::table::if_op;
use crate::insn::{Class, Decoded, INSN_SIZE, Op, Unit};
use crate::lane::Lane;
use crate::machine::Core;
use crate::mem::{FRAME_SHIFT, Ram, RawFrames};
use crate::mmu::{Context, PAGE_MASK};
use crate::port::Port;
use crate::tlb::{Entry, L2Tlb};
use crate::trace::NoTrace;
use crate::trap::Trap;

/// Marks all translations and pages as changed: see [`crate::abi::Platform::touched`].
pub(crate) const ALL_TOUCHED: u64 = u64::MAX;
/// The most translations that a [`HotState`] may hold: one for each bit of that mark.
pub const TRANSLATIONS_MAX: u32 = 64;

/// The address of no page.
const NOWHERE: u32 = 1;

/// What the straight path reads and writes at each step: registers, and the translations and pages of
/// instructions that were used last. `C` is the handle of a page's decoded instructions.
#[allow(missing_docs)]
pub trait HotState<C: Copy>: Copy {
    /// Steps that a lane waits for others to leave the straight path with it.
    fn wait_steps(self) -> u32;
    /// How many lanes, in 32nds of them all, end that waiting.
    fn crowd(self) -> u32;
    /// Reads register `n`, which is below 32.
    fn register(self, n: usize) -> u32;
    fn set_register(self, n: usize, value: u32);
    /// How many translations there are: a power of two.
    fn translations(self) -> u32;
    /// Reads the translation in slot `n`, modulo their number.
    fn translation(self, n: u32) -> u64;
    fn set_translation(self, n: u32, entry: u64);
    /// How many pages there are: a power of two.
    fn pages(self) -> u32;
    /// Reads the page in slot `n`, modulo their number: its address and its instructions.
    fn page(self, n: u32) -> (u32, C);
    fn set_page(self, n: u32, page: u32, code: C);
}

/// Where the hart executes.
#[derive(Clone, Copy)]
struct Cursor<C> {
    pc: u32,
    /// The page's address, or [`NOWHERE`] if the page is not at hand.
    page: u32,
    code: C,
    /// The instruction at `pc`; not decoded if the page is not at hand.
    insn: Decoded,
    /// How many instructions may be executed until something is due.
    left: u32,
}

impl<C> Cursor<C> {
    /// Returns whether the cursor's page is the one of `pc`.
    #[inline(always)]
    fn is_on_page(&self) -> bool {
        self.page == self.pc & PAGE_MASK
    }
}

/// What becomes of a lane that has left the straight path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It goes on.
    Goes,
    /// The VM's part of the launch is over.
    Over(Exit),
}

/// The runs of [`crate::machine::Machine::run`]'s kind that the loop does one after the other.
struct Runs {
    /// Instructions left of the run's budget.
    budget: u32,
    /// Instructions that the loop may execute until something is due.
    asked: u32,
    count: Count,
    /// The trap that stopped the hart.
    result: Result<(), Trap>,
}

#[inline(always)]
fn number(pc: u32) -> u32 {
    (pc & !PAGE_MASK) / INSN_SIZE
}

#[inline(always)]
fn translation_slot(va: u32) -> u32 {
    L2Tlb::index(va) as u32
}

#[inline(always)]
fn page_slot(pc: u32) -> u32 {
    pc >> FRAME_SHIFT
}

impl<M: Ram, D: Disk, P: Port, L: Lane> Core<'_, M, D, P, L> {
    /// Executes runs, the first of at most `budget` instructions, until `next` ends them. When a run
    /// has ended, `next` gets what it needs to end it, and returns the budget of the next.
    ///
    /// Lanes of a warp that call this together stay together at each step.
    #[inline(always)]
    pub(crate) fn uniform<H: HotState<M::Code>>(
        &mut self,
        hart: &mut Hart,
        hot: H,
        budget: u32,
        now: Now,
        mut next: impl FnMut(&mut P, &mut L, u64, Exit) -> Option<u32>,
    ) -> Exit {
        self.put_all(hart, hot);
        self.platform.touched = ALL_TOUCHED;
        self.drop_touched(hot);
        let mut runs = Runs { budget, asked: 0, count: Count::new(0), result: Ok(()) };
        let (pc, code) = (hart.pc, self.ram.no_code());
        let mut cursor = Cursor { pc, page: NOWHERE, code, insn: Decoded(0), left: 0 };
        let mut begins = true;
        let mut lanes = self.lane.lanes();
        let end = loop {
            let mut outcome = Outcome::Goes;
            if L::region_begin(cursor.pc) {
                if needs_attention(hot, &cursor, hart.ctx) {
                    let next = &mut next;
                    outcome = self.attend(hart, hot, &mut cursor, &mut runs, begins, now, next);
                    begins = false;
                }
                L::sync(lanes);
            }
            L::region_end();
            lanes &= !L::ballot(lanes, outcome != Outcome::Goes);
            if let Outcome::Over(exit) = outcome {
                break exit;
            }
            let (ram, platform) = (&*self.ram, &*self.platform);
            cursor = steps::<M, L, H>(ram, platform, hart, hot, lanes, cursor);
        };
        self.take_all(hart, hot);
        end
    }

    /// Does what the straight path does not: ends a run and begins the next, brings a page or a
    /// translation to hand, or executes the instruction.
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn attend<H: HotState<M::Code>>(
        &mut self,
        hart: &mut Hart,
        hot: H,
        cursor: &mut Cursor<M::Code>,
        runs: &mut Runs,
        begins: bool,
        now: Now,
        next: &mut impl FnMut(&mut P, &mut L, u64, Exit) -> Option<u32>,
    ) -> Outcome {
        runs.count.set_left(cursor.left);
        let outcome = if cursor.left == 0 {
            let exit =
                if begins { self.begin(hart, now) } else { self.end_run(hart, cursor.pc, runs) };
            let end = self.next_run(hart, runs, exit, now, next);
            (cursor.pc, cursor.page, cursor.insn) = (hart.pc, NOWHERE, Decoded(0));
            // What ends a run may have changed any page.
            for n in 0..hot.pages() {
                hot.set_page(n, NOWHERE, cursor.code);
            }
            end.map_or(Outcome::Goes, Outcome::Over)
        } else {
            if cursor.is_on_page() {
                self.execute_rare(hart, hot, cursor, runs);
            } else {
                self.fetch_any(hart, hot, cursor, runs);
            }
            Outcome::Goes
        };
        self.drop_touched(hot);
        cursor.left = runs.count.left();
        outcome
    }

    /// Accounts for what the hart has executed. Returns the exit that ends the run, if it must end.
    fn end_run(&mut self, hart: &mut Hart, pc: u32, runs: &mut Runs) -> Option<Exit> {
        hart.pc = pc;
        runs.count.sync(&mut self.platform.clock);
        let spent = runs.count.spent(runs.asked);
        self.account(hart, &mut runs.budget, spent, runs.result, &mut NoTrace)
    }

    /// Begins the next count of instructions, in this run or, after `exit`, in another. Returns the
    /// exit that was the last.
    fn next_run(
        &mut self,
        hart: &mut Hart,
        runs: &mut Runs,
        mut exit: Option<Exit>,
        now: Now,
        next: &mut impl FnMut(&mut P, &mut L, u64, Exit) -> Option<u32>,
    ) -> Option<Exit> {
        loop {
            if let Some(ended) = exit.take() {
                let retired = self.platform.clock.retired;
                let Some(budget) = next(self.port, &mut self.lane, retired, ended) else {
                    return Some(ended);
                };
                runs.budget = budget;
                exit = self.begin(hart, now);
                continue;
            }
            match self.handle_due(hart, runs.budget, now, &mut NoTrace) {
                Ok(n) => {
                    *runs = Runs { asked: n, count: Count::new(n), result: Ok(()), ..*runs };
                    self.exit_loop = false;
                    return None;
                }
                Err(ended) => exit = Some(ended),
            }
        }
    }

    /// Brings the cursor's page to hand, wherever it is.
    fn fetch_any<H: HotState<M::Code>>(
        &mut self,
        hart: &mut Hart,
        hot: H,
        cursor: &mut Cursor<M::Code>,
        runs: &mut Runs,
    ) {
        let shared = self.ram.shared_code();
        match self.platform.fetch_page(hart, self.ram, shared, cursor.pc) {
            Ok((_, code, fresh)) => {
                (cursor.page, cursor.code) = (cursor.pc & PAGE_MASK, code);
                cursor.insn = Decoded(self.ram.decoded(code, number(cursor.pc)));
                // What is newly decoded may be in the place of another page's.
                if fresh {
                    self.platform.touched = ALL_TOUCHED;
                } else {
                    hot.set_page(page_slot(cursor.pc), cursor.page, code);
                }
            }
            Err(trap) => {
                runs.result = Err(trap);
                runs.count.stop(0);
            }
        }
    }

    /// Executes the cursor's instruction, or does what it takes for the straight path to execute it.
    fn execute_rare<H: HotState<M::Code>>(
        &mut self,
        hart: &mut Hart,
        hot: H,
        cursor: &mut Cursor<M::Code>,
        runs: &mut Runs,
    ) {
        let insn = cursor.insn;
        let (a, b) = (hot.register(insn.rs1()), hot.register(insn.rs2()));
        let is_store = insn.is_for(Unit::Store);
        if insn.slot() == Op::Undecoded {
            let frame = self.ram.frame_of(cursor.code);
            cursor.insn = self.decode(frame, cursor.code, number(cursor.pc));
            return;
        }
        if is_store | insn.is_for(Unit::Load) {
            let va = a.wrapping_add(insn.imm());
            let denied = if is_store { hart.ctx.store } else { hart.ctx.load };
            let entry = self.platform.dtlb.entry(va);
            if entry.hit(va, (1 << insn.size_shift()) - 1, denied) {
                hot.set_translation(translation_slot(va), entry.to_bits());
                return;
            }
        }
        let to = if let Some(value) = rare_computation(insn, a, b) {
            if insn.rd() != 0 {
                hot.set_register(insn.rd(), value);
            }
            cursor.pc.wrapping_add(INSN_SIZE)
        } else {
            hart.pc = cursor.pc;
            runs.count.sync(&mut self.platform.clock);
            // An instruction has two sources and a destination, but a call of firmware has more.
            let all = insn.op().class() == Some(Class::System);
            if all {
                self.take_all(hart, hot);
            } else {
                (hart.x[insn.rs1()], hart.x[insn.rs2()]) = (a, b);
            }
            let done = self.slow_path(hart, insn, &mut NoTrace);
            if all {
                self.put_all(hart, hot);
            } else if done.is_ok() && insn.rd() != 0 {
                hot.set_register(insn.rd(), hart.x[insn.rd()]);
            }
            match done {
                Ok(to) => to,
                Err(trap) => {
                    runs.result = Err(trap);
                    runs.count.stop(0);
                    return;
                }
            }
        };
        cursor.pc = to;
        if self.exit_loop {
            runs.count.stop(1);
        } else {
            runs.count.retire();
        }
        cursor.insn = Decoded(0);
        if cursor.is_on_page() {
            cursor.insn = Decoded(self.ram.decoded(cursor.code, number(to)));
        }
    }

    fn take_all<H: HotState<M::Code>>(&self, hart: &mut Hart, hot: H) {
        for n in 0..32 {
            hart.x[n] = hot.register(n);
        }
    }

    fn put_all<H: HotState<M::Code>>(&self, hart: &Hart, hot: H) {
        for n in 0..32 {
            hot.set_register(n, hart.x[n]);
        }
    }

    /// Drops the translations at hand that may have changed in the TLBs, and with all of them the
    /// pages.
    fn drop_touched<H: HotState<M::Code>>(&mut self, hot: H) {
        let touched = core::mem::take(&mut self.platform.touched);
        if touched == 0 {
            return;
        }
        if touched == ALL_TOUCHED {
            for n in 0..hot.translations() {
                hot.set_translation(n, Entry::EMPTY.to_bits());
            }
            for n in 0..hot.pages() {
                hot.set_page(n, NOWHERE, self.ram.no_code());
            }
            return;
        }
        let mut left = touched;
        while left != 0 {
            hot.set_translation(left.trailing_zeros(), Entry::EMPTY.to_bits());
            left &= left - 1;
        }
    }
}

/// Returns whether the straight path cannot execute the cursor's instruction.
#[inline(always)]
fn needs_attention<C: Copy, H: HotState<C>>(hot: H, cursor: &Cursor<C>, context: Context) -> bool {
    let insn = cursor.insn;
    let va = hot.register(insn.rs1()).wrapping_add(insn.imm());
    let is_store = insn.is_for(Unit::Store);
    let denied = if is_store { context.store } else { context.load };
    let entry = Entry::from_bits(hot.translation(translation_slot(va)));
    let missed =
        (is_store | insn.is_for(Unit::Load)) & !entry.hit(va, (1 << insn.size_shift()) - 1, denied);
    let misaligned = insn.is_for(Unit::JumpRegister) & (va & 2 != 0);
    insn.is_for(Unit::Rare) | missed | misaligned | (cursor.left == 0)
}

/// The straight path: executes instructions until some lanes need attention. A lane that does waits
/// some steps for others.
///
/// It is a function of its own, which calls no other, so that a GPU's compiler keeps all of it in
/// registers.
#[inline(never)]
fn steps<M: Ram, L: Lane, H: HotState<M::Code>>(
    ram: &M,
    platform: &Platform,
    hart: &Hart,
    hot: H,
    lanes: u32,
    mut cursor: Cursor<M::Code>,
) -> Cursor<M::Code> {
    let frames = ram.raw_frames();
    let Context { load, store, fetch, .. } = hart.ctx;
    let (wait_steps, crowd) = (hot.wait_steps(), hot.crowd() * lanes.count_ones());
    let (mut waited, mut prefetched) = (0, false);
    loop {
        let Cursor { pc, page, code, insn, left } = cursor;
        let imm = insn.imm();
        let (a, b) = (hot.register(insn.rs1()), hot.register(insn.rs2()));
        let va = a.wrapping_add(imm);
        let (is_load, is_store) = (insn.is_for(Unit::Load), insn.is_for(Unit::Store));
        let is_register_jump = insn.is_for(Unit::JumpRegister);
        let entry = Entry::from_bits(hot.translation(translation_slot(va)));
        let denied = L::select(is_store, store, load);
        let size_shift = insn.size_shift();
        let align = (1 << size_shift) - 1;
        let missed = (is_load | is_store) & !entry.hit(va, align, denied);
        let misaligned = is_register_jump & (va & 2 != 0);
        let rare = insn.is_for(Unit::Rare) | missed | misaligned | (left == 0);
        let mut stuck = rare;
        if !rare {
            let following = pc.wrapping_add(INSN_SIZE);
            let select = insn.select();
            // Without a branch, as `Lane::select`.
            let choose = |condition: bool, a: bool, b: bool| condition & a | !condition & b;
            let branches = insn.is_for(Unit::Branch) & Condition::pick(select, a, b, choose);
            let is_jump = insn.is_for(Unit::Jump);
            let relative = pc.wrapping_add(imm.wrapping_mul(INSN_SIZE));
            let to = L::select(is_jump | branches, relative, following);
            let to = L::select(is_register_jump, va & !1, to);
            // The next instruction is on its way while this one reads memory.
            let (mut next_page, mut next_code) = (page, code);
            if (to ^ page) & PAGE_MASK != 0 {
                (next_page, next_code) = hot.page(page_slot(to));
                next_page = L::select(next_page == to & PAGE_MASK, next_page, NOWHERE);
            }
            let known = next_page != NOWHERE;
            let fetched = Decoded(ram.decoded_if(known, next_code, number(to)));
            let word = frames.load32_if(is_load, entry.frame(), va);
            frames.store_if(is_store, size_shift, entry.frame(), va, b);

            let computed = AluOp::pick(select, a, b.wrapping_add(imm), L::select);
            let upper = UpperOp::pick(select, pc, imm, L::select);
            let value = L::select(insn.is_for(Unit::Upper), upper, computed);
            let value = L::select(is_jump | is_register_jump, following, value);
            // Wrapping, because what is no load has any size.
            let unused = 32u32.wrapping_sub(8 << size_shift);
            let top = (word >> (va % 4 * 8)).wrapping_shl(unused);
            let signed = (top as i32).wrapping_shr(unused) as u32;
            let loaded = L::select(insn.is_unsigned(), top.wrapping_shr(unused), signed);
            let value = L::select(is_load, loaded, value);
            // What has no destination writes the zero that is there.
            hot.set_register(insn.rd(), L::select(insn.rd() == 0, 0, value));
            cursor =
                Cursor { pc: to, page: next_page, code: next_code, insn: fetched, left: left - 1 };
        } else if left != 0 {
            if missed {
                let behind = platform.dtlb.entry(va);
                if behind.hit(va, align, denied) {
                    hot.set_translation(translation_slot(va), behind.to_bits());
                    stuck = false;
                }
            } else if page != pc & PAGE_MASK
                && let Some((_, frame)) = platform.itlb.get(pc, fetch)
                && let Some(code) = M::code_in(ram.shared_code(), frame)
            {
                (cursor.page, cursor.code) = (pc & PAGE_MASK, code);
                hot.set_page(page_slot(pc), pc & PAGE_MASK, code);
                cursor.insn = Decoded(ram.decoded_if(true, code, number(pc)));
                stuck = false;
            }
        }
        // The slow path will find the state of its VM near, though that has not been used for long.
        if stuck & !prefetched {
            L::prefetch(&hart.x);
            L::prefetch(&hart.ctx);
            platform.prefetch_state::<L>();
            prefetched = true;
        }
        L::region_end();
        let stuck = L::ballot(lanes, stuck);
        if stuck != 0 {
            waited += 1;
            if waited > wait_steps || stuck.count_ones() * 32 >= crowd {
                return cursor;
            }
        }
    }
}

/// Returns what an instruction computes, if that is one of the ALU's rare operations.
#[inline(always)]
fn rare_computation(insn: Decoded, a: u32, b: u32) -> Option<u32> {
    let op = insn.slot();
    macro_rules! rare {
        (Alu($op:ident)) => {
            if AluOp::$op as u32 >= AluOp::PICKED {
                return Some(AluOp::$op.compute(a, b));
            }
        };
        ($class:ident $meaning:tt) => {{}};
    }
    if_op!(op, rare);
    None
}
