//! Guesses why a guest trapped that was made for another machine.

use emu_core::layout::{MachineKind, Region};
use emu_core::mmu::Privilege;
use emu_core::trap::{TakenTrap, cause};

use super::trap_loop::TrapLoop;

/// What a guess is made of.
#[derive(Clone, Copy)]
struct Clues {
    /// The exception.
    cause: u32,
    /// The instruction; zero when there is none.
    insn: u32,
    from: Privilege,
}

impl Clues {
    fn opcode(self) -> u32 {
        self.insn & 0x7f
    }
    fn funct3(self) -> u32 {
        self.insn >> 12 & 7
    }
    fn upper(self) -> u32 {
        self.insn >> 20
    }
    fn is_illegal(self) -> bool {
        self.cause == cause::ILLEGAL_INSN
    }
    /// The CSR that a CSR instruction names.
    fn csr(self) -> Option<u32> {
        (self.is_illegal() && self.opcode() == SYSTEM && self.funct3() & 3 != 0)
            .then(|| self.upper())
    }
    fn csr_in(self, numbers: &[std::ops::RangeInclusive<u32>]) -> bool {
        self.csr().is_some_and(|csr| numbers.iter().any(|range| range.contains(&csr)))
    }
}

// Major opcodes, with the lowest two bits.
const LOAD: u32 = 0x03;
const LOAD_FP: u32 = 0x07;
const MISC_MEM: u32 = 0x0f;
const OP_IMM: u32 = 0x13;
const OP_IMM_32: u32 = 0x1b;
const STORE: u32 = 0x23;
const STORE_FP: u32 = 0x27;
const AMO: u32 = 0x2f;
const OP: u32 = 0x33;
const OP_32: u32 = 0x3b;
const OP_FP: u32 = 0x53;
const OP_V: u32 = 0x57;
const SYSTEM: u32 = 0x73;
/// MADD, MSUB, NMSUB, NMADD.
const FUSED: [u32; 4] = [0x43, 0x47, 0x4b, 0x4f];
const CUSTOM: [u32; 4] = [0x0b, 0x2b, 0x5b, 0x7b];

/// A guess, and what it fits.
type Row = (&'static str, fn(Clues) -> bool);

/// The first row that fits is the guess.
const ROWS: &[Row] = &[
    ("there is no code here: it jumped into empty memory, or was not loaded where it runs", |c| {
        c.is_illegal() && matches!(c.insn, 0 | u32::MAX)
    }),
    (
        "compressed code, it seems; this machine is rv32ima: build with \
         -march=rv32ima_zicsr_zifencei",
        |c| c.is_illegal() && c.insn & 3 != 3 || c.cause == cause::INSN_MISALIGNED,
    ),
    ("a vector instruction; this machine has no V: build for rv32ima", |c| {
        c.is_illegal()
            && (c.opcode() == OP_V
                || matches!(c.opcode(), LOAD_FP | STORE_FP) && !(1..=4).contains(&c.funct3()))
            || c.csr_in(&[0x008..=0x00f, 0xc20..=0xc22])
    }),
    (
        "floating point; this machine has no F and D: build with -march=rv32ima_zicsr_zifencei \
         -mabi=ilp32, or a kernel without CONFIG_FPU",
        |c| {
            c.is_illegal()
                && (matches!(c.opcode(), LOAD_FP | STORE_FP | OP_FP) || FUSED.contains(&c.opcode()))
                || c.csr_in(&[0x001..=0x003])
        },
    ),
    ("an instruction of RV64; this machine has 32 bits: build for rv32ima", |c| {
        c.is_illegal()
            && match c.opcode() {
                LOAD => matches!(c.funct3(), 3 | 6),
                STORE | AMO => c.funct3() == 3,
                OP_IMM_32 | OP_32 => true,
                OP_IMM => matches!(c.funct3(), 1 | 5) && matches!(c.insn >> 25, 1 | 0x21),
                _ => false,
            }
    }),
    ("an atomic of Zacas or Zabha, which this machine lacks: build for rv32ima", |c| {
        c.is_illegal() && c.opcode() == AMO
    }),
    (
        "an arithmetic instruction of an extension that this machine lacks, such as Zba, Zbb, Zbs \
         or Zicond: build for rv32ima",
        |c| c.is_illegal() && matches!(c.opcode(), OP | OP_IMM),
    ),
    ("a cache-block instruction (Zicbom, Zicboz), which this machine lacks", |c| {
        c.is_illegal() && c.opcode() == MISC_MEM
    }),
    ("a custom instruction of some vendor", |c| c.is_illegal() && CUSTOM.contains(&c.opcode())),
    (
        "the timer of Sstc (stimecmp), which this machine lacks: set timers by SBI or mtimecmp",
        |c| c.csr_in(&[0x14d..=0x14d, 0x15d..=0x15d]),
    ),
    ("a CSR of PMP that this machine lacks: it has 16 entries, and no mseccfg", |c| {
        c.csr_in(&[0x3a4..=0x3af, 0x3c0..=0x3ef, 0x747..=0x747, 0x757..=0x757])
    }),
    ("a CSR of the hypervisor extension, which this machine lacks", |c| {
        c.csr_in(&[0x200..=0x2ff, 0x600..=0x6ff, 0xa00..=0xaff, 0xe00..=0xeff])
    }),
    ("a CSR of the advanced interrupt architecture (AIA), which this machine lacks", |c| {
        c.csr_in(&[0x150..=0x15c, 0x308..=0x309, 0x350..=0x35c, 0xdb0..=0xdb0, 0xfb0..=0xfb0])
    }),
    (
        "a CSR of M-mode, but it runs in a lower one: bare-metal programs start with `pxvm run`, \
         firmware with --firmware",
        |c| {
            c.from != Privilege::Machine
                && c.csr_in(&[0x300..=0x3ff, 0x7a0..=0x7a3, 0xb00..=0xbff, 0xf11..=0xf15])
        },
    ),
    ("a CSR of S-mode in U-mode", |c| c.from == Privilege::User && c.csr_in(&[0x100..=0x1ff])),
    ("a counter that mcounteren and scounteren do not let it read", |c| {
        c.from != Privilege::Machine && c.csr_in(&[0xc00..=0xc9f])
    }),
    ("a CSR that this machine lacks", |c| c.csr().is_some()),
    ("a return or fence that its mode may not execute", |c| {
        c.is_illegal()
            && c.opcode() == SYSTEM
            && (matches!(c.insn, 0x3020_0073 | 0x1020_0073 | 0x1050_0073) || c.insn >> 25 == 9)
    }),
    ("a privileged instruction of an extension that this machine lacks", |c| {
        c.is_illegal() && c.opcode() == SYSTEM
    }),
    ("a breakpoint: a failed assertion, or semihosting, which `pxvm run --semihosting` has", |c| {
        c.cause == cause::BREAKPOINT
    }),
    (
        "a call of firmware from M-mode, where there is none: a kernel for S-mode starts with \
         `pxvm boot --kernel`",
        |c| c.cause == cause::ECALL_M,
    ),
    ("a system call or SBI call before there was a handler for it", |c| {
        matches!(c.cause, cause::ECALL_U | cause::ECALL_S)
    }),
    ("LR, SC and AMOs must be aligned to four bytes", |c| {
        matches!(c.cause, cause::LOAD_MISALIGNED | cause::STORE_MISALIGNED)
    }),
    ("its page table does not map that address so", |c| {
        matches!(c.cause, cause::INSN_PAGE | cause::LOAD_PAGE | cause::STORE_PAGE)
    }),
    ("it enabled interrupts before it had set the address of its handler", |c| {
        c.cause & cause::INTERRUPT != 0
    }),
];

/// What another machine has where this one has nothing: first and last address.
type Window = (u32, u32, &'static str);

/// QEMU's machine `virt`, where it has more than ours.
const QEMU_VIRT: &[Window] = &[
    (0x0000_1000, 0x0000_ffff, "the boot ROM"),
    (0x0010_0000, 0x0010_0fff, "the test finisher"),
    (0x0010_1000, 0x0010_1fff, "the goldfish RTC"),
    (0x0200_0000, 0x0200_ffff, "the CLINT"),
    (0x02f0_0000, 0x02f0_3fff, "the ACLINT's supervisor software interrupts (aclint=on)"),
    (0x0300_0000, 0x0301_0fff, "PCI I/O ports"),
    (0x0400_0000, 0x05ff_ffff, "the platform bus"),
    (0x0c00_0000, 0x0fff_ffff, "the PLIC, or an APLIC"),
    (0x1000_0000, 0x1000_0fff, "the UART"),
    (0x1000_1000, 0x1000_8fff, "virtio-mmio transports"),
    (0x1010_0000, 0x1010_0fff, "fw_cfg"),
    (0x2000_0000, 0x23ff_ffff, "flash"),
    (0x2400_0000, 0x2bff_ffff, "the IMSICs (aia=aplic-imsic)"),
    (0x3000_0000, 0x3fff_ffff, "PCI configuration space (ECAM)"),
    (0x4000_0000, 0x7fff_ffff, "PCI memory"),
];

/// The emulator semu.
const SEMU: &[Window] = &[
    (0xf000_0000, 0xf3ff_ffff, "the PLIC"),
    (0xf400_0000, 0xf40f_ffff, "the UART"),
    (0xf410_0000, 0xf41f_ffff, "virtio-net"),
    (0xf420_0000, 0xf42f_ffff, "virtio-blk"),
    (0xf430_0000, 0xf43f_ffff, "the mtimer"),
    (0xf440_0000, 0xf44f_ffff, "the machine software interrupts"),
    (0xf450_0000, 0xf45f_ffff, "the supervisor software interrupts"),
    (0xf460_0000, 0xf46f_ffff, "virtio-rng"),
    (0xf470_0000, 0xf47f_ffff, "virtio-snd"),
    (0xf480_0000, 0xf48f_ffff, "virtio-fs"),
];

/// Returns the most likely reason for a trap, if there is one.
pub fn guess(traps: &TrapLoop) -> Option<String> {
    let TakenTrap { cause, tval, from, .. } = traps.first;
    if matches!(cause, cause::INSN_ACCESS | cause::LOAD_ACCESS | cause::STORE_ACCESS) {
        return Some(place(traps.machine, cause, tval, from));
    }
    // Without an instruction an illegal one says what it is in `tval`.
    let insn = traps.insn.unwrap_or(tval);
    let clues = Clues { cause, insn, from };
    ROWS.iter().find(|(_, fits)| fits(clues)).map(|&(text, _)| text.to_owned())
}

/// Returns what may have been meant by an address that the machine refuses.
fn place(machine: MachineKind, cause: u32, addr: u32, from: Privilege) -> String {
    let (model, here, other, there, option) = match machine {
        MachineKind::Virt => ("QEMU's virt", QEMU_VIRT, "semu", SEMU, "--machine semu"),
        MachineKind::Semu => ("semu", SEMU, "QEMU's virt", QEMU_VIRT, "--machine virt"),
    };
    let find = |places: &[Window]| {
        places.iter().find(|&&(first, last, _)| (first..=last).contains(&addr)).map(|p| p.2)
    };
    let map = machine.map();
    if map.rom.offset(addr).is_some() && cause == cause::STORE_ACCESS {
        return format!("{addr:#010x} is in the ROM, which cannot be written");
    }
    if let Some(what) = find(here) {
        return if is_device(machine, addr) {
            format!("{addr:#010x} is {what}: devices take aligned accesses, and hold no code")
        } else {
            format!("{addr:#010x} is where {model} has {what}, which this machine lacks")
        };
    }
    if let Some(what) = find(there) {
        return format!("{addr:#010x} is where {other} has {what}: {option}?");
    }
    let ram = Region { base: map.ram_base, size: map.ram_max };
    match (ram.offset(addr), from) {
        (Some(_), Privilege::Machine) => {
            format!("{addr:#010x} is past the end of RAM: --memory gives it more")
        }
        (Some(_), Privilege::Supervisor | Privilege::User) => format!(
            "no entry of PMP lets S- and U-mode access {addr:#010x} (M-mode sets pmpaddr0 and \
             pmpcfg0 first), or it is past the end of RAM"
        ),
        (None, _) if cause == cause::INSN_ACCESS => {
            format!("it jumped to {addr:#010x}, where there is no memory")
        }
        (None, _) if addr < 0x1000 => format!("{addr:#010x} is near a null pointer"),
        (None, _) => format!("there is nothing at {addr:#010x}"),
    }
}

fn is_device(machine: MachineKind, addr: u32) -> bool {
    let map = machine.map();
    let virtio = map.virtio.iter().map(|transport| transport.mmio);
    let others = [map.clint, map.plic, map.uart, map.finisher, map.rtc];
    virtio.chain(others).any(|device| device.offset(addr).is_some())
}

#[cfg(test)]
mod tests {
    use emu_core::mmu::Privilege::{Machine, Supervisor, User};

    use super::*;

    fn of(machine: MachineKind, cause: u32, insn: u32, tval: u32, from: Privilege) -> String {
        let first = TakenTrap { cause, pc: 0x8000_0000, tval, from, to: Machine };
        guess(&TrapLoop { machine, first, insn: Some(insn) }).expect("a guess")
    }

    /// `csrr a0, NUMBER`
    const fn csrr(number: u32) -> u32 {
        number << 20 | 2 << 12 | 10 << 7 | SYSTEM
    }

    #[test]
    fn every_row_is_the_guess_for_something() {
        const ILLEGAL: u32 = cause::ILLEGAL_INSN;
        // In the order of the rows: cause, instruction, mode.
        let examples = [
            (ILLEGAL, 0, Machine),
            (ILLEGAL, 0x4501, Machine),         // c.li a0, 0
            (ILLEGAL, 0x0205_6007, Machine),    // vle32.v
            (ILLEGAL, 0x0000_2007, Machine),    // flw
            (ILLEGAL, 0x0000_3003, Machine),    // ld
            (ILLEGAL, 0x2800_202f, Machine),    // amocas.w
            (ILLEGAL, 0x20b5_2533, Machine),    // sh1add
            (ILLEGAL, 0x0005_200f, Machine),    // cbo.inval
            (ILLEGAL, 0x0000_000b, Machine),    // custom-0
            (ILLEGAL, csrr(0x14d), Supervisor), // stimecmp
            (ILLEGAL, csrr(0x3c0), Machine),    // pmpaddr16
            (ILLEGAL, csrr(0x600), Machine),    // hstatus
            (ILLEGAL, csrr(0x150), Supervisor), // siselect
            (ILLEGAL, csrr(0xf14), Supervisor), // mhartid
            (ILLEGAL, csrr(0x100), User),       // sstatus
            (ILLEGAL, csrr(0xc01), Supervisor), // time
            (ILLEGAL, csrr(0x7b0), Machine),    // dcsr
            (ILLEGAL, 0x3020_0073, Supervisor), // mret
            (ILLEGAL, 0x6200_0073, Machine),    // hfence.gvma
            (cause::BREAKPOINT, 0x0010_0073, Machine),
            (cause::ECALL_M, 0x0000_0073, Machine),
            (cause::ECALL_S, 0x0000_0073, Supervisor),
            (cause::STORE_MISALIGNED, 0x0000_202f, Machine),
            (cause::LOAD_PAGE, 0x0000_2003, Supervisor),
            (cause::INTERRUPT | 7, 0, Machine),
        ];
        assert_eq!(examples.len(), ROWS.len());
        for ((cause, insn, from), (text, _)) in examples.into_iter().zip(ROWS) {
            assert_eq!(of(MachineKind::Virt, cause, insn, 0, from), *text);
        }
    }

    #[test]
    fn extensions_are_told_by_all_their_instructions() {
        let illegal = |insn| of(MachineKind::Virt, cause::ILLEGAL_INSN, insn, 0, Machine);
        // fsd, fadd.s, fmadd.s, csrr frm
        for insn in [0x00a5_3027, 0x00b5_7553, 0x60b5_7543, csrr(2)] {
            assert!(illegal(insn).starts_with("floating point"), "{insn:#x}");
        }
        // sd, lwu, addiw, addw, amoadd.d, slli by 32
        for insn in [0x00a5_3023, 0x0005_6503, 0x1b, 0x3b, 0x0000_302f, 0x0200_1013] {
            assert!(illegal(insn).starts_with("an instruction of RV64"), "{insn:#x}");
        }
        // vadd.vv, csrr vl
        for insn in [0x0220_8057, csrr(0xc20)] {
            assert!(illegal(insn).starts_with("a vector"), "{insn:#x}");
        }
        // clz, rori, bset, min, czero.eqz
        for insn in [0x6005_1513, 0x6015_5513, 0x28b5_1533, 0x0ab5_4533, 0x0eb5_5533] {
            assert!(illegal(insn).starts_with("an arithmetic"), "{insn:#x}");
        }
        assert!(of(MachineKind::Virt, cause::INSN_MISALIGNED, 0x6f, 2, Machine).contains("compr"));
    }

    #[test]
    fn an_address_is_told_by_what_other_machines_have_there() {
        use MachineKind::{Semu, Virt};
        const LOAD: u32 = cause::LOAD_ACCESS;
        for (machine, cause, addr, from, expected) in [
            (Virt, LOAD, 0x1010_0008, Machine, "is where QEMU's virt has fw_cfg, which this"),
            (Virt, LOAD, 0x3000_0000, Machine, "has PCI configuration space"),
            (Virt, LOAD, 0xf400_0000, Machine, "is where semu has the UART: --machine semu?"),
            (Semu, LOAD, 0x1000_0000, Supervisor, "QEMU's virt has the UART: --machine virt?"),
            (Semu, LOAD, 0xf430_0000, Supervisor, "is where semu has the mtimer, which this"),
            (Virt, LOAD, 0x0200_4001, Machine, "is the CLINT: devices take aligned accesses"),
            (Virt, LOAD, 0x9000_0000, Machine, "is past the end of RAM: --memory"),
            (
                Virt,
                LOAD,
                0x8000_0000,
                Supervisor,
                "no entry of PMP lets S- and U-mode access 0x80000000",
            ),
            (Virt, cause::STORE_ACCESS, 0x2000_0000, Machine, "is in the ROM"),
            (Virt, LOAD, 8, Machine, "is near a null pointer"),
            (Virt, cause::INSN_ACCESS, 0, Machine, "it jumped to 0x00000000, where"),
            (Virt, LOAD, 0xffff_fff0, Machine, "there is nothing at 0xfffffff0"),
        ] {
            let told = of(machine, cause, 0x2003, addr, from);
            assert!(told.contains(expected), "{addr:#x}: {told}");
        }
    }
}
