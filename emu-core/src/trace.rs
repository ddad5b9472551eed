//! Traces of execution, which cost nothing in a build that does not use them.

/// A receiver of what each instruction did, such as a commit log. Its methods are called in program
/// order. Code that is compiled for [`NoTrace`] contains no call of them.
pub trait Trace {
    /// Whether the trace is used. Guards code that computes something only for the trace.
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
    /// A CSR was written by a CSR instruction, or changed by a return from a trap. A CSR that is a
    /// view of another one is reported as that.
    #[inline(always)]
    fn csr(&mut self, _number: u32, _value: u32) {}
    /// The instruction at `pc` retired. `privilege` is the mode it ran in.
    #[inline(always)]
    fn retire(&mut self, _pc: u32, _insn: u32, _privilege: u32) {}
    /// A trap was taken at `pc`.
    #[inline(always)]
    fn trap(&mut self, _pc: u32, _cause: u32, _tval: u32) {}
}

/// A trace that records nothing.
#[derive(Debug, Default)]
pub struct NoTrace;

impl Trace for NoTrace {
    const ENABLED: bool = false;
}
