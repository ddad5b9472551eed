//! The built-in supervisor binary interface (SBI specification 2.0), one hart.

use crate::abi::{Exit, ExitCode, FaultCode, Hart, NO_RESERVATION};
use crate::csr::irq;
use crate::disk::Disk;
use crate::lane::Lane;
use crate::machine::Core;
use crate::mem::{Dma, Ram};
use crate::port::Port;
use crate::trap::Trap;

/// Extension ids.
#[allow(missing_docs)]
pub mod eid {
    pub const LEGACY_SET_TIMER: u32 = 0;
    pub const LEGACY_CONSOLE_PUTCHAR: u32 = 1;
    pub const LEGACY_CONSOLE_GETCHAR: u32 = 2;
    pub const LEGACY_CLEAR_IPI: u32 = 3;
    pub const LEGACY_SEND_IPI: u32 = 4;
    pub const LEGACY_REMOTE_FENCE_I: u32 = 5;
    pub const LEGACY_REMOTE_SFENCE_VMA: u32 = 6;
    pub const LEGACY_REMOTE_SFENCE_VMA_ASID: u32 = 7;
    pub const LEGACY_SHUTDOWN: u32 = 8;
    pub const BASE: u32 = 0x10;
    pub const TIME: u32 = 0x5449_4d45;
    pub const IPI: u32 = 0x0073_5049;
    pub const RFENCE: u32 = 0x5246_4e43;
    pub const HSM: u32 = 0x0048_534d;
    pub const SRST: u32 = 0x5352_5354;
    pub const DBCN: u32 = 0x4442_434e;
}

const SPEC_VERSION: u32 = 2 << 24;
/// Not a registered id: "pxvm".
const IMPL_ID: u32 = 0x7078_766d;
const IMPL_VERSION: u32 = 1;
/// The most bytes that one DBCN call transfers. Callers repeat the call for the remaining bytes.
const DBCN_BYTES_MAX: u32 = 64;

/// Error codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
enum Error {
    NotSupported = -2,
    InvalidParam = -3,
    AlreadyAvailable = -6,
}

type SbiResult = Result<u32, Error>;

/// Argument register `a<n>`.
fn arg(hart: &Hart, n: usize) -> u32 {
    hart.x[10 + (n & 7)]
}

impl<M: Ram, D: Disk, P: Port, L: Lane> Core<'_, M, D, P, L> {
    /// Executes an SBI call, an ECALL from S-mode. `a7` holds the extension, `a6` the function, and
    /// `a0` onwards the arguments. Sets `a0` to the error code and `a1` to the value.
    pub(crate) fn sbi_call(&mut self, hart: &mut Hart) -> Result<(), Trap> {
        let (extension, function) = (arg(hart, 7), arg(hart, 6));
        self.port.at(self.platform.clock.retired);
        if extension <= eid::LEGACY_SHUTDOWN {
            // Legacy calls return a value in a0 and leave a1 unchanged.
            hart.x[10] = self.legacy(hart, extension)?;
            return Ok(());
        }
        let result = match extension {
            eid::BASE => Self::base(hart, function),
            eid::TIME if function == 0 => {
                self.set_timer(hart);
                Ok(0)
            }
            eid::IPI if function == 0 => self.send_ipi(hart),
            eid::RFENCE => self.rfence(hart, function),
            eid::HSM => self.hart_state(hart, function),
            eid::SRST if function == 0 => self.system_reset(hart),
            eid::DBCN => self.debug_console(hart, function)?,
            _ => Err(Error::NotSupported),
        };
        let (error, value) = match result {
            Ok(value) => (0, value),
            Err(error) => (error as i32 as u32, 0),
        };
        hart.x[10] = error;
        hart.x[11] = value;
        Ok(())
    }

    fn legacy(&mut self, hart: &mut Hart, extension: u32) -> Result<u32, Trap> {
        match extension {
            eid::LEGACY_SET_TIMER => self.set_timer(hart),
            eid::LEGACY_CONSOLE_PUTCHAR => self.put(arg(hart, 0) as u8)?,
            eid::LEGACY_CONSOLE_GETCHAR => {
                return Ok(self.platform.dev.uart.take(self.port).map_or(u32::MAX, u32::from));
            }
            eid::LEGACY_CLEAR_IPI => self.platform.csr.set_pending(irq::SSI, false),
            eid::LEGACY_SEND_IPI => self.platform.csr.set_pending(irq::SSI, true),
            eid::LEGACY_REMOTE_SFENCE_VMA | eid::LEGACY_REMOTE_SFENCE_VMA_ASID => {
                self.platform.sfence_vma(hart, None);
            }
            eid::LEGACY_SHUTDOWN => self.exit = Some(Exit::new(ExitCode::PowerOff)),
            _ => {}
        }
        Ok(0)
    }

    fn base(hart: &Hart, function: u32) -> SbiResult {
        match function {
            0 => Ok(SPEC_VERSION),
            1 => Ok(IMPL_ID),
            2 => Ok(IMPL_VERSION),
            3 => Ok(u32::from(
                matches!(
                    arg(hart, 0),
                    0..=eid::BASE
                        | eid::TIME
                        | eid::IPI
                        | eid::RFENCE
                        | eid::HSM
                        | eid::SRST
                        | eid::DBCN
                ) && !(eid::LEGACY_SHUTDOWN + 1..eid::BASE).contains(&arg(hart, 0)),
            )),
            // mvendorid, marchid, mimpid.
            4..=6 => Ok(0),
            _ => Err(Error::NotSupported),
        }
    }

    fn set_timer(&mut self, hart: &Hart) {
        let ticks = u64::from(arg(hart, 1)) << 32 | u64::from(arg(hart, 0));
        self.platform.clock.set_timecmp(ticks);
    }

    /// Returns whether a hart mask selects hart 0, or an error if it selects a hart that does not
    /// exist.
    fn names_hart(hart: &Hart) -> Result<bool, Error> {
        match (arg(hart, 0), arg(hart, 1)) {
            (_, u32::MAX) => Ok(true),
            (0, _) => Ok(false),
            (1, 0) => Ok(true),
            _ => Err(Error::InvalidParam),
        }
    }

    fn send_ipi(&mut self, hart: &Hart) -> SbiResult {
        if Self::names_hart(hart)? {
            self.platform.csr.set_pending(irq::SSI, true);
        }
        Ok(0)
    }

    fn rfence(&mut self, hart: &mut Hart, function: u32) -> SbiResult {
        match function {
            0 => {
                Self::names_hart(hart)?;
            }
            1 | 2 => {
                if Self::names_hart(hart)? {
                    self.platform.sfence_vma(hart, None);
                }
            }
            _ => return Err(Error::NotSupported),
        }
        Ok(0)
    }

    fn hart_state(&mut self, hart: &mut Hart, function: u32) -> SbiResult {
        const STARTED: u32 = 0;
        const RETENTIVE_SUSPEND: u32 = 0;
        let id = arg(hart, 0);
        match function {
            0 if id == 0 => Err(Error::AlreadyAvailable),
            0 | 2 if id != 0 => Err(Error::InvalidParam),
            2 => Ok(STARTED),
            // hart_stop on the only hart: nothing could start it again.
            1 => {
                self.exit = Some(Exit::new(ExitCode::PowerOff));
                Ok(0)
            }
            3 if id == RETENTIVE_SUSPEND => {
                self.platform.waiting = 1;
                Ok(0)
            }
            _ => Err(Error::NotSupported),
        }
    }

    fn system_reset(&mut self, hart: &Hart) -> SbiResult {
        const SHUTDOWN: u32 = 0;
        const COLD_REBOOT: u32 = 1;
        const WARM_REBOOT: u32 = 2;
        const REASON_FAILURE: u32 = 1;
        let exit = match (arg(hart, 0), arg(hart, 1)) {
            (_, reason) if reason > REASON_FAILURE => return Err(Error::InvalidParam),
            (SHUTDOWN, REASON_FAILURE) => {
                Exit { code: ExitCode::Fault, arg: FaultCode::SystemFailure as u32 }
            }
            (SHUTDOWN, _) => Exit::new(ExitCode::PowerOff),
            (COLD_REBOOT | WARM_REBOOT, _) => Exit::new(ExitCode::Reset),
            _ => return Err(Error::InvalidParam),
        };
        self.exit = Some(exit);
        Ok(0)
    }

    fn debug_console(&mut self, hart: &mut Hart, function: u32) -> Result<SbiResult, Trap> {
        let len = arg(hart, 0).min(DBCN_BYTES_MAX);
        let addr = u64::from(arg(hart, 2)) << 32 | u64::from(arg(hart, 1));
        Ok(match function {
            0 => self.console_write(addr, len)?,
            1 => self.console_read(hart, addr, len)?,
            2 => {
                self.put(arg(hart, 0) as u8)?;
                Ok(0)
            }
            _ => Err(Error::NotSupported),
        })
    }

    pub(crate) fn put(&mut self, byte: u8) -> Result<(), Trap> {
        if self.port.console_put(byte) { Ok(()) } else { Err(Trap::Stall) }
    }

    fn console_write(&mut self, addr: u64, len: u32) -> Result<SbiResult, Trap> {
        // All or nothing, so that what the guest sees does not depend on how full the port is.
        if self.port.console_room() < len {
            return Err(Trap::Stall);
        }
        let port = &mut *self.port;
        let ram = Dma::new(self.ram, self.platform.kind.map().ram_base);
        let done = ram.read_with(addr, len, |_, chunk| {
            for &byte in chunk {
                port.console_put(byte);
            }
        });
        Ok(done.map(|()| len).map_err(|_| Error::InvalidParam))
    }

    fn console_read(&mut self, hart: &mut Hart, addr: u64, len: u32) -> Result<SbiResult, Trap> {
        let mut done = 0;
        while done < len {
            // The place is made writable before a byte is taken, so that none is lost.
            let mut ram = Dma::new(self.ram, self.platform.kind.map().ram_base);
            let at = addr.wrapping_add(u64::from(done));
            let mut took = false;
            let (port, uart) = (&mut *self.port, &mut self.platform.dev.uart);
            let result = ram.write_with(at, 1, |_, chunk| {
                if let (Some(slot), Some(byte)) = (chunk.first_mut(), uart.take(port)) {
                    *slot = byte;
                    took = true;
                }
            });
            if ram.wrote() {
                hart.reservation = NO_RESERVATION;
            }
            if ram.replaced() {
                self.platform.flush_tlbs(hart);
            }
            match result {
                Ok(()) => {}
                Err(crate::mem::DmaError::OutOfRange) => return Ok(Err(Error::InvalidParam)),
                Err(crate::mem::DmaError::NoFrame) if done == 0 => return Err(Trap::NoFrame),
                Err(crate::mem::DmaError::NoFrame) => break,
            }
            if !took {
                break;
            }
            done += 1;
        }
        Ok(Ok(done))
    }
}
