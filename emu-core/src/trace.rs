//! Watching a run, at no cost when nobody watches.

/// What an instruction did, for a commit log. Methods are called in program order; a build with
/// [`NoTrace`] contains none of them.
pub trait Trace {
    /// Whether anybody watches; guards what would cost something to find out.
    const ENABLED: bool = true;

    /// A register was written (never `x0`).
    #[inline(always)]
    fn reg(&mut self, _rd: usize, _value: u32) {}
    /// Memory was read by a load, LR or AMO, at a virtual address.
    #[inline(always)]
    fn load(&mut self, _addr: u32) {}
    /// Memory was written, at a virtual address.
    #[inline(always)]
    fn store(&mut self, _addr: u32, _value: u32, _size: u32) {}
    /// A CSR was written by a CSR instruction.
    #[inline(always)]
    fn csr(&mut self, _number: u32, _value: u32) {}
    /// The instruction at `pc` retired. `privilege` is the mode it ran in.
    #[inline(always)]
    fn retire(&mut self, _pc: u32, _insn: u32, _privilege: u32) {}
    /// A trap was taken at `pc`.
    #[inline(always)]
    fn trap(&mut self, _pc: u32, _cause: u32, _tval: u32) {}
}

/// Watches nothing.
#[derive(Debug, Default)]
pub struct NoTrace;

impl Trace for NoTrace {
    const ENABLED: bool = false;
}
