//! Semihosting: how a program asks its debugger for a console and to end, as C libraries for
//! bare-metal programs do (RISC-V Semihosting 1.0; the operations are those of Arm's).
//!
//! `:tt` is the VM's console. There are no files, and nothing of the host is to be seen: the time
//! is the guest's own, as its clock tells it.

use crate::abi::{Exit, ExitCode, Hart, NO_RESERVATION};
use crate::csr::StoredCsr;
use crate::disk::Disk;
use crate::lane::Lane;
use crate::machine::Core;
use crate::mem::{FRAME_SIZE, Ram};
use crate::mmu::{AccessType, PAGE_MASK, Privilege};
use crate::port::Port;
use crate::trap::Trap;

/// Operations, in `a0`.
mod op {
    pub const OPEN: u32 = 0x01;
    pub const CLOSE: u32 = 0x02;
    pub const WRITEC: u32 = 0x03;
    pub const WRITE0: u32 = 0x04;
    pub const WRITE: u32 = 0x05;
    pub const READ: u32 = 0x06;
    pub const READC: u32 = 0x07;
    pub const ISERROR: u32 = 0x08;
    pub const ISTTY: u32 = 0x09;
    pub const SEEK: u32 = 0x0a;
    pub const FLEN: u32 = 0x0c;
    pub const CLOCK: u32 = 0x10;
    pub const TIME: u32 = 0x11;
    pub const ERRNO: u32 = 0x13;
    pub const GET_CMDLINE: u32 = 0x15;
    pub const HEAPINFO: u32 = 0x16;
    pub const EXIT: u32 = 0x18;
    pub const EXIT_EXTENDED: u32 = 0x20;
    pub const ELAPSED: u32 = 0x30;
    pub const TICKFREQ: u32 = 0x31;
}

/// System calls of newlib without semihosting, in `a7`: those of Linux.
mod syscall {
    pub const READ: u32 = 63;
    pub const WRITE: u32 = 64;
    pub const EXIT: u32 = 93;
    pub const EXIT_GROUP: u32 = 94;
    /// `-ENOSYS`, as Linux numbers it.
    pub const NOT_IMPLEMENTED: u32 = -38i32 as u32;
    /// `-EBADF`.
    pub const BAD_FILE: u32 = -9i32 as u32;
    /// `-EFAULT`.
    pub const FAULT: u32 = -14i32 as u32;
}

/// Error numbers of [`op::ERRNO`], as newlib has them.
#[derive(Clone, Copy)]
enum Errno {
    BadFile = 9,
    Access = 13,
    Fault = 14,
    Invalid = 22,
    IllegalSeek = 29,
    NotImplemented = 88,
}

/// File handles. A program gets them from [`op::OPEN`], and a newlib's system calls count from 0.
mod handle {
    pub const STDIN: u32 = 1;
    pub const STDOUT: u32 = 2;
    pub const STDERR: u32 = 3;
    pub const FEATURES: u32 = 4;
}

/// Content of the file that says which extensions there are: an exit status, and a `stderr` of its
/// own.
const FEATURES: [u8; 5] = *b"SHFB\x03";
const FEATURES_NAME: &[u8] = b":semihosting-features";
const CONSOLE_NAME: &[u8] = b":tt";
/// Reason of an exit that the program asked for.
const APPLICATION_EXIT: u32 = 0x2_0026;
/// Exit status of a program that ended for another reason.
const FAILED: u32 = 1;
/// Result of an operation that failed.
const ERROR: u32 = u32::MAX;
/// The most bytes that one instruction transfers. It is repeated for those that remain, so that a
/// guest cannot make it take long.
const CHUNK: u32 = 64;

/// The instructions around EBREAK that tell a request from a breakpoint.
const BEFORE: u32 = 0x01f0_1013;
const AFTER: u32 = 0x4070_5013;

const A0: usize = 10;
const A1: usize = 11;
const A2: usize = 12;
const A7: usize = 17;

/// State of semihosting.
#[derive(Clone)]
#[cfg_attr(
    feature = "zerocopy",
    derive(zerocopy::TryFromBytes, zerocopy::IntoBytes, zerocopy::Immutable)
)]
#[repr(C)]
pub struct Semihosting {
    /// Non-zero when requests are served. An EBREAK is a breakpoint otherwise.
    pub enabled: u32,
    /// Bytes that the request at `pc` has transferred so far. While it is not zero, the hart stands
    /// still for the debugger: it takes no interrupts.
    pub(crate) done: u32,
    /// Number of the last error.
    errno: u32,
    /// Position in the file of features.
    position: u32,
}

state!(Semihosting { enabled, done, errno, position });

impl Semihosting {
    /// Returns the state after power-on.
    pub const fn new(enabled: bool) -> Self {
        Self { enabled: enabled as u32, done: 0, errno: 0, position: 0 }
    }
}

/// How far a request is.
enum Progress {
    /// It is complete, with this result.
    Done(u32),
    /// Its instruction is to be executed again.
    Again,
}
use Progress::{Again, Done};

impl<M: Ram, D: Disk, P: Port, L: Lane> Core<'_, M, D, P, L> {
    /// Whether the EBREAK at `hart.pc` is a request: it stands between the two instructions that
    /// mark one, all three in one page. As in QEMU, user programs make none.
    pub(crate) fn is_semihosting(&mut self, hart: &mut Hart) -> Result<bool, Trap> {
        let at = hart.pc & !PAGE_MASK;
        let inside = (4..FRAME_SIZE - 4).contains(&at);
        if self.platform.semihosting.enabled == 0
            || hart.ctx.privilege == Privilege::User
            || !inside
        {
            return Ok(false);
        }
        let shared = self.ram.shared_code();
        let (frame, ..) = self.platform.fetch_page(hart, self.ram, shared, hart.pc)?;
        Ok(self.ram.load32(frame, at - 4) == BEFORE && self.ram.load32(frame, at + 4) == AFTER)
    }

    /// Whether an ECALL from M-mode is a system call of newlib: the program has set no trap handler,
    /// so nobody else could serve it.
    pub(crate) fn is_newlib_call(&self, hart: &Hart) -> bool {
        self.platform.semihosting.enabled != 0
            && hart.ctx.privilege == Privilege::Machine
            && self.platform.csr.get(StoredCsr::Mtvec) == 0
    }

    /// Executes a request: the operation is in `a0`, its parameter, mostly the address of a block of
    /// words, in `a1`. Returns the next `pc`.
    #[cold]
    #[inline(never)]
    pub(crate) fn semihosting_call(&mut self, hart: &mut Hart, next: u32) -> Result<u32, Trap> {
        let (operation, parameter) = (hart.x[A0], hart.x[A1]);
        self.port.at(self.platform.clock.retired);
        let progress = match self.operation(hart, operation, parameter) {
            // A place that the program cannot access itself.
            Err(Trap::Exception { .. }) => self.fail(Errno::Fault),
            other => other?,
        };
        Ok(self.advance(hart, progress, next))
    }

    /// Executes a system call of newlib. Returns the next `pc`.
    #[cold]
    #[inline(never)]
    pub(crate) fn newlib_call(&mut self, hart: &mut Hart, next: u32) -> Result<u32, Trap> {
        let (file, at, len) = (hart.x[A0], hart.x[A1], hart.x[A2]);
        self.port.at(self.platform.clock.retired);
        let progress = match (hart.x[A7], file) {
            (syscall::EXIT | syscall::EXIT_GROUP, status) => self.end(status),
            (syscall::WRITE, 1 | 2) => match self.print(hart, at, len, None)? {
                Done(0) if len != 0 => Done(syscall::FAULT),
                progress => progress,
            },
            (syscall::READ, 0) => match self.read_console(hart, at, len) {
                Err(Trap::Exception { .. }) => Done(syscall::FAULT),
                other => other?,
            },
            (syscall::WRITE | syscall::READ, _) => Done(syscall::BAD_FILE),
            _ => Done(syscall::NOT_IMPLEMENTED),
        };
        Ok(self.advance(hart, progress, next))
    }

    fn advance(&mut self, hart: &mut Hart, progress: Progress, next: u32) -> u32 {
        match progress {
            Done(result) => {
                self.platform.semihosting.done = 0;
                hart.x[A0] = result;
                next
            }
            Again => hart.pc,
        }
    }

    fn operation(&mut self, hart: &mut Hart, operation: u32, at: u32) -> Result<Progress, Trap> {
        let timebase = u64::from(self.platform.kind.map().timebase.max(1));
        let now = self.platform.clock.now();
        Ok(match operation {
            op::OPEN => self.open(hart, at)?,
            op::CLOSE => match self.word(hart, at)? {
                handle::STDIN..=handle::FEATURES => Done(0),
                _ => self.fail(Errno::BadFile),
            },
            op::WRITEC => {
                let byte = self.byte(hart, at)?;
                self.put(byte)?;
                Done(0)
            }
            op::WRITE0 => self.print(hart, at, u32::MAX, Some(0))?,
            op::WRITE => self.write(hart, at)?,
            op::READ => self.read(hart, at)?,
            op::READC => match self.platform.dev.uart.take(self.port) {
                Some(byte) => Done(byte.into()),
                None => self.wait_for_input(),
            },
            op::ISERROR => Done(self.word(hart, at)? >> 31),
            op::ISTTY => match self.word(hart, at)? {
                handle::STDIN..=handle::STDERR => Done(1),
                handle::FEATURES => Done(0),
                _ => self.fail(Errno::BadFile),
            },
            op::SEEK => self.seek(hart, at)?,
            op::FLEN => match self.word(hart, at)? {
                handle::FEATURES => Done(FEATURES.len() as u32),
                handle::STDIN..=handle::STDERR => self.fail(Errno::Invalid),
                _ => self.fail(Errno::BadFile),
            },
            op::CLOCK => Done((now / timebase * 100 + now % timebase * 100 / timebase) as u32),
            op::TIME => {
                let since = self.platform.clock.now_ns();
                Done((self.platform.dev.rtc.epoch_ns.wrapping_add(since) / 1_000_000_000) as u32)
            }
            op::ERRNO => Done(self.platform.semihosting.errno),
            op::GET_CMDLINE => self.command_line(hart, at)?,
            // Zeros: the program knows better where its own memory is.
            op::HEAPINFO => {
                let block = self.word(hart, at)?;
                self.store_bytes(hart, block, &[0; 16])?;
                Done(0)
            }
            op::EXIT => self.end_for(at, 0),
            op::EXIT_EXTENDED => {
                let [reason, status] = self.words(hart, at)?;
                self.end_for(reason, status)
            }
            op::ELAPSED => {
                self.store_bytes(hart, at, &now.to_le_bytes())?;
                Done(0)
            }
            op::TICKFREQ => Done(timebase as u32),
            _ => self.fail(Errno::NotImplemented),
        })
    }

    fn fail(&mut self, errno: Errno) -> Progress {
        self.platform.semihosting.errno = errno as u32;
        Done(ERROR)
    }

    /// Ends the program, for a reason that says whether `status` counts.
    fn end_for(&mut self, reason: u32, status: u32) -> Progress {
        self.end(if reason == APPLICATION_EXIT { status } else { FAILED })
    }

    fn end(&mut self, status: u32) -> Progress {
        self.exit = Some(Exit { code: ExitCode::PowerOff, arg: status });
        self.request_poll();
        Done(0)
    }

    fn open(&mut self, hart: &mut Hart, at: u32) -> Result<Progress, Trap> {
        let [name, mode, len] = self.words(hart, at)?;
        if self.is_text(hart, name, len, CONSOLE_NAME)? {
            // The modes of `fopen`: reading, writing, appending.
            return Ok(match mode {
                0..=3 => Done(handle::STDIN),
                4..=7 => Done(handle::STDOUT),
                8..=11 => Done(handle::STDERR),
                _ => self.fail(Errno::Invalid),
            });
        }
        if mode <= 1 && self.is_text(hart, name, len, FEATURES_NAME)? {
            self.platform.semihosting.position = 0;
            return Ok(Done(handle::FEATURES));
        }
        Ok(self.fail(Errno::Access))
    }

    /// Writes to an open file. The result is the number of bytes that were not written.
    fn write(&mut self, hart: &mut Hart, at: u32) -> Result<Progress, Trap> {
        let [handle, from, len] = self.words(hart, at)?;
        if !matches!(handle, handle::STDOUT | handle::STDERR) {
            self.fail(Errno::BadFile);
            return Ok(Done(len));
        }
        Ok(match self.print(hart, from, len, None)? {
            Done(written) => Done(len.saturating_sub(written)),
            Again => Again,
        })
    }

    /// Reads from an open file. The result is the number of bytes that were not read.
    fn read(&mut self, hart: &mut Hart, at: u32) -> Result<Progress, Trap> {
        let [handle, to, len] = self.words(hart, at)?;
        let progress = match handle {
            handle::STDIN => self.read_console(hart, to, len)?,
            handle::FEATURES => {
                let position = self.platform.semihosting.position;
                let rest = FEATURES.get(position as usize..).unwrap_or_default();
                let rest = rest.get(..len as usize).unwrap_or(rest);
                self.store_bytes(hart, to, rest)?;
                self.platform.semihosting.position = position + rest.len() as u32;
                Done(rest.len() as u32)
            }
            _ => {
                self.fail(Errno::BadFile);
                Done(0)
            }
        };
        Ok(match progress {
            Done(read) => Done(len - read),
            Again => Again,
        })
    }

    fn seek(&mut self, hart: &mut Hart, at: u32) -> Result<Progress, Trap> {
        let [handle, position] = self.words(hart, at)?;
        Ok(match handle {
            handle::FEATURES if position as usize <= FEATURES.len() => {
                self.platform.semihosting.position = position;
                Done(0)
            }
            handle::FEATURES => self.fail(Errno::Invalid),
            handle::STDIN..=handle::STDERR => self.fail(Errno::IllegalSeek),
            _ => self.fail(Errno::BadFile),
        })
    }

    /// Returns an empty command line.
    fn command_line(&mut self, hart: &mut Hart, at: u32) -> Result<Progress, Trap> {
        let [to, room] = self.words(hart, at)?;
        if room == 0 {
            return Ok(self.fail(Errno::Invalid));
        }
        self.store_bytes(hart, to, &[0])?;
        self.store_bytes(hart, at.wrapping_add(4), &[0; 4])?;
        Ok(Done(0))
    }

    /// Prints a text of `len` bytes, or up to the byte `end`, and what it can of one that goes out
    /// of memory. The result is the number of bytes.
    fn print(
        &mut self,
        hart: &mut Hart,
        from: u32,
        len: u32,
        end: Option<u8>,
    ) -> Result<Progress, Trap> {
        // All of a chunk or nothing, so that what the guest sees does not depend on how full the
        // port is.
        if self.port.console_room() < CHUNK {
            return Err(Trap::Stall);
        }
        for _ in 0..CHUNK {
            let done = self.platform.semihosting.done;
            // A device may have written to the request's block since, and made it shorter.
            if done >= len {
                return Ok(Done(done));
            }
            let byte = match self.byte(hart, from.wrapping_add(done)) {
                Err(Trap::Exception { .. }) => {
                    self.fail(Errno::Fault);
                    return Ok(Done(done));
                }
                other => other?,
            };
            if Some(byte) == end {
                return Ok(Done(done));
            }
            self.port.console_put(byte);
            self.platform.semihosting.done = done + 1;
        }
        Ok(Again)
    }

    /// Reads what is there of the console's input, or waits for some. The result is the number of
    /// bytes.
    fn read_console(&mut self, hart: &mut Hart, to: u32, len: u32) -> Result<Progress, Trap> {
        let mut read = 0;
        while read < len.min(CHUNK) {
            let at = to.wrapping_add(read);
            // The place is made writable before a byte is taken, so that none is lost.
            let frame = match self.ram_frame(hart, at, AccessType::Store) {
                Err(_) if read > 0 => break,
                other => other?,
            };
            let Some(byte) = self.platform.dev.uart.take(self.port) else { break };
            self.ram.store8(frame, at, byte.into());
            hart.reservation = NO_RESERVATION;
            read += 1;
        }
        Ok(if read == 0 && len > 0 { self.wait_for_input() } else { Done(read) })
    }

    /// Lets the hart wait for input. Meanwhile it takes interrupts.
    fn wait_for_input(&mut self) -> Progress {
        self.platform.waiting = WAITS_FOR_INPUT;
        self.request_poll();
        Again
    }

    /// Whether the text in memory is this one.
    fn is_text(&mut self, hart: &mut Hart, at: u32, len: u32, text: &[u8]) -> Result<bool, Trap> {
        if len as usize != text.len() {
            return Ok(false);
        }
        let mut at = at;
        for &expected in text {
            if self.byte(hart, at)? != expected {
                return Ok(false);
            }
            at = at.wrapping_add(1);
        }
        Ok(true)
    }

    // Memory is accessed as the program itself does, so that it reaches nothing more.

    fn words<const N: usize>(&mut self, hart: &mut Hart, at: u32) -> Result<[u32; N], Trap> {
        let (mut words, mut at) = ([0; N], at);
        for word in &mut words {
            *word = self.word(hart, at)?;
            at = at.wrapping_add(4);
        }
        Ok(words)
    }

    fn word(&mut self, hart: &mut Hart, at: u32) -> Result<u32, Trap> {
        let mut word = 0;
        for i in 0..4 {
            word |= u32::from(self.byte(hart, at.wrapping_add(i))?) << (8 * i);
        }
        Ok(word)
    }

    fn byte(&mut self, hart: &mut Hart, at: u32) -> Result<u8, Trap> {
        let frame = self.ram_frame(hart, at, AccessType::Load)?;
        Ok(self.ram.load8(frame, at) as u8)
    }

    fn store_bytes(&mut self, hart: &mut Hart, at: u32, bytes: &[u8]) -> Result<(), Trap> {
        let mut at = at;
        for &byte in bytes {
            let frame = self.ram_frame(hart, at, AccessType::Store)?;
            self.ram.store8(frame, at, byte.into());
            at = at.wrapping_add(1);
        }
        hart.reservation = NO_RESERVATION;
        Ok(())
    }
}

/// Value of [`crate::abi::Platform::waiting`] while the hart waits for console input, too, not for
/// an interrupt only.
pub(crate) const WAITS_FOR_INPUT: u32 = 2;
