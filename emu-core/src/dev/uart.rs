//! 16550A UART, as Linux's 8250 driver and OpenSBI use it.
//!
//! The guest must not be able to observe how fast the host drains output. So the line is infinitely
//! fast: the transmitter is always empty, and if the host has no room for the byte of a store to
//! THR, the store does not happen yet ([`Trap::Stall`]) and is repeated later. Input waits in the
//! port until the receive FIFO has room, so it cannot overrun except in loopback. Baud rate and
//! line format are stored and have no effect.

use crate::port::Port;
use crate::trap::Trap;

const FIFO_SIZE: u8 = 16;
/// The receiver holds one byte while the FIFOs are off.
const NO_FIFO_SIZE: u8 = 1;

/// Register offsets.
mod offset {
    /// RBR, THR; DLL with DLAB.
    pub const DATA: u32 = 0;
    /// IER; DLM with DLAB.
    pub const IER: u32 = 1;
    /// IIR on loads, FCR on stores.
    pub const IIR_FCR: u32 = 2;
    pub const LCR: u32 = 3;
    pub const MCR: u32 = 4;
    pub const LSR: u32 = 5;
    pub const MSR: u32 = 6;
    pub const SCR: u32 = 7;
}

/// Interrupt enable register.
mod ier {
    /// Received data available, and its time-out.
    pub const ERBFI: u8 = 1 << 0;
    /// Transmitter holding register empty.
    pub const ETBEI: u8 = 1 << 1;
    /// Receiver line status.
    pub const ELSI: u8 = 1 << 2;
    /// Modem status.
    pub const EDSSI: u8 = 1 << 3;
    pub const MASK: u8 = ERBFI | ETBEI | ELSI | EDSSI;
}

/// Interrupt identification register: the sources in falling priority.
mod iir {
    pub const RECEIVER_LINE_STATUS: u8 = 0b0110;
    pub const RECEIVED_DATA: u8 = 0b0100;
    pub const CHARACTER_TIMEOUT: u8 = 0b1100;
    pub const THR_EMPTY: u8 = 0b0010;
    pub const MODEM_STATUS: u8 = 0b0000;
    pub const NONE: u8 = 0b0001;
    pub const FIFOS_ENABLED: u8 = 0b1100_0000;
}

/// FIFO control register.
mod fcr {
    pub const FIFO_ENABLE: u8 = 1 << 0;
    pub const RCVR_RESET: u8 = 1 << 1;
    pub const TRIGGER_SHIFT: u8 = 6;
    /// The bits that are stored. The reset bits act once and are not.
    pub const MASK: u8 = FIFO_ENABLE | 0b11 << TRIGGER_SHIFT;
    /// Bytes in the receive FIFO that raise "received data available".
    pub const TRIGGER_LEVELS: [u8; 4] = [1, 4, 8, 14];
}

/// Line control register.
mod lcr {
    /// Divisor latch access bit.
    pub const DLAB: u8 = 1 << 7;
}

/// Modem control register.
mod mcr {
    pub const DTR: u8 = 1 << 0;
    pub const RTS: u8 = 1 << 1;
    pub const OUT1: u8 = 1 << 2;
    pub const OUT2: u8 = 1 << 3;
    pub const LOOP: u8 = 1 << 4;
    pub const MASK: u8 = DTR | RTS | OUT1 | OUT2 | LOOP;
}

/// Line status register.
mod lsr {
    /// Data ready.
    pub const DR: u8 = 1 << 0;
    /// Overrun error.
    pub const OE: u8 = 1 << 1;
    /// Transmitter holding register empty.
    pub const THRE: u8 = 1 << 5;
    /// Transmitter empty.
    pub const TEMT: u8 = 1 << 6;
}

/// Modem status register.
mod msr {
    pub const DCTS: u8 = 1 << 0;
    pub const DDSR: u8 = 1 << 1;
    /// Trailing edge of RI.
    pub const TERI: u8 = 1 << 2;
    pub const DDCD: u8 = 1 << 3;
    pub const CTS: u8 = 1 << 4;
    pub const DSR: u8 = 1 << 5;
    pub const RI: u8 = 1 << 6;
    pub const DCD: u8 = 1 << 7;
    pub const DELTAS: u8 = DCTS | DDSR | TERI | DDCD;
    /// Distance from a line's bit to its delta bit.
    pub const DELTA_SHIFT: u8 = 4;
    /// The host's end is always connected and ready.
    pub const CONNECTED: u8 = CTS | DSR | DCD;
}

/// Registers by the datasheet's names.
#[derive(Clone, Copy)]
enum Register {
    /// Receiver buffer, loads only.
    Rbr,
    /// Transmitter holding, stores only.
    Thr,
    /// Interrupt enable.
    Ier,
    /// Interrupt identification, loads only.
    Iir,
    /// FIFO control, stores only.
    Fcr,
    /// Line control.
    Lcr,
    /// Modem control.
    Mcr,
    /// Line status, loads only.
    Lsr,
    /// Modem status, loads only.
    Msr,
    /// Scratch.
    Scr,
    /// Divisor latch, low byte.
    Dll,
    /// Divisor latch, high byte.
    Dlm,
}

impl Register {
    const fn for_read(offset: u32, dlab: bool) -> Option<Self> {
        match offset {
            offset::DATA if dlab => Some(Self::Dll),
            offset::DATA => Some(Self::Rbr),
            offset::IER if dlab => Some(Self::Dlm),
            offset::IER => Some(Self::Ier),
            offset::IIR_FCR => Some(Self::Iir),
            offset::LCR => Some(Self::Lcr),
            offset::MCR => Some(Self::Mcr),
            offset::LSR => Some(Self::Lsr),
            offset::MSR => Some(Self::Msr),
            offset::SCR => Some(Self::Scr),
            _ => None,
        }
    }

    /// Returns the register that a store to `offset` writes. Stores to LSR and MSR are for factory
    /// tests only, so they have no effect here.
    const fn for_write(offset: u32, dlab: bool) -> Option<Self> {
        match offset {
            offset::DATA if dlab => Some(Self::Dll),
            offset::DATA => Some(Self::Thr),
            offset::IER if dlab => Some(Self::Dlm),
            offset::IER => Some(Self::Ier),
            offset::IIR_FCR => Some(Self::Fcr),
            offset::LCR => Some(Self::Lcr),
            offset::MCR => Some(Self::Mcr),
            offset::SCR => Some(Self::Scr),
            _ => None,
        }
    }
}

/// The UART's state.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Uart {
    rx: [u8; FIFO_SIZE as usize],
    rx_head: u8,
    rx_len: u8,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    dll: u8,
    dlm: u8,
    /// LSR's overrun bit.
    overrun: u8,
    /// Non-zero while "transmitter holding register empty" is to be reported.
    thr_empty: u8,
}

state!(Uart { rx, rx_head, rx_len, ier, fcr, lcr, mcr, msr, scr, dll, dlm, overrun, thr_empty });

impl Uart {
    /// The state after master reset.
    pub const RESET: Self = Self {
        rx: [0; FIFO_SIZE as usize],
        rx_head: 0,
        rx_len: 0,
        ier: 0,
        fcr: 0,
        lcr: 0,
        mcr: 0,
        msr: msr::CONNECTED,
        scr: 0,
        dll: 0,
        dlm: 0,
        overrun: 0,
        thr_empty: 0,
    };

    /// Loads from the register at `offset`.
    pub fn read(&mut self, offset: u32, port: &mut impl Port) -> u32 {
        let Some(register) = Register::for_read(offset, self.dlab()) else { return 0 };
        u32::from(match register {
            Register::Rbr => {
                let byte = self.pop();
                self.poll(port);
                byte
            }
            Register::Ier => self.ier,
            Register::Iir => self.read_iir(),
            Register::Lcr => self.lcr,
            Register::Mcr => self.mcr,
            Register::Lsr => self.read_lsr(),
            Register::Msr => self.read_msr(),
            Register::Scr => self.scr,
            Register::Dll => self.dll,
            Register::Dlm => self.dlm,
            Register::Thr | Register::Fcr => 0,
        })
    }

    /// Stores the low byte of `value` to the register at `offset`.
    ///
    /// If it returns [`Trap::Stall`], nothing has changed, and the store must be repeated later.
    pub fn write(&mut self, offset: u32, value: u32, port: &mut impl Port) -> Result<(), Trap> {
        let value = value as u8;
        let Some(register) = Register::for_write(offset, self.dlab()) else { return Ok(()) };
        match register {
            Register::Thr => self.write_thr(value, port)?,
            Register::Ier => self.write_ier(value),
            Register::Fcr => self.write_fcr(value),
            Register::Lcr => self.lcr = value,
            Register::Mcr => self.write_mcr(value),
            Register::Scr => self.scr = value,
            Register::Dll => self.dll = value,
            Register::Dlm => self.dlm = value,
            Register::Rbr | Register::Iir | Register::Lsr | Register::Msr => {}
        }
        Ok(())
    }

    /// Takes input from the port while the receiver has room. Further input stays in the port.
    pub fn poll(&mut self, port: &mut impl Port) {
        if self.mcr & mcr::LOOP != 0 {
            return;
        }
        while self.rx_len < self.rx_size() {
            let Some(byte) = port.console_get() else { return };
            self.push(byte);
        }
    }

    /// Takes a byte of input from the receiver or, if that is empty, from the port. Firmware calls
    /// that read the console use it, so that input stays in order when the guest also has a UART
    /// driver.
    pub fn take(&mut self, port: &mut impl Port) -> Option<u8> {
        if self.rx_len != 0 { Some(self.pop()) } else { port.console_get() }
    }

    /// Whether the receiver has a byte.
    pub(crate) const fn has_input(&self) -> bool {
        self.rx_len != 0
    }

    /// Whether input interrupts.
    pub(crate) const fn input_interrupts(&self) -> bool {
        self.ier & ier::ERBFI != 0
    }

    /// Returns the level of the interrupt line. As in QEMU, OUT2 does not gate it.
    pub const fn irq(&self) -> bool {
        self.interrupt() != iir::NONE
    }

    /// Returns the pending interrupt of highest priority, in IIR's encoding.
    const fn interrupt(&self) -> u8 {
        if self.ier & ier::ELSI != 0 && self.overrun != 0 {
            iir::RECEIVER_LINE_STATUS
        } else if self.ier & ier::ERBFI != 0 && self.rx_len != 0 {
            // The line is infinitely fast, so bytes below the trigger level time out at once.
            if self.rx_len >= self.trigger() { iir::RECEIVED_DATA } else { iir::CHARACTER_TIMEOUT }
        } else if self.ier & ier::ETBEI != 0 && self.thr_empty != 0 {
            iir::THR_EMPTY
        } else if self.ier & ier::EDSSI != 0 && self.msr & msr::DELTAS != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    const fn read_iir(&mut self) -> u8 {
        let interrupt = self.interrupt();
        if interrupt == iir::THR_EMPTY {
            self.thr_empty = 0;
        }
        if self.fifos_enabled() { interrupt | iir::FIFOS_ENABLED } else { interrupt }
    }

    const fn read_lsr(&mut self) -> u8 {
        let ready = if self.rx_len != 0 { lsr::DR } else { 0 };
        let overrun = self.overrun;
        self.overrun = 0;
        ready | overrun | lsr::THRE | lsr::TEMT
    }

    const fn read_msr(&mut self) -> u8 {
        let value = self.msr;
        self.msr &= !msr::DELTAS;
        value
    }

    fn write_thr(&mut self, byte: u8, port: &mut impl Port) -> Result<(), Trap> {
        if self.mcr & mcr::LOOP != 0 {
            self.receive(byte);
        } else if !port.console_put(byte) {
            return Err(Trap::Stall);
        }
        self.thr_empty = 1;
        Ok(())
    }

    const fn write_ier(&mut self, value: u8) {
        let value = value & ier::MASK;
        // Drivers rely on the interrupt that enabling it brings while the transmitter is empty.
        if value & !self.ier & ier::ETBEI != 0 {
            self.thr_empty = 1;
        }
        self.ier = value;
    }

    const fn write_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & fcr::FIFO_ENABLE != 0;
        let reset = value & fcr::FIFO_ENABLE != 0 && value & fcr::RCVR_RESET != 0;
        if toggled || reset {
            self.rx_head = 0;
            self.rx_len = 0;
        }
        // The other bits count only together with FIFO_ENABLE.
        self.fcr = if value & fcr::FIFO_ENABLE != 0 { value & fcr::MASK } else { 0 };
    }

    const fn write_mcr(&mut self, value: u8) {
        self.mcr = value & mcr::MASK;
        let lines = if self.mcr & mcr::LOOP != 0 { looped_lines(self.mcr) } else { msr::CONNECTED };
        let before = self.msr & !msr::DELTAS;
        // RI reports only that it went off, the others every change.
        let changed = (lines ^ before) & (!msr::RI | before);
        self.msr = lines | self.msr & msr::DELTAS | changed >> msr::DELTA_SHIFT;
    }

    /// Receives a byte, even without room for it. A full FIFO then drops the new byte, whereas
    /// without FIFO the new byte overwrites RBR.
    fn receive(&mut self, byte: u8) {
        if self.rx_len >= self.rx_size() {
            self.overrun = lsr::OE;
            if self.fifos_enabled() {
                return;
            }
            self.rx_len = 0;
        }
        self.push(byte);
    }

    fn push(&mut self, byte: u8) {
        let at = self.rx_head.wrapping_add(self.rx_len) % FIFO_SIZE;
        if let Some(slot) = self.rx.get_mut(usize::from(at)) {
            *slot = byte;
            self.rx_len = self.rx_len.saturating_add(1);
        }
    }

    /// Takes the oldest byte; zero when there is none.
    fn pop(&mut self) -> u8 {
        if self.rx_len == 0 {
            return 0;
        }
        let byte = self.rx.get(usize::from(self.rx_head)).copied().unwrap_or(0);
        self.rx_head = self.rx_head.wrapping_add(1) % FIFO_SIZE;
        self.rx_len -= 1;
        byte
    }

    const fn dlab(&self) -> bool {
        self.lcr & lcr::DLAB != 0
    }

    const fn fifos_enabled(&self) -> bool {
        self.fcr & fcr::FIFO_ENABLE != 0
    }

    const fn rx_size(&self) -> u8 {
        if self.fifos_enabled() { FIFO_SIZE } else { NO_FIFO_SIZE }
    }

    /// Bytes that raise "received data available".
    const fn trigger(&self) -> u8 {
        // Two bits index four levels; without FIFOs the bits are zero, which means one byte.
        fcr::TRIGGER_LEVELS[(self.fcr >> fcr::TRIGGER_SHIFT) as usize % fcr::TRIGGER_LEVELS.len()]
    }
}

/// Returns the modem status inputs in loopback, where the modem control outputs drive them.
const fn looped_lines(mcr: u8) -> u8 {
    let mut lines = 0;
    if mcr & mcr::RTS != 0 {
        lines |= msr::CTS;
    }
    if mcr & mcr::DTR != 0 {
        lines |= msr::DSR;
    }
    if mcr & mcr::OUT1 != 0 {
        lines |= msr::RI;
    }
    if mcr & mcr::OUT2 != 0 {
        lines |= msr::DCD;
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::dev::virtio::driver::{MockPort, Prng, for_seeds};

    const RBR: u32 = 0;
    const THR: u32 = 0;
    const DLL: u32 = 0;
    const IER: u32 = 1;
    const DLM: u32 = 1;
    const IIR: u32 = 2;
    const FCR: u32 = 2;
    const LCR: u32 = 3;
    const MCR: u32 = 4;
    const LSR: u32 = 5;
    const MSR: u32 = 6;
    const SCR: u32 = 7;

    const FIFO_ON_TRIGGER_4: u32 = 0x41;

    /// A UART and its host.
    struct Line {
        uart: Uart,
        port: MockPort,
    }

    impl Line {
        fn new() -> Self {
            Self { uart: Uart::RESET, port: MockPort::default() }
        }

        /// FIFOs on with a trigger level of four bytes, all interrupts enabled, THRE seen.
        fn running() -> Self {
            let mut line = Self::new();
            line.write(FCR, FIFO_ON_TRIGGER_4);
            line.write(IER, 0x0f);
            line.read(IIR);
            line
        }

        fn read(&mut self, offset: u32) -> u32 {
            self.uart.read(offset, &mut self.port)
        }

        fn write(&mut self, offset: u32, value: u32) {
            self.uart.write(offset, value, &mut self.port).expect("room");
        }

        fn send(&mut self, bytes: &[u8]) {
            self.port.input.extend(bytes);
            self.uart.poll(&mut self.port);
        }

        fn iir(&mut self) -> u32 {
            self.read(IIR) & 0x0f
        }

        fn lsr_errors(&mut self) -> u32 {
            self.read(LSR) & 0b1_1110
        }
    }

    #[test]
    fn registers_have_their_reset_values() {
        let mut line = Line::new();
        let values: Vec<u32> = (0..8).map(|offset| line.read(offset)).collect();
        assert_eq!(values, [0, 0, 0x01, 0, 0, 0x60, 0xb0, 0]);
        assert!(!line.uart.irq());
    }

    #[test]
    fn offsets_past_scr_read_zero_and_ignore_writes() {
        let mut line = Line::new();
        line.write(8, 0xff);
        assert_eq!(line.read(8), 0);
        assert_eq!(line.uart, Uart::RESET);
    }

    #[test]
    fn thr_goes_to_the_port() {
        let mut line = Line::new();
        line.write(THR, u32::from(b'x'));
        assert_eq!(line.port.output, b"x");
    }

    #[test]
    fn thr_without_room_stalls_and_changes_nothing() {
        let mut line = Line::running();
        line.port.output_room = 0;
        let before = line.uart.clone();
        let result = line.uart.write(THR, u32::from(b'x'), &mut line.port);
        assert_eq!(result, Err(Trap::Stall));
        assert_eq!(line.uart, before);
    }

    #[test]
    fn transmitter_is_always_empty() {
        let mut line = Line::new();
        line.write(THR, 0);
        assert_eq!(line.read(LSR), 0x60);
    }

    #[test]
    fn dlab_switches_data_and_ier_to_the_divisor_latch() {
        let mut line = Line::new();
        line.write(IER, 0x05);
        line.write(LCR, 0x83);
        line.write(DLL, 0x12);
        line.write(DLM, 0x34);
        assert_eq!((line.read(DLL), line.read(DLM)), (0x12, 0x34));
        line.write(LCR, 0x03);
        assert_eq!(line.read(IER), 0x05);
        assert!(line.port.output.is_empty());
    }

    #[test]
    fn scratch_and_lcr_keep_all_bits() {
        let mut line = Line::new();
        line.write(SCR, 0xa5);
        line.write(LCR, 0x7f);
        assert_eq!((line.read(SCR), line.read(LCR)), (0xa5, 0x7f));
    }

    #[test]
    fn ier_keeps_four_bits_and_mcr_five() {
        let mut line = Line::new();
        line.write(IER, 0xff);
        line.write(MCR, 0xff);
        assert_eq!((line.read(IER), line.read(MCR)), (0x0f, 0x1f));
    }

    #[test]
    fn received_bytes_come_in_order() {
        let mut line = Line::running();
        line.send(b"abc");
        let bytes = [line.read(RBR), line.read(RBR), line.read(RBR)];
        assert_eq!(bytes, [97, 98, 99]);
    }

    #[test]
    fn data_ready_follows_the_fifo() {
        let mut line = Line::running();
        line.send(b"a");
        assert_eq!(line.read(LSR) & 1, 1);
        line.read(RBR);
        assert_eq!(line.read(LSR) & 1, 0);
    }

    #[test]
    fn without_fifos_one_byte_is_held_and_the_rest_stays_in_the_port() {
        let mut line = Line::new();
        line.send(b"abc");
        assert_eq!(line.port.input.len(), 2);
    }

    #[test]
    fn input_beyond_the_fifo_stays_in_the_port_and_nothing_overruns() {
        let mut line = Line::running();
        line.send(b"0123456789abcdefgh");
        assert_eq!(line.port.input.len(), 2);
        assert_eq!(line.lsr_errors(), 0);
    }

    #[test]
    fn reading_rbr_refills_the_fifo_from_the_port() {
        let mut line = Line::running();
        line.send(b"0123456789abcdefgh");
        let bytes: Vec<u8> = (0..18).map(|_| line.read(RBR) as u8).collect();
        assert_eq!(bytes, b"0123456789abcdefgh");
        assert_eq!(line.read(LSR) & 1, 0);
    }

    #[test]
    fn rbr_of_an_empty_receiver_reads_zero() {
        let mut line = Line::running();
        line.send(b"a");
        line.read(RBR);
        assert_eq!(line.read(RBR), 0);
    }

    #[test]
    fn iir_shows_whether_fifos_are_enabled() {
        let mut line = Line::new();
        assert_eq!(line.read(IIR) & 0xc0, 0);
        line.write(FCR, 0x01);
        assert_eq!(line.read(IIR) & 0xc0, 0xc0);
    }

    #[test]
    fn fifo_is_not_that_of_a_16750() {
        let mut line = Line::new();
        line.write(FCR, 0x21);
        assert_eq!(line.read(IIR) & 0x20, 0);
    }

    #[test]
    fn byte_below_the_trigger_level_is_a_character_timeout() {
        let mut line = Line::running();
        line.send(b"abc");
        assert_eq!(line.iir(), 0b1100);
    }

    #[test]
    fn bytes_at_the_trigger_level_are_received_data() {
        let mut line = Line::running();
        line.send(b"abcd");
        assert_eq!(line.iir(), 0b0100);
    }

    #[test]
    fn without_fifos_a_byte_is_received_data() {
        let mut line = Line::new();
        line.write(IER, 0x01);
        line.send(b"a");
        assert_eq!(line.iir(), 0b0100);
    }

    #[test]
    fn reading_rbr_ends_the_receive_interrupt() {
        let mut line = Line::running();
        line.send(b"a");
        assert!(line.uart.irq());
        line.read(RBR);
        assert!(!line.uart.irq());
    }

    #[test]
    fn reading_iir_does_not_end_the_receive_interrupt() {
        let mut line = Line::running();
        line.send(b"a");
        line.read(IIR);
        assert!(line.uart.irq());
    }

    #[test]
    fn nothing_interrupts_while_ier_is_zero() {
        let mut line = Line::running();
        line.write(THR, 0);
        line.send(b"a");
        line.write(IER, 0);
        assert!(!line.uart.irq());
        assert_eq!(line.iir(), 0b0001);
    }

    #[test]
    fn thre_interrupts_when_etbei_is_set() {
        let mut line = Line::new();
        line.write(IER, 0x02);
        assert!(line.uart.irq());
        assert_eq!(line.iir(), 0b0010);
    }

    #[test]
    fn reading_iir_ends_the_thre_interrupt() {
        let mut line = Line::new();
        line.write(IER, 0x02);
        line.read(IIR);
        assert!(!line.uart.irq());
        assert_eq!(line.iir(), 0b0001);
    }

    #[test]
    fn thre_interrupts_again_after_a_byte_was_sent() {
        let mut line = Line::new();
        line.write(IER, 0x02);
        line.read(IIR);
        line.write(THR, 0);
        assert_eq!(line.iir(), 0b0010);
    }

    #[test]
    fn thre_interrupts_again_when_etbei_is_toggled() {
        let mut line = Line::new();
        line.write(IER, 0x02);
        line.read(IIR);
        line.write(IER, 0x00);
        line.write(IER, 0x02);
        assert_eq!(line.iir(), 0b0010);
    }

    #[test]
    fn thre_does_not_interrupt_again_when_etbei_stays_set() {
        let mut line = Line::new();
        line.write(IER, 0x02);
        line.read(IIR);
        line.write(IER, 0x03);
        assert!(!line.uart.irq());
    }

    #[test]
    fn reading_iir_keeps_thre_when_it_was_not_the_source() {
        let mut line = Line::new();
        line.send(b"a");
        line.write(IER, 0x03);
        assert_eq!(line.iir(), 0b0100);
        line.read(RBR);
        assert_eq!(line.iir(), 0b0010);
    }

    #[test]
    fn interrupts_have_the_priority_of_the_datasheet() {
        let mut line = Line::running();
        line.write(MCR, 0x10);
        (0..17).for_each(|_| line.write(THR, 0));
        assert_eq!(line.iir(), 0b0110);
        line.read(LSR);
        assert_eq!(line.iir(), 0b0100);
        line.write(FCR, FIFO_ON_TRIGGER_4 | 0x02);
        assert_eq!(line.iir(), 0b0010);
        assert_eq!(line.iir(), 0b0000);
        line.read(MSR);
        assert_eq!(line.iir(), 0b0001);
    }

    #[test]
    fn fcr_receiver_reset_empties_the_fifo() {
        let mut line = Line::running();
        line.send(b"abc");
        line.write(FCR, FIFO_ON_TRIGGER_4 | 0x02);
        assert_eq!(line.read(LSR) & 1, 0);
    }

    #[test]
    fn turning_fifos_off_empties_them() {
        let mut line = Line::running();
        line.send(b"abc");
        line.write(FCR, 0);
        assert_eq!(line.read(LSR) & 1, 0);
    }

    #[test]
    fn fcr_bits_count_only_with_fifo_enable() {
        let mut line = Line::new();
        line.send(b"a");
        line.write(FCR, 0xc6);
        assert_eq!(line.read(LSR) & 1, 1);
        assert_eq!(line.read(IIR) & 0xc0, 0);
    }

    #[test]
    fn loopback_returns_what_is_sent_and_tells_no_one() {
        let mut line = Line::running();
        line.write(MCR, 0x10);
        line.write(THR, 0x5a);
        assert_eq!(line.read(RBR), 0x5a);
        assert!(line.port.output.is_empty());
    }

    #[test]
    fn loopback_leaves_input_in_the_port() {
        let mut line = Line::running();
        line.write(MCR, 0x10);
        line.send(b"a");
        assert_eq!(line.read(LSR) & 1, 0);
        line.write(MCR, 0x00);
        line.uart.poll(&mut line.port);
        assert_eq!(line.read(RBR), u32::from(b'a'));
    }

    #[test]
    fn loopback_connects_modem_outputs_to_inputs() {
        let mut line = Line::new();
        line.write(MCR, 0x10);
        let none = line.read(MSR) & 0xf0;
        line.write(MCR, 0x11);
        let dtr = line.read(MSR) & 0xf0;
        line.write(MCR, 0x12);
        let rts = line.read(MSR) & 0xf0;
        line.write(MCR, 0x14);
        let out1 = line.read(MSR) & 0xf0;
        line.write(MCR, 0x18);
        let out2 = line.read(MSR) & 0xf0;
        assert_eq!([none, dtr, rts, out1, out2], [0, 0x20, 0x10, 0x40, 0x80]);
    }

    #[test]
    fn linux_finds_a_uart_by_its_loopback() {
        let mut line = Line::new();
        line.write(MCR, 0x10 | 0x0a);
        assert_eq!(line.read(MSR) & 0xf0, 0x90);
    }

    #[test]
    fn msr_reports_changed_lines_once() {
        let mut line = Line::new();
        line.write(MCR, 0x10);
        assert_eq!(line.read(MSR), 0x0b);
        assert_eq!(line.read(MSR), 0x00);
    }

    #[test]
    fn msr_reports_only_the_trailing_edge_of_ri() {
        let mut line = Line::new();
        line.write(MCR, 0x10);
        line.read(MSR);
        line.write(MCR, 0x14);
        assert_eq!(line.read(MSR), 0x40);
        line.write(MCR, 0x10);
        assert_eq!(line.read(MSR), 0x04);
    }

    #[test]
    fn fifo_overrun_keeps_what_was_received() {
        let mut line = Line::running();
        line.write(MCR, 0x10);
        (0..17).for_each(|byte| line.write(THR, byte));
        assert_eq!(line.lsr_errors(), 0x02);
        assert_eq!(line.lsr_errors(), 0);
        let bytes: Vec<u32> = (0..16).map(|_| line.read(RBR)).collect();
        assert_eq!(bytes, (0..16).collect::<Vec<u32>>());
    }

    #[test]
    fn rbr_overrun_replaces_what_was_received() {
        let mut line = Line::new();
        line.write(MCR, 0x10);
        line.write(THR, 1);
        line.write(THR, 2);
        assert_eq!(line.lsr_errors(), 0x02);
        assert_eq!(line.read(RBR), 2);
    }

    #[test]
    fn lsr_and_msr_ignore_writes() {
        let mut line = Line::new();
        line.write(LSR, 0xff);
        line.write(MSR, 0xff);
        assert_eq!(line.uart, Uart::RESET);
    }

    /// Interrupt events are of no interest: levels are compared by IIR elsewhere.
    struct NoTrigger;
    impl vm_superio::Trigger for NoTrigger {
        type E = std::io::Error;
        fn trigger(&self) -> Result<(), Self::E> {
            Ok(())
        }
    }

    /// vm-superio has a larger FIFO that cannot be turned off, keeps no deltas and knows no
    /// overrun, so only what both have is compared.
    fn compare_with_vm_superio(rng: &mut Prng) {
        let mut line = Line::new();
        line.write(FCR, 0x01);
        let mut oracle = vm_superio::Serial::new(NoTrigger, Vec::new());
        for (offset, value) in [(LCR, 0x83), (DLL, 0x0c), (DLM, 0), (LCR, 3)] {
            line.write(offset, value);
            oracle.write(offset as u8, value as u8).expect("no trigger fails");
        }
        for _ in 0..200 {
            let in_loop = line.uart.mcr & mcr::LOOP != 0;
            match rng.below(8) {
                0 if !in_loop => {
                    let byte = rng.next_u32() as u8;
                    line.send(&[byte]);
                    oracle.enqueue_raw_bytes(&[byte]).expect("room");
                }
                1 => {
                    let offset = rng.pick(&[IER, LCR, MCR, SCR]);
                    let value = rng.next_u32() as u8 & rng.pick(&[0x7f, 0xff]);
                    line.write(offset, value.into());
                    oracle.write(offset as u8, value).expect("no trigger fails");
                }
                2 | 3 => {
                    let byte = rng.next_u32() as u8;
                    line.write(THR, byte.into());
                    oracle.write(THR as u8, byte).expect("no trigger fails");
                }
                4 | 5 => assert_eq!(line.read(RBR), u32::from(oracle.read(RBR as u8)), "data"),
                6 => {
                    let offset = rng.pick(&[LCR, SCR, LSR]);
                    assert_eq!(line.read(offset), u32::from(oracle.read(offset as u8)));
                }
                _ => assert_eq!(line.read(MSR) & 0xf0, u32::from(oracle.read(MSR as u8)) & 0xf0),
            }
            if line.uart.rx_len == FIFO_SIZE {
                break;
            }
        }
        assert_eq!(&line.port.output, oracle.writer());
    }

    #[test]
    fn behaves_like_vm_superio_where_both_are_alike() {
        for_seeds(0, 200, compare_with_vm_superio);
    }

    #[test]
    fn input_arrives_complete_and_in_order_whatever_the_driver_does_in_between() {
        for_seeds(1000, 200, |rng| {
            let mut line = Line::new();
            let (mut sent, mut received) = (0u8, 0u8);
            for _ in 0..500 {
                match rng.below(4) {
                    0 => {
                        line.send(&[sent]);
                        sent = sent.wrapping_add(1);
                    }
                    1 if line.read(LSR) & 1 != 0 => {
                        assert_eq!(line.read(RBR), u32::from(received));
                        received = received.wrapping_add(1);
                    }
                    2 => line.write(rng.pick(&[THR, IER, MCR, SCR]), rng.next_u32() & 0x0f),
                    _ => _ = line.read(rng.pick(&[IER, IIR, LCR, MCR, LSR, MSR, SCR])),
                }
            }
        });
    }

    #[test]
    fn no_sequence_of_operations_panics_or_breaks_the_fifo() {
        for_seeds(2000, 200, |rng| {
            let mut line = Line::new();
            for _ in 0..500 {
                match rng.below(4) {
                    0 => line.send(&[0; 20][..rng.below(20) as usize]),
                    1 => _ = line.read(rng.below(10)),
                    2 => line.port.output_room = rng.below(3),
                    _ => _ = line.uart.write(rng.below(10), rng.next_u32(), &mut line.port),
                }
                assert!(line.uart.rx_len <= line.uart.rx_size() && line.uart.rx_head < FIFO_SIZE);
                assert_eq!(line.uart.irq(), line.uart.clone().read_iir() & 0x0f != iir::NONE);
            }
        });
    }
}
