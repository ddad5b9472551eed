//! Platform-level interrupt controller (RISC-V PLIC specification 1.0).
//!
//! Sources are level-triggered. A gateway hands one request at a time to the core and looks at
//! its line again when a handler completes it.
//!
//! | Offset      | Registers                                        |
//! |-------------|--------------------------------------------------|
//! | `0x00_0000` | priority, a word for each source                 |
//! | `0x00_1000` | pending bits                                     |
//! | `0x00_2000` | enable bits, `0x80` for each context             |
//! | `0x20_0000` | threshold, claim/complete, `0x1000` each context |

/// Words in a bit map of all sources.
const WORDS: usize = 3;
/// Sources there can be, with source 0 that does not exist.
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
#[repr(C)]
pub struct Plic {
    /// Requests not yet claimed.
    pending: Bits,
    enable: [Bits; CONTEXTS],
    /// Requests claimed and not yet complete; never pending at the same time.
    claimed: Bits,
    /// The lines.
    level: Bits,
    priority: [u8; SOURCES],
    threshold: [u8; CONTEXTS],
    /// Highest source number.
    sources: u16,
}

/// A register, by what its offset says.
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

impl Plic {
    /// A controller with sources 1 to `sources` (at most 95), none enabled.
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

    /// Whether `context` is to be interrupted: it has an enabled request above its threshold.
    pub fn pending(&self, context: u32) -> bool {
        let context = context as usize;
        let threshold = self.threshold.get(context).copied().unwrap_or(u8::MAX);
        self.best(context).is_some_and(|(_, priority)| priority > threshold)
    }

    /// A load from `offset`. Reading a claim register claims.
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

    /// A store of `value` to `offset`. Writing a claim register completes.
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

    /// The threshold does not matter for a claim (specification, chapter 7).
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

    /// The enabled request of highest priority and that priority; the lowest source of a tie.
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

/// One source's place in a bit map; out of range it reads as zero.
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
