//! What a VM exchanges with the outside: console bytes and network frames.
//!
//! The core never waits. A port that has no room says so, and the VM stops until it has
//! ([`crate::abi::ExitCode::Stalled`]), so that nothing is lost and guest-visible state does not
//! depend on how fast the host drains.

/// Largest Ethernet frame a VM may send or receive, without the frame check sequence, in bytes.
pub const FRAME_MAX: u32 = 1518;

/// Where a hart is when an instruction has ended the loop.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Instructions retired since reset.
    pub retired: u64,
    /// It is at a program's system call. VMs that run alike come to these one by one and in the same
    /// order, which they do not to page faults and interrupts.
    pub call: bool,
    /// It waits for an interrupt.
    pub waits: bool,
    /// It is in U-mode and goes on there.
    pub user: bool,
    /// `sp`
    pub sp: u32,
    /// `pc`
    pub pc: u32,
}

/// One VM's connection to the host.
pub trait Port {
    /// How many console bytes from the guest there is room for.
    fn console_room(&self) -> u32;
    /// Takes one console byte from the guest; `false` when there is no room.
    fn console_put(&mut self, byte: u8) -> bool;
    /// The next console byte for the guest, if any.
    fn console_get(&mut self) -> Option<u8>;

    /// Makes room for a frame of `len` bytes from the guest; `false` when there is none.
    fn net_tx_begin(&mut self, len: u32) -> bool;
    /// Fills the frame from byte `at`.
    fn net_tx_write(&mut self, at: u32, bytes: &[u8]);
    /// Publishes the frame.
    fn net_tx_end(&mut self);

    /// Length of the next frame for the guest, if any.
    fn net_rx_len(&mut self) -> Option<u32>;
    /// Copies from byte `at` of that frame.
    fn net_rx_read(&mut self, at: u32, bytes: &mut [u8]);
    /// Drops that frame.
    fn net_rx_end(&mut self);

    /// The hart has retired so many instructions, and what follows on this port comes from the
    /// next one.
    #[inline(always)]
    fn at(&mut self, _retired: u64) {}

    /// Whether the VM shares its warp with no other.
    #[inline(always)]
    fn alone(&self) -> bool {
        true
    }

    /// Lanes of a warp that came to where they are together, as far as that is worth a look.
    #[inline(always)]
    fn company(&self) -> u32 {
        0
    }

    /// Whether some of that company is elsewhere.
    #[inline(always)]
    fn parted(_company: u32) -> bool {
        false
    }

    /// Some are, and the hart is about to return to `pc` with this `sp`. Answers whether it goes on
    /// alone, as it has not come to where others wait.
    #[inline(always)]
    fn goes_on(&self, _sp: u32, _pc: u32) -> bool {
        true
    }

    /// Whether there is a reason to meet where it costs little: some of those that share the VM's
    /// warp are elsewhere, or the time that they have is over.
    #[inline(always)]
    fn would_meet(&self) -> bool {
        false
    }

    /// An instruction has ended the loop. Answers whether the run ends, so that VMs that share a
    /// warp can wait for each other.
    #[inline(always)]
    fn meet(&mut self, _place: Place) -> bool {
        false
    }
}

/// A port to nowhere: output is dropped and no input comes.
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
