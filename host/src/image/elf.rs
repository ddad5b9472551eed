//! Loader for 32-bit RISC-V ELF executables.

use goblin::elf::header::{
    EI_CLASS, EI_DATA, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, EM_RISCV, ET_EXEC,
};
use goblin::elf::program_header::PT_LOAD;
use goblin::elf::{Elf, header};

use super::{LIMIT, Payload, Problem, Segment};
use crate::units::Size;

/// ELF flag: the code contains compressed instructions.
const EF_RISCV_RVC: u32 = 0x1;
/// ELF flags: floating-point registers of the calling convention; zero for none.
const EF_RISCV_FLOAT_ABI: u32 = 0x6;
/// Type of the section with build attributes.
const SHT_RISCV_ATTRIBUTES: u32 = 0x7000_0003;
/// ELF flag: the code uses only 16 registers (RV32E).
const EF_RISCV_RVE: u32 = 0x8;

/// A loaded executable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Segments at their physical addresses.
    pub payload: Payload,
    /// Names and addresses of symbols.
    pub symbols: Vec<(String, u32)>,
}

impl Program {
    /// Returns the address of a symbol.
    pub fn symbol(&self, name: &str) -> Option<u32> {
        self.symbols.iter().find(|(n, _)| n == name).map(|&(_, addr)| addr)
    }
}

/// Whether the file has the magic number of ELF.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Whether the code cannot start without compressed instructions.
///
/// The ELF flag alone does not show it: a test with one compressed instruction, behind a check of
/// `misa`, has it too. The flag counts only together with the build attributes, or with a
/// compressed instruction at the entry point.
fn needs_compressed(elf: &Elf<'_>, bytes: &[u8], payload: &Payload) -> bool {
    if elf.header.e_flags & EF_RISCV_RVC == 0 {
        return false;
    }
    let attributes = elf
        .section_headers
        .iter()
        .find(|s| s.sh_type == SHT_RISCV_ATTRIBUTES)
        .and_then(|s| bytes.get(s.file_range()?))
        .map(String::from_utf8_lossy);
    if attributes.is_some_and(|a| a.contains("_c2p") || a.contains("_zca")) {
        return true;
    }
    payload.segments.iter().any(|s| {
        let at = payload.entry.wrapping_sub(s.addr) as usize;
        s.bytes.get(at).is_some_and(|first| first & 3 != 3)
    })
}

/// Refuses executables for other machines than a 32-bit RISC-V without compressed and
/// floating-point code.
fn check_target(bytes: &[u8]) -> Result<(), Problem> {
    let class = bytes.get(EI_CLASS).copied().unwrap_or(0);
    let machine = match (bytes.get(EI_DATA), bytes.get(18..20)) {
        (Some(&ELFDATA2LSB), Some(&[a, b])) => u16::from_le_bytes([a, b]),
        (Some(_), Some(&[a, b])) => u16::from_be_bytes([a, b]),
        _ => return Err(Problem::Truncated("the ELF header is incomplete".into())),
    };
    if machine != EM_RISCV {
        let name = match machine {
            header::EM_X86_64 => "x86-64",
            header::EM_386 => "x86",
            header::EM_AARCH64 => "64-bit Arm",
            header::EM_ARM => "Arm",
            header::EM_MIPS => "MIPS",
            header::EM_PPC | header::EM_PPC64 => "PowerPC",
            _ => return Err(Problem::Architecture(format!("ELF for machine number {machine}"))),
        };
        return Err(Problem::Architecture(format!("ELF for {name}")));
    }
    match class {
        ELFCLASS32 => Ok(()),
        ELFCLASS64 => Err(Problem::Architecture("64-bit RISC-V ELF".into())),
        _ => Err(Problem::Format(format!("ELF of unknown class {class}"))),
    }
}

/// Parses an executable into segments at physical addresses, and symbols.
pub fn parse(bytes: &[u8]) -> Result<Program, Problem> {
    check_target(bytes)?;
    let elf = Elf::parse(bytes)
        .map_err(|e| Problem::Truncated(format!("the ELF headers point outside the file ({e})")))?;
    if elf.header.e_type != ET_EXEC {
        return Err(Problem::Format("ELF, but not a statically linked executable".into()));
    }
    if elf.header.e_flags & EF_RISCV_RVE != 0 {
        return Err(Problem::Architecture("ELF for the 16-register RV32E".into()));
    }

    let mut segments = Vec::new();
    let mut entry = None;
    let mut total = 0;
    for header in elf.program_headers.iter().filter(|h| h.p_type == PT_LOAD && h.p_memsz != 0) {
        // In a 32-bit file every field below fits u32.
        let (addr, virt, size) =
            (header.p_paddr as u32, header.p_vaddr as u32, header.p_memsz as u32);
        if header.p_filesz > header.p_memsz || u64::from(addr) + u64::from(size) > 1 << 32 {
            return Err(Problem::Format(format!("the ELF segment at {addr:#x} is malformed")));
        }
        total += u64::from(size);
        if total > LIMIT.0 {
            let size = Size(total);
            return Err(Problem::Format(format!("its segments take {size}, more than {LIMIT}")));
        }
        let from = header.p_offset as usize;
        let data = bytes
            .get(from..from.saturating_add(header.p_filesz as usize))
            .ok_or_else(|| Problem::Truncated(format!("the segment at {addr:#x} is incomplete")))?;
        let into = (elf.header.e_entry as u32).wrapping_sub(virt);
        if into < size && entry.is_none() {
            entry = Some(addr.wrapping_add(into));
        }
        segments.push(Segment { addr, bytes: data.to_vec(), size });
    }
    if segments.is_empty() {
        return Err(Problem::Format("ELF without anything to load".into()));
    }
    segments.sort_by_key(|s| s.addr);
    if let Some(pair) = segments.windows(2).find(|p| p[0].end() > u64::from(p[1].addr)) {
        let (a, b) = (pair[0].addr, pair[1].addr);
        return Err(Problem::Format(format!("its segments at {a:#x} and {b:#x} overlap")));
    }
    let entry = entry.ok_or_else(|| {
        let entry = elf.header.e_entry;
        Problem::Format(format!("the entry point {entry:#x} is in no segment"))
    })?;

    let payload = Payload { segments, entry, fixed: true };
    if elf.header.e_flags & EF_RISCV_FLOAT_ABI != 0 {
        return Err(Problem::Architecture("ELF that passes floats in registers".into()));
    }
    if needs_compressed(&elf, bytes, &payload) {
        return Err(Problem::Architecture(
            "ELF with compressed instructions (the C extension)".into(),
        ));
    }
    let symbols = elf
        .syms
        .iter()
        .filter_map(|s| Some((elf.strtab.get_at(s.st_name)?.to_owned(), s.st_value as u32)))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    Ok(Program { payload, symbols })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::testing::damage;

    /// Returns a minimal ELF32 executable with one segment.
    pub fn sample(machine: u16, class: u8, flags: u32, code: &[u8]) -> Vec<u8> {
        let mut out = vec![0x7f, b'E', b'L', b'F', class, 1, 1];
        out.resize(16, 0);
        let half = |out: &mut Vec<u8>, v: u16| out.extend(v.to_le_bytes());
        let word = |out: &mut Vec<u8>, v: u32| out.extend(v.to_le_bytes());
        half(&mut out, ET_EXEC);
        half(&mut out, machine);
        for v in [1, 0x8000_0000, 52, 0, flags] {
            word(&mut out, v);
        }
        for v in [52, 32, 1, 40, 0, 0] {
            half(&mut out, v);
        }
        let len = code.len() as u32;
        for v in [PT_LOAD, 84, 0x8000_0000, 0x8000_0000, len, len + 16, 5, 4] {
            word(&mut out, v);
        }
        out.extend(code);
        out
    }

    const NOP: [u8; 4] = [0x13, 0, 0, 0];

    #[test]
    fn an_executable_gives_its_segment_and_entry() {
        let program = parse(&sample(EM_RISCV, ELFCLASS32, 0, &NOP)).unwrap();
        assert_eq!(program.payload.entry, 0x8000_0000);
        assert_eq!((program.payload.start(), program.payload.end()), (0x8000_0000, 0x8000_0014));
    }

    #[test]
    fn code_for_other_machines_is_refused_by_name() {
        let refused = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        assert!(refused(&sample(EM_RISCV, ELFCLASS64, 0, &NOP)).contains("64-bit RISC-V"));
        assert!(refused(&sample(header::EM_X86_64, ELFCLASS64, 0, &NOP)).contains("x86-64"));
        assert!(refused(&sample(header::EM_ARM, ELFCLASS32, 0, &NOP)).contains("Arm"));
        assert!(refused(&sample(EM_RISCV, ELFCLASS32, 4, &NOP)).contains("floats"));
        assert!(refused(&sample(EM_RISCV, ELFCLASS32, 8, &NOP)).contains("RV32E"));
    }

    #[test]
    fn the_compressed_flag_counts_only_with_compressed_code() {
        let c_nop = [1, 0, 1, 0];
        assert!(parse(&sample(EM_RISCV, ELFCLASS32, EF_RISCV_RVC, &NOP)).is_ok());
        let error = parse(&sample(EM_RISCV, ELFCLASS32, EF_RISCV_RVC, &c_nop)).unwrap_err();
        assert!(error.to_string().contains("compressed"), "{error}");
    }

    #[test]
    fn damaged_files_never_panic() {
        let seed = sample(EM_RISCV, ELFCLASS32, 0, &NOP);
        damage(&seed, 20_000, |bytes| drop(parse(&bytes)));
    }
}
