//! 16550A UART, as Linux's 8250 driver and OpenSBI use it.
//!
//! Lines are infinitely fast: the transmitter is always empty, and a store to THR that the host
//! has no room for does not happen yet ([`Trap::Stall`]), so the guest cannot see how fast the
//! host drains. Input waits in the port until the receive FIFO has room, so it cannot overrun
//! except in loopback. Baud rate and line format are kept and have no effect.

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
    /// What is kept; the reset bits act once.
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

    /// LSR and MSR can be written for factory tests only; such stores do nothing.
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

impl Uart {
    /// After master reset.
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

    /// A load from `offset`.
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

    /// A store of the low byte of `value` to `offset`.
    ///
    /// [`Trap::Stall`] leaves everything as it was; the store is to be repeated.
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

    /// Takes input from the port while the receiver has room. The rest stays in the port.
    pub fn poll(&mut self, port: &mut impl Port) {
        if self.mcr & mcr::LOOP != 0 {
            return;
        }
        while self.rx_len < self.rx_size() {
            let Some(byte) = port.console_get() else { return };
            self.push(byte);
        }
    }

    /// Level of the interrupt line. As in QEMU, OUT2 does not gate it.
    pub const fn irq(&self) -> bool {
        self.interrupt() != iir::NONE
    }

    /// The interrupt of highest priority, as IIR shows it.
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

    /// A byte arrives whether there is room or not: the FIFO keeps what it has, RBR alone is
    /// overwritten.
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

    /// The oldest byte; zero when there is none.
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

/// In loopback the modem control outputs drive the modem status inputs.
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
