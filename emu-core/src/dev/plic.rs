//! Platform-level interrupt controller (RISC-V PLIC specification 1.0).
//!
//! Sources are level-triggered. A gateway forwards one request at a time to the core, and samples
//! its line again when a handler has completed that request.
//!
//! | Offset      | Registers                                        |
//! |-------------|--------------------------------------------------|
//! | `0x00_0000` | priority, a word for each source                 |
//! | `0x00_1000` | pending bits                                     |
//! | `0x00_2000` | enable bits, `0x80` for each context             |
//! | `0x20_0000` | threshold, claim/complete, `0x1000` each context |

/// Words in a bit map of all sources.
const WORDS: usize = 3;
/// How many sources there can be, counting source 0, which does not exist.
const SOURCES: usize = WORDS * 32;
/// Interrupt targets: one hart's M and S mode.
const CONTEXTS: usize = 2;

const PENDING_BASE: u32 = 0x1000;
const ENABLE_BASE: u32 = 0x2000;
const ENABLE_STRIDE: u32 = 0x80;
const CONTEXT_BASE: u32 = 0x20_0000;
const CONTEXT_STRIDE: u32 = 0x1000;
const THRESHOLD: u32 = 0;
const CLAIM: u32 = 4;

/// Priorities and thresholds keep three bits (WARL).
const PRIORITY_MASK: u32 = 7;

type Bits = [u32; WORDS];

/// The controller's state.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Plic {
    /// The requests that have not been claimed.
    pending: Bits,
    enable: [Bits; CONTEXTS],
    /// The requests that have been claimed and not completed. They are never pending as well.
    claimed: Bits,
    /// The levels of the interrupt lines.
    level: Bits,
    priority: [u8; SOURCES],
    threshold: [u8; CONTEXTS],
    /// Highest source number.
    sources: u16,
}

state!(Plic { pending, enable, claimed, level, priority, threshold, sources });

/// A register, as decoded from its offset.
enum Register {
    Priority(usize),
    Pending(usize),
    Enable(usize, usize),
    Threshold(usize),
    Claim(usize),
}

impl Register {
    const fn at(offset: u32) -> Option<Self> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        if offset < PENDING_BASE {
            return Some(Self::Priority((offset / 4) as usize));
        }
        if offset < ENABLE_BASE {
            return Some(Self::Pending(((offset - PENDING_BASE) / 4) as usize));
        }
        if offset < CONTEXT_BASE {
            let at = offset - ENABLE_BASE;
            let word = at % ENABLE_STRIDE / 4;
            return Some(Self::Enable((at / ENABLE_STRIDE) as usize, word as usize));
        }
        let at = offset - CONTEXT_BASE;
        let context = (at / CONTEXT_STRIDE) as usize;
        match at % CONTEXT_STRIDE {
            THRESHOLD => Some(Self::Threshold(context)),
            CLAIM => Some(Self::Claim(context)),
            _ => None,
        }
    }
}

/// Returns whether a load from the register at `offset` claims a request.
pub fn is_claim(offset: u32) -> bool {
    matches!(Register::at(offset), Some(Register::Claim(_)))
}

impl Plic {
    /// Makes a controller with sources 1 to `sources` (at most 95), none enabled.
    pub const fn new(sources: u32) -> Self {
        let highest = SOURCES as u32 - 1;
        Self {
            pending: [0; WORDS],
            enable: [[0; WORDS]; CONTEXTS],
            claimed: [0; WORDS],
            level: [0; WORDS],
            priority: [0; SOURCES],
            threshold: [0; CONTEXTS],
            sources: if sources < highest { sources } else { highest } as u16,
        }
    }

    /// Sets the line of `source`. A high line becomes a request unless one is being handled.
    pub fn set_level(&mut self, source: u32, level: bool) {
        if !self.exists(source) {
            return;
        }
        let bit = Bit::of(source);
        bit.set(&mut self.level, level);
        if level && !bit.get(&self.claimed) {
            bit.set(&mut self.pending, true);
        }
    }

    /// Returns whether `context` is interrupted, because it has an enabled request with a priority
    /// above its threshold.
    pub fn pending(&self, context: u32) -> bool {
        let context = context as usize;
        let threshold = self.threshold.get(context).copied().unwrap_or(u8::MAX);
        self.best(context).is_some_and(|(_, priority)| priority > threshold)
    }

    /// Loads from the register at `offset`. Reading a claim register claims a request.
    pub fn read(&mut self, offset: u32) -> u32 {
        match Register::at(offset) {
            Some(Register::Priority(source)) => {
                self.priority.get(source).copied().unwrap_or(0).into()
            }
            Some(Register::Pending(word)) => self.pending.get(word).copied().unwrap_or(0),
            Some(Register::Enable(context, word)) => {
                self.enable.get(context).and_then(|bits| bits.get(word)).copied().unwrap_or(0)
            }
            Some(Register::Threshold(context)) => {
                self.threshold.get(context).copied().unwrap_or(0).into()
            }
            Some(Register::Claim(context)) => self.claim(context),
            None => 0,
        }
    }

    /// Stores `value` to the register at `offset`. Writing a claim register completes a request.
    pub fn write(&mut self, offset: u32, value: u32) {
        match Register::at(offset) {
            Some(Register::Priority(source)) => {
                if self.exists(source as u32)
                    && let Some(priority) = self.priority.get_mut(source)
                {
                    *priority = (value & PRIORITY_MASK) as u8;
                }
            }
            Some(Register::Enable(context, word)) => {
                let valid = self.existing(word);
                if let Some(bits) = self.enable.get_mut(context).and_then(|b| b.get_mut(word)) {
                    *bits = value & valid;
                }
            }
            Some(Register::Threshold(context)) => {
                if let Some(threshold) = self.threshold.get_mut(context) {
                    *threshold = (value & PRIORITY_MASK) as u8;
                }
            }
            Some(Register::Claim(context)) => self.complete(context, value),
            Some(Register::Pending(_)) | None => {}
        }
    }

    /// Claims the request of highest priority. The threshold has no effect on claims
    /// (specification, chapter 7).
    fn claim(&mut self, context: usize) -> u32 {
        let Some((source, _)) = self.best(context) else { return 0 };
        let bit = Bit::of(source);
        bit.set(&mut self.pending, false);
        bit.set(&mut self.claimed, true);
        source
    }

    fn complete(&mut self, context: usize, source: u32) {
        let bit = Bit::of(source);
        let enabled = self.enable.get(context).is_some_and(|bits| bit.get(bits));
        if !self.exists(source) || !enabled || !bit.get(&self.claimed) {
            return;
        }
        bit.set(&mut self.claimed, false);
        if bit.get(&self.level) {
            bit.set(&mut self.pending, true);
        }
    }

    /// Returns the enabled request of highest priority, and that priority. Of requests with the
    /// same priority it returns the one with the lowest source number.
    fn best(&self, context: usize) -> Option<(u32, u8)> {
        let enable = self.enable.get(context)?;
        let mut best = None;
        let mut best_priority = 0;
        for (word, (pending, enable)) in self.pending.iter().zip(enable).enumerate() {
            let mut requests = pending & enable;
            while requests != 0 {
                let source = word as u32 * 32 + requests.trailing_zeros();
                requests &= requests - 1;
                let priority = self.priority.get(source as usize).copied().unwrap_or(0);
                // Priority 0 never interrupts, so the first better one must be above it.
                if priority > best_priority {
                    best_priority = priority;
                    best = Some((source, priority));
                }
            }
        }
        best
    }

    fn exists(&self, source: u32) -> bool {
        source != 0 && source <= u32::from(self.sources)
    }

    /// The bits of existing sources in `word` of a bit map.
    fn existing(&self, word: usize) -> u32 {
        let first = (word as u32).saturating_mul(32);
        let count = (u32::from(self.sources) + 1).saturating_sub(first);
        let low = 1u32.checked_shl(count).map_or(u32::MAX, |bit| bit - 1);
        if word == 0 { low & !1 } else { low }
    }
}

/// The position of a source's bit in a bit map. Bits out of range read as zero.
#[derive(Clone, Copy)]
struct Bit {
    word: usize,
    mask: u32,
}

impl Bit {
    const fn of(source: u32) -> Self {
        Self { word: (source / 32) as usize, mask: 1 << (source % 32) }
    }

    fn get(self, bits: &Bits) -> bool {
        bits.get(self.word).is_some_and(|word| word & self.mask != 0)
    }

    fn set(self, bits: &mut Bits, value: bool) {
        if let Some(word) = bits.get_mut(self.word) {
            *word = if value { *word | self.mask } else { *word & !self.mask };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::virtio::driver::for_seeds;

    const M: u32 = 0;
    const S: u32 = 1;
    const ENABLE_S: u32 = 0x2080;
    const THRESHOLD_S: u32 = 0x20_1000;
    const CLAIM_M: u32 = 0x20_0004;
    const CLAIM_S: u32 = 0x20_1004;

    /// All sources enabled for S with priority 1.
    fn plic() -> Plic {
        let mut plic = Plic::new(95);
        (1..96).for_each(|source| plic.write(4 * source, 1));
        (0..3).for_each(|word| plic.write(ENABLE_S + 4 * word, u32::MAX));
        plic
    }

    #[test]
    fn nothing_interrupts_after_reset() {
        let mut plic = Plic::new(95);
        plic.set_level(10, true);
        assert!(!plic.pending(M) && !plic.pending(S));
        assert_eq!(plic.read(CLAIM_S), 0);
    }

    #[test]
    fn a_high_line_is_pending_and_interrupts() {
        let mut plic = plic();
        plic.set_level(10, true);
        assert_eq!(plic.read(0x1000), 1 << 10);
        assert!(plic.pending(S));
    }

    #[test]
    fn contexts_are_enabled_separately() {
        let mut plic = plic();
        plic.set_level(10, true);
        assert!(!plic.pending(M));
        assert_eq!(plic.read(CLAIM_M), 0);
    }

    #[test]
    fn claim_returns_the_source_and_clears_its_pending_bit() {
        let mut plic = plic();
        plic.set_level(10, true);
        assert_eq!(plic.read(CLAIM_S), 10);
        assert_eq!(plic.read(0x1000), 0);
        assert!(!plic.pending(S));
    }

    #[test]
    fn a_claimed_source_does_not_become_pending_before_completion() {
        let mut plic = plic();
        plic.set_level(10, true);
        plic.read(CLAIM_S);
        plic.set_level(10, false);
        plic.set_level(10, true);
        assert!(!plic.pending(S));
    }

    #[test]
    fn a_line_still_high_is_pending_again_at_completion() {
        let mut plic = plic();
        plic.set_level(10, true);
        plic.read(CLAIM_S);
        plic.write(CLAIM_S, 10);
        assert!(plic.pending(S));
    }

    #[test]
    fn a_line_low_at_completion_is_not_pending() {
        let mut plic = plic();
        plic.set_level(10, true);
        plic.read(CLAIM_S);
        plic.set_level(10, false);
        plic.write(CLAIM_S, 10);
        assert!(!plic.pending(S));
    }

    #[test]
    fn a_request_outlives_its_line() {
        let mut plic = plic();
        plic.set_level(10, true);
        plic.set_level(10, false);
        assert_eq!(plic.read(CLAIM_S), 10);
    }

    #[test]
    fn completion_of_a_disabled_source_is_ignored() {
        let mut plic = plic();
        plic.set_level(10, true);
        plic.read(CLAIM_S);
        plic.write(ENABLE_S, 0);
        plic.write(CLAIM_S, 10);
        plic.write(ENABLE_S, u32::MAX);
        assert!(!plic.pending(S));
    }

    #[test]
    fn completion_of_a_source_that_was_not_claimed_is_ignored() {
        let mut plic = plic();
        let before = plic.clone();
        plic.write(CLAIM_S, 10);
        plic.write(CLAIM_S, u32::MAX);
        assert_eq!(plic, before);
    }

    #[test]
    fn the_highest_priority_is_claimed_first() {
        let mut plic = plic();
        plic.write(4 * 40, 5);
        [3, 40, 90].into_iter().for_each(|source| plic.set_level(source, true));
        assert_eq!(plic.read(CLAIM_S), 40);
    }

    #[test]
    fn the_lowest_source_wins_a_tie() {
        let mut plic = plic();
        [90, 40, 41].into_iter().for_each(|source| plic.set_level(source, true));
        assert_eq!(plic.read(CLAIM_S), 40);
    }

    #[test]
    fn priority_zero_never_interrupts() {
        let mut plic = plic();
        plic.write(4 * 10, 0);
        plic.set_level(10, true);
        assert!(!plic.pending(S));
        assert_eq!(plic.read(CLAIM_S), 0);
    }

    #[test]
    fn priorities_up_to_the_threshold_do_not_interrupt() {
        let mut plic = plic();
        plic.set_level(10, true);
        plic.write(THRESHOLD_S, 1);
        assert!(!plic.pending(S));
        plic.write(4 * 10, 2);
        assert!(plic.pending(S));
    }

    #[test]
    fn the_threshold_does_not_matter_for_a_claim() {
        let mut plic = plic();
        plic.set_level(10, true);
        plic.write(THRESHOLD_S, 7);
        assert_eq!(plic.read(CLAIM_S), 10);
    }

    #[test]
    fn priority_and_threshold_keep_three_bits() {
        let mut plic = plic();
        plic.write(4 * 10, 0xffff_fffe);
        plic.write(THRESHOLD_S, 0xffff_fffd);
        assert_eq!((plic.read(4 * 10), plic.read(THRESHOLD_S)), (6, 5));
    }

    #[test]
    fn source_zero_does_not_exist() {
        let mut plic = plic();
        plic.write(0, 7);
        plic.set_level(0, true);
        assert_eq!((plic.read(0), plic.read(0x1000)), (0, 0));
        assert_eq!(plic.read(ENABLE_S) & 1, 0);
    }

    #[test]
    fn sources_past_the_last_do_not_exist() {
        let mut plic = Plic::new(31);
        plic.write(4 * 32, 7);
        plic.write(ENABLE_S + 4, u32::MAX);
        plic.set_level(32, true);
        assert_eq!(plic.read(4 * 32), 0);
        assert_eq!(plic.read(ENABLE_S + 4), 0);
        assert_eq!(plic.read(0x1004), 0);
        plic.write(ENABLE_S, u32::MAX);
        assert_eq!(plic.read(ENABLE_S), 0xffff_fffe);
    }

    #[test]
    fn the_last_source_works() {
        let mut plic = plic();
        plic.set_level(95, true);
        assert_eq!(plic.read(CLAIM_S), 95);
    }

    #[test]
    fn pending_bits_are_read_only() {
        let mut plic = plic();
        plic.write(0x1000, u32::MAX);
        assert_eq!(plic.read(0x1000), 0);
    }

    #[test]
    fn unmapped_and_unaligned_offsets_read_zero_and_ignore_writes() {
        let mut plic = plic();
        let before = plic.clone();
        for offset in [0x100c, 0x208c, 0x2100, 0x20_0008, 0x20_2000, 0x5f_fffc, 0x2081, u32::MAX] {
            plic.write(offset, u32::MAX);
            assert_eq!(plic.read(offset), 0);
        }
        assert_eq!(plic, before);
    }

    #[test]
    fn a_context_that_does_not_exist_is_never_interrupted() {
        let mut plic = plic();
        plic.set_level(10, true);
        assert!(!plic.pending(2) && !plic.pending(u32::MAX));
    }

    /// The specification's gateway and core, source by source and without bit maps.
    #[derive(Clone, Copy, Default)]
    struct Source {
        level: bool,
        pending: bool,
        claimed: bool,
        enabled: [bool; 2],
        priority: u32,
    }

    #[test]
    fn behaves_like_a_plain_model() {
        for_seeds(0, 100, |rng| {
            let mut plic = Plic::new(40);
            let mut model = [Source::default(); 128];
            let mut thresholds = [0; 2];
            for _ in 0..400 {
                let source = rng.below(128);
                let context = rng.below(2);
                let c = context as usize;
                let of_context = 0x20_0000 + 0x1000 * context;
                let exists = (1..=40).contains(&source);
                let state = &mut model[source as usize];
                let best = |model: &[Source; 128]| {
                    let ready = |s: &&Source| s.pending && s.enabled[c] && s.priority != 0;
                    let top = model.iter().filter(ready).map(|s| s.priority).max()?;
                    let at = model.iter().position(|s| ready(&s) && s.priority == top)?;
                    Some((at, top))
                };
                match rng.below(6) {
                    0 | 1 => {
                        let level = rng.one_in(2);
                        plic.set_level(source, level);
                        state.level = level && exists;
                        state.pending |= state.level && !state.claimed;
                    }
                    2 => {
                        let value = rng.next_u32();
                        plic.write(4 * source, value);
                        state.priority = if exists { value % 8 } else { 0 };
                    }
                    3 => {
                        let (word, bits) = (rng.below(4), rng.next_u32());
                        plic.write(0x2000 + 0x80 * context + 4 * word, bits);
                        for bit in 0..32 {
                            let source = word * 32 + bit;
                            model[source as usize].enabled[c] =
                                (1..=40).contains(&source) && bits & 1 << bit != 0;
                        }
                    }
                    4 => {
                        let claimed = best(&model).map_or(0, |(at, _)| at);
                        assert_eq!(plic.read(of_context + 4), claimed as u32);
                        if claimed != 0 {
                            model[claimed].pending = false;
                            model[claimed].claimed = true;
                        }
                    }
                    _ if rng.one_in(4) => {
                        thresholds[c] = rng.below(8);
                        plic.write(of_context, thresholds[c]);
                    }
                    _ => {
                        plic.write(of_context + 4, source);
                        if state.claimed && state.enabled[c] {
                            state.claimed = false;
                            state.pending = state.level;
                        }
                    }
                }
                let interrupted = best(&model).is_some_and(|(_, top)| top > thresholds[c]);
                assert_eq!(plic.pending(context), interrupted);
            }
        });
    }

    #[test]
    fn no_register_access_panics() {
        for_seeds(1000, 50, |rng| {
            let mut plic = Plic::new(rng.below(200));
            for _ in 0..500 {
                let offset = rng.next_u32() >> rng.below(32);
                plic.write(offset, rng.next_u32());
                plic.read(offset);
                plic.set_level(rng.next_u32() >> rng.below(32), rng.one_in(2));
                plic.pending(rng.below(4));
            }
        });
    }
}
