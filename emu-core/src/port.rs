//! What a VM exchanges with the host: console bytes and packets, which are Ethernet frames.
//!
//! Output must not be lost, and guest-visible state must not depend on how fast the host drains it.
//! So the core neither waits nor drops: when a port has no room, the VM stops with
//! [`crate::abi::ExitCode::Stalled`] and runs again once the port has room.

/// Largest packet a VM may send or receive: an Ethernet frame without its check sequence, in bytes.
pub const PACKET_MAX: u32 = 1518;

/// The state of a hart after an instruction that ended the instruction loop. Lanes of a warp
/// compare it to decide whether they have reconverged.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Instructions retired since reset.
    pub retired: u64,
    /// Whether the hart has just executed an ECALL in U-mode. VMs that run the same program make
    /// the same system calls in the same order, whereas page faults and interrupts differ between
    /// them.
    pub call: bool,
    /// Whether the hart waits for an interrupt (WFI).
    pub waits: bool,
    /// Whether the hart is in U-mode and stays there, because the instruction did not trap.
    pub user: bool,
    /// Stack pointer, `x2`.
    pub sp: u32,
    /// Program counter.
    pub pc: u32,
}

/// One VM's connection to the host.
pub trait Port {
    /// Returns how many console bytes from the guest the port has room for.
    fn console_room(&self) -> u32;
    /// Takes one console byte from the guest; `false` when there is no room.
    fn console_put(&mut self, byte: u8) -> bool;
    /// Takes the next console byte for the guest; `None` when there is none.
    fn console_get(&mut self) -> Option<u8>;

    /// Begins sending a packet of `len` bytes; `false` when the port has no room for it.
    fn net_tx_begin(&mut self, len: u32) -> bool;
    /// Writes `bytes` at byte `at` of the packet that [`Port::net_tx_begin`] began.
    fn net_tx_write(&mut self, at: u32, bytes: &[u8]);
    /// Sends the packet that [`Port::net_tx_begin`] began.
    fn net_tx_end(&mut self);

    /// Returns the length of the next packet for the guest; `None` when there is none.
    fn net_rx_len(&mut self) -> Option<u32>;
    /// Copies from byte `at` of the next packet for the guest, without removing it.
    fn net_rx_read(&mut self, at: u32, bytes: &mut [u8]);
    /// Removes the next packet for the guest.
    fn net_rx_end(&mut self);

    /// Sets the instruction count that output from now on is recorded with. It is the number of
    /// instructions retired before the one that produces the output.
    #[inline(always)]
    fn at(&mut self, _retired: u64) {}

    /// Returns whether the VM is the only one in its warp. Always true on a CPU.
    #[inline(always)]
    fn alone(&self) -> bool {
        true
    }

    /// Returns the mask of the lanes that this lane last converged with, or 0 when checking for
    /// convergence does not pay.
    #[inline(always)]
    fn company(&self) -> u32 {
        0
    }

    /// Returns whether the lanes of the mask have diverged, so that not all of them execute this
    /// together.
    #[inline(always)]
    fn parted(_company: u32) -> bool {
        false
    }

    /// Decides, when a function returns while the warp is diverged, whether this lane keeps
    /// running. Returns true if it does, because its `sp` and `pc` have not yet reached the place
    /// where other lanes wait for it.
    #[inline(always)]
    fn goes_on(&self, _sp: u32, _pc: u32) -> bool {
        true
    }

    /// Returns whether the lanes should try to reconverge at the next place where that is cheap,
    /// because the warp is diverged or the launch's time is over.
    #[inline(always)]
    fn would_meet(&self) -> bool {
        false
    }

    /// Offers to reconverge the warp, after an instruction that ended the instruction loop. Returns
    /// true if the run must end here, so that the lane can wait for the other lanes.
    #[inline(always)]
    fn meet(&mut self, _place: Place) -> bool {
        false
    }
}

/// A port that drops all output and has no input.
#[derive(Debug, Default)]
pub struct NullPort;

impl Port for NullPort {
    fn console_room(&self) -> u32 {
        u32::MAX
    }
    fn console_put(&mut self, _: u8) -> bool {
        true
    }
    fn console_get(&mut self) -> Option<u8> {
        None
    }
    fn net_tx_begin(&mut self, _: u32) -> bool {
        true
    }
    fn net_tx_write(&mut self, _: u32, _: &[u8]) {}
    fn net_tx_end(&mut self) {}
    fn net_rx_len(&mut self) -> Option<u32> {
        None
    }
    fn net_rx_read(&mut self, _: u32, _: &mut [u8]) {}
    fn net_rx_end(&mut self) {}
}
