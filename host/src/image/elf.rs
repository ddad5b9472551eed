//! Loader for 32-bit RISC-V ELF executables.

use std::ops::Range;

use goblin::elf::header::{
    EI_CLASS, EI_DATA, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, EM_RISCV, ET_DYN, ET_EXEC, ET_REL,
};
use goblin::elf::program_header::{PT_INTERP, PT_LOAD, PT_NOTE};
use goblin::elf::reloc::{R_RISCV_32, R_RISCV_NONE, R_RISCV_RELATIVE, r_to_str};
use goblin::elf::section_header::{
    SHN_ABS, SHN_UNDEF, SHT_DYNSYM, SHT_GNU_HASH, SHT_HASH, SHT_NOTE, SHT_RELA, SHT_STRTAB,
};
use goblin::elf::{Elf, ProgramHeader, header};

use super::{LIMIT, LoadAddress, Payload, Problem, Relocation, Segment, attributes};
use crate::units::Size;

/// ELF flag: the code contains compressed instructions.
const EF_RISCV_RVC: u32 = 0x1;
/// ELF flags: floating-point registers of the calling convention; zero for none.
const EF_RISCV_FLOAT_ABI: u32 = 0x6;
/// Type of the section with build attributes.
const SHT_RISCV_ATTRIBUTES: u32 = 0x7000_0003;
/// Entry of the dynamic section: packed relocations.
const DT_RELR: u64 = 36;
/// ELF flag: the code uses only 16 registers (RV32E).
const EF_RISCV_RVE: u32 = 0x8;

/// A loaded executable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Segments at their physical addresses, and where they may be loaded.
    pub payload: Payload,
    /// Names and addresses of symbols.
    pub symbols: Vec<(String, u32)>,
    /// Extensions that its build attributes name and the machine lacks.
    pub lacks: Vec<String>,
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
fn needs_compressed(elf: &Elf<'_>, lacks: &[&str], payload: &Payload) -> bool {
    if lacks.contains(&"c") || lacks.contains(&"zca") {
        return true;
    }
    elf.header.e_flags & EF_RISCV_RVC != 0
        && payload.segments.iter().any(|s| {
            let at = payload.entry.wrapping_sub(s.addr) as usize;
            s.bytes.get(at).is_some_and(|first| first & 3 != 3)
        })
}

/// Returns the architecture that the build attributes state.
fn target<'a>(elf: &Elf<'_>, bytes: &'a [u8]) -> Option<&'a str> {
    let section = elf.section_headers.iter().find(|s| s.sh_type == SHT_RISCV_ATTRIBUTES)?;
    attributes::arch(bytes.get(section.file_range()?)?)
}

/// Refuses executables for other machines than a 32-bit RISC-V without compressed and
/// floating-point code.
fn check_target(bytes: &[u8]) -> Result<(), Problem> {
    if !is_elf(bytes) {
        let why = "not an ELF file; `pxvm boot --firmware` takes raw binaries as well";
        return Err(Problem::Format(why.into()));
    }
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

/// Parses a program that is compiled for this machine: it uses all extensions that its attributes
/// name.
pub fn program(bytes: Vec<u8>) -> Result<Program, Problem> {
    let program = parse(&bytes)?;
    match &program.lacks[..] {
        [] => Ok(program),
        lacks => Err(Problem::Extension(format!("compiled for {}", lacks.join(", ")))),
    }
}

/// Parses an executable into segments at physical addresses, and symbols.
pub fn parse(bytes: &[u8]) -> Result<Program, Problem> {
    check_target(bytes)?;
    let elf = Elf::parse(bytes)
        .map_err(|e| Problem::Truncated(format!("the ELF headers point outside the file ({e})")))?;
    check_linked(&elf)?;
    let relocations = relocations(&elf)?;
    let segments = segments(&elf, bytes)?;
    let entry = entry(&elf)?;
    let load_address = match elf.header.e_type {
        ET_DYN => LoadAddress::Movable,
        // A Linux kernel is linked to virtual addresses, and its physical ones count from zero. It
        // finds out where it is.
        _ if loaded(&elf).any(|h| h.p_vaddr != h.p_paddr) => LoadAddress::Movable,
        _ => LoadAddress::Fixed,
    };
    let headers = headers(&elf, bytes);
    let payload = Payload { segments, entry, load_address, relocations, headers }.moved_by(0);

    let lacks = target(&elf, bytes).map(attributes::lacks).unwrap_or_default();
    if elf.header.e_flags & EF_RISCV_FLOAT_ABI != 0 {
        return Err(Problem::Extension("ELF that passes floats in registers".into()));
    }
    if needs_compressed(&elf, &lacks, &payload) {
        return Err(Problem::Extension(
            "ELF with compressed instructions (the C extension)".into(),
        ));
    }
    let lacks = lacks.into_iter().map(str::to_owned).collect();
    let symbols = elf
        .syms
        .iter()
        .filter_map(|s| Some((elf.strtab.get_at(s.st_name)?.to_owned(), s.st_value as u32)))
        .filter(|(name, _)| !name.is_empty())
        .collect();
    Ok(Program { payload, symbols, lacks })
}

/// Refuses what is no whole program.
fn check_linked(elf: &Elf<'_>) -> Result<(), Problem> {
    let refuse = |what: &str| Err(Problem::Format(what.into()));
    match elf.header.e_type {
        ET_EXEC | ET_DYN => {}
        ET_REL => return refuse("ELF that is not linked; link it with `ld` or `gcc -nostdlib`"),
        _ => return refuse("ELF, but not an executable"),
    }
    if let Some(library) = elf.libraries.first() {
        return refuse(&format!("ELF that needs the shared library {library}; link with -static"));
    }
    if elf.header.e_flags & EF_RISCV_RVE != 0 {
        return Err(Problem::Architecture("ELF for the 16-register RV32E".into()));
    }
    Ok(())
}

/// Returns the segments that are loaded.
fn loaded<'a>(elf: &'a Elf<'_>) -> impl Iterator<Item = &'a ProgramHeader> {
    elf.program_headers.iter().filter(|h| h.p_type == PT_LOAD && h.p_memsz != 0)
}

fn segments(elf: &Elf<'_>, bytes: &[u8]) -> Result<Vec<Segment>, Problem> {
    let mut segments = Vec::new();
    let mut total = 0;
    for header in loaded(elf) {
        // In a 32-bit file every field below fits u32.
        let (addr, size) = (header.p_paddr as u32, header.p_memsz as u32);
        if header.p_filesz > header.p_memsz || u64::from(addr) + u64::from(size) > 1 << 32 {
            return Err(Problem::Format(format!("the ELF segment at {addr:#x} is malformed")));
        }
        total += u64::from(size);
        if total > LIMIT.0 {
            let size = Size(total);
            return Err(Problem::Format(format!("its segments take {size}, more than {LIMIT}")));
        }
        let data = bytes
            .get(in_file(header))
            .ok_or_else(|| Problem::Truncated(format!("the segment at {addr:#x} is incomplete")))?;
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
    Ok(segments)
}

/// Returns the physical address of the entry point. The file states a virtual one, or, like some
/// kernels that turn on paging themselves, the physical one.
fn entry(elf: &Elf<'_>) -> Result<u32, Problem> {
    let entry = elf.header.e_entry as u32;
    let within = |from: u64, h: &ProgramHeader| entry.wrapping_sub(from as u32) < h.p_memsz as u32;
    if let Some(header) = loaded(elf).find(|h| within(h.p_vaddr, h)) {
        return Ok(entry.wrapping_sub(header.p_vaddr as u32).wrapping_add(header.p_paddr as u32));
    }
    match loaded(elf).any(|h| within(h.p_paddr, h)) {
        true => Ok(entry),
        false => Err(Problem::Format(format!("the entry point {entry:#x} is in no segment"))),
    }
}

/// Returns the relocations of a position-independent executable.
fn relocations(elf: &Elf<'_>) -> Result<Vec<Relocation>, Problem> {
    if elf.header.e_type != ET_DYN {
        return Ok(Vec::new());
    }
    let refuse = |what: String| {
        Err(Problem::Format(format!("position-independent ELF with {what}; link with -static-pie")))
    };
    let packed = elf.dynamic.iter().flat_map(|d| &d.dyns).any(|d| d.d_tag == DT_RELR);
    if packed {
        return refuse("packed relocations (RELR)".into());
    }
    let mut found = Vec::new();
    for relocation in elf.dynrelas.iter().chain(&elf.dynrels).chain(&elf.pltrelocs) {
        let (at, kind) = (relocation.r_offset as u32, relocation.r_type);
        let symbol = elf.dynsyms.get(relocation.r_sym);
        let symbol = symbol.filter(|s| !matches!(s.st_shndx as u32, SHN_UNDEF | SHN_ABS));
        let base = match (kind, symbol) {
            (R_RISCV_NONE, _) => continue,
            (R_RISCV_RELATIVE, _) => Some(0),
            (R_RISCV_32, Some(symbol)) => Some(symbol.st_value as u32),
            _ => None,
        };
        let Some((base, addend)) = base.zip(relocation.r_addend) else {
            return refuse(format!("the relocation {} at {at:#x}", r_to_str(kind, EM_RISCV)));
        };
        found.push(Relocation { at, value: base.wrapping_add(addend as u32) });
    }
    Ok(found)
}

/// Returns the addresses of what the program does not use, for [`Payload::headers`]: at the start
/// of the segment that begins with the file's headers, those, notes, tables for linkers, and zeros
/// between them.
fn headers(elf: &Elf<'_>, bytes: &[u8]) -> Option<Range<u32>> {
    let header = loaded(elf).find(|h| h.p_offset == 0)?;
    let end = usize::from(elf.header.e_ehsize).min(in_file(header).end);
    let table = u64::from(elf.header.e_phnum) * u64::from(elf.header.e_phentsize);
    let table = elf.header.e_phoff as usize..elf.header.e_phoff.saturating_add(table) as usize;
    let noted = elf.program_headers.iter().filter(|h| matches!(h.p_type, PT_NOTE | PT_INTERP));
    let tables = elf.section_headers.iter().filter(|s| {
        let for_linkers = [SHT_NOTE, SHT_DYNSYM, SHT_STRTAB, SHT_HASH, SHT_GNU_HASH, SHT_RELA];
        for_linkers.contains(&s.sh_type)
    });
    let mut unused = vec![0..end, table];
    unused.extend(noted.map(in_file).chain(tables.filter_map(|s| s.file_range())));
    unused.sort_by_key(|range| range.start);
    let len = unused_bytes(&unused, bytes.get(in_file(header))?);
    Some(header.p_paddr as u32..(header.p_paddr as u32).saturating_add(len as u32))
}

/// Returns how many bytes there are before the first that is neither zero nor in a range of
/// `unused`; the ranges are sorted.
fn unused_bytes(unused: &[Range<usize>], bytes: &[u8]) -> usize {
    let mut at = 0;
    let zeros = |from: usize, to: usize| {
        bytes[from..to].iter().position(|&byte| byte != 0).map_or(to, |zeros| from + zeros)
    };
    for range in unused {
        let start = range.start.min(bytes.len());
        if start > at && zeros(at, start) < start {
            break;
        }
        at = at.max(range.end.min(bytes.len()));
    }
    zeros(at, bytes.len())
}

/// Returns where the contents of a segment are in the file.
fn in_file(header: &ProgramHeader) -> Range<usize> {
    let from = header.p_offset as usize;
    from..from.saturating_add(header.p_filesz as usize)
}

#[cfg(test)]
pub(crate) mod tests {
    use goblin::elf::program_header::PT_DYNAMIC;

    use super::*;
    use crate::image::testing::damage;

    /// An ELF32 file.
    pub struct File {
        pub kind: u16,
        pub machine: u16,
        pub class: u8,
        pub flags: u32,
        pub entry: u32,
        /// Program headers: type, offset, virtual and physical address, sizes in file and memory.
        pub segments: Vec<[u32; 6]>,
        /// Contents of the one section, which has this type.
        pub section: (u32, Vec<u8>),
        /// What follows the headers.
        pub contents: Vec<u8>,
    }

    impl File {
        /// An executable with one segment at the start of RAM.
        pub fn with_code(code: &[u8]) -> Self {
            let len = code.len() as u32;
            Self {
                kind: ET_EXEC,
                machine: EM_RISCV,
                class: ELFCLASS32,
                flags: 0,
                entry: 0x8000_0000,
                segments: vec![[PT_LOAD, 84, 0x8000_0000, 0x8000_0000, len, len + 16]],
                section: (0, Vec::new()),
                contents: code.to_vec(),
            }
        }

        pub fn bytes(&self) -> Vec<u8> {
            const HEADER: usize = 52;
            let mut out = vec![0x7f, b'E', b'L', b'F', self.class, 1, 1];
            out.resize(16, 0);
            let half = |out: &mut Vec<u8>, v: u16| out.extend(v.to_le_bytes());
            let word = |out: &mut Vec<u8>, v: u32| out.extend(v.to_le_bytes());
            half(&mut out, self.kind);
            half(&mut out, self.machine);
            let count = self.segments.len();
            let section = HEADER + 32 * count + self.contents.len();
            let table = section + self.section.1.len();
            // Section 0 is none.
            let sections = if self.section.0 == 0 { 0 } else { 2 };
            let table_at = if sections == 0 { 0 } else { table as u32 };
            for v in [1, self.entry, HEADER as u32, table_at, self.flags] {
                word(&mut out, v);
            }
            for v in [HEADER as u16, 32, count as u16, 40, sections, 0] {
                half(&mut out, v);
            }
            for &[kind, offset, virt, phys, file, memory] in &self.segments {
                for v in [kind, offset, virt, phys, file, memory, 5, 4] {
                    word(&mut out, v);
                }
            }
            out.extend(&self.contents);
            out.extend(&self.section.1);
            if sections != 0 {
                let len = self.section.1.len() as u32;
                out.extend([0; 40]);
                for v in [0, self.section.0, 0, 0, section as u32, len, 0, 0, 1, 0] {
                    word(&mut out, v);
                }
            }
            out
        }
    }

    /// Returns a minimal ELF32 executable with one segment.
    pub fn sample(machine: u16, class: u8, flags: u32, code: &[u8]) -> Vec<u8> {
        File { machine, class, flags, ..File::with_code(code) }.bytes()
    }

    /// Returns a position-independent executable, linked to 0: at 0x1000 code, at 0x2000 a word for
    /// an address, which is not in the file, and at 0x3000 the tables for that: a relocation of this
    /// type and symbol (1: defined, as 0xff0; 2: not) with this addend.
    pub fn position_independent(kind: u32, symbol: u32, addend: u32) -> Vec<u8> {
        const DT_NULL: u32 = 0;
        const DT_SYMTAB: u32 = 6;
        const DT_RELA: u32 = 7;
        const DT_RELASZ: u32 = 8;
        const DT_RELAENT: u32 = 9;
        let header = 52 + 4 * 32;
        let rela = [0x2000, symbol << 8 | kind, addend];
        let dynamic =
            [DT_RELA, 0x3000, DT_RELASZ, 12, DT_RELAENT, 12, DT_SYMTAB, 0x3034, DT_NULL, 0];
        // Name, value, size; kind, visibility, section.
        let symbols = [0, 0, 0, 0, 0, 0xff0, 0, 1 << 16, 0, 0, 0, 0];
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
        File {
            kind: ET_DYN,
            entry: 0x1000,
            segments: vec![
                [PT_LOAD, header, 0x1000, 0x1000, 4, 4],
                [PT_LOAD, header + 4, 0x2000, 0x2000, 0, 8],
                [PT_LOAD, header + 4, 0x3000, 0x3000, 100, 100],
                [PT_DYNAMIC, header + 16, 0x300c, 0x300c, 40, 40],
            ],
            contents: [&NOP[..], &words(&rela), &words(&dynamic), &words(&symbols)].concat(),
            ..File::with_code(&[])
        }
        .bytes()
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
    fn extensions_in_the_attributes_are_refused_by_name() {
        let section = |arch| (SHT_RISCV_ATTRIBUTES, attributes::tests::section(arch));
        let compiled = |arch| File { section: section(arch), ..File::with_code(&NOP) }.bytes();
        let plain = compiled("rv32i2p1_m2p0_a2p1_zicsr2p0_zifencei2p0_zmmul1p0");
        assert_eq!(program(plain).unwrap().lacks, [] as [&str; 0]);
        // riscv-tests are compiled for more than they use.
        assert!(program(compiled("rv32i2p1_m2p0_a2p1_f2p2_d2p2_zicsr2p0")).is_ok());
        let zba = compiled("rv32i2p1_m2p0_zba1p0_v1p0");
        let refused = program(zba.clone()).unwrap_err().to_string();
        assert!(refused.starts_with("compiled for zba, v;"), "{refused}");
        assert!(refused.ends_with("-march=rv32ima_zicsr_zifencei -mabi=ilp32"), "{refused}");
        // A kernel may ask whether they are there, except for compressed instructions.
        assert_eq!(parse(&zba).unwrap().lacks, ["zba", "v"]);
        let refused = parse(&compiled("rv32i2p1_m2p0_a2p1_c2p0")).unwrap_err().to_string();
        assert!(refused.contains("compressed"), "{refused}");
    }

    #[test]
    fn a_position_independent_executable_can_move() {
        for file in [
            position_independent(R_RISCV_RELATIVE, 0, 0x1000),
            position_independent(R_RISCV_32, 1, 0x10),
        ] {
            let payload = parse(&file).unwrap().payload;
            assert_eq!((payload.load_address, payload.entry), (LoadAddress::Movable, 0x1000));
            let word = |payload: &Payload| payload.segments[1].bytes[..].to_vec();
            assert_eq!(word(&payload), 0x1000u32.to_le_bytes());
            let moved = payload.moved_to(0x8000_0000);
            assert_eq!((moved.start(), moved.entry), (0x8000_0000, 0x8000_0000));
            assert_eq!(word(&moved), 0x8000_0000u32.to_le_bytes());
            // Moving again starts from where it is.
            assert_eq!(word(&moved.moved_to(0x8040_0000)), 0x8040_0000u32.to_le_bytes());
        }
        const R_RISCV_JUMP_SLOT: u32 = 5;
        const R_RISCV_IRELATIVE: u32 = 58;
        for (kind, symbol, name) in [
            (R_RISCV_JUMP_SLOT, 1, "R_RISCV_JUMP_SLOT at 0x2000"),
            (R_RISCV_32, 2, "R_RISCV_32 at 0x2000"),
            (R_RISCV_32, 0, "R_RISCV_32 at 0x2000"),
            (R_RISCV_IRELATIVE, 0, "at 0x2000"),
        ] {
            let refused = parse(&position_independent(kind, symbol, 0)).unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
        assert!(parse(&position_independent(R_RISCV_NONE, 0, 0)).is_ok());
    }

    #[test]
    fn what_is_linked_to_virtual_addresses_can_move() {
        let linked = |virt, phys, entry| {
            let segments = vec![[PT_LOAD, 84, virt, phys, 4, 4]];
            let file = File { entry, segments, ..File::with_code(&NOP) };
            let payload = parse(&file.bytes()).unwrap().payload;
            (payload.load_address, payload.entry)
        };
        assert_eq!(linked(0xc000_0000, 0, 0xc000_0000), (LoadAddress::Movable, 0));
        assert_eq!(
            linked(0xc000_0000, 0x8020_0000, 0x8020_0000),
            (LoadAddress::Movable, 0x8020_0000)
        );
        assert_eq!(
            linked(0x8000_0000, 0x8000_0000, 0x8000_0000),
            (LoadAddress::Fixed, 0x8000_0000)
        );
    }

    #[test]
    fn headers_that_a_segment_begins_with_are_known() {
        // As `gcc -nostdlib -Ttext=0x80000000` makes it.
        let file = |padding: u8| {
            let mut contents = vec![0; 0x1000 - 84];
            contents[1000] = padding;
            contents.extend(NOP);
            let segments = vec![[PT_LOAD, 0, 0x7fff_f000, 0x7fff_f000, 0x1004, 0x1004]];
            parse(&File { segments, ..File::with_code(&contents) }.bytes()).unwrap().payload.headers
        };
        assert_eq!(file(0), Some(0x7fff_f000..0x8000_0000));
        assert_eq!(file(1), Some(0x7fff_f000..0x7fff_f000 + 84 + 1000));
        assert_eq!(parse(&sample(EM_RISCV, ELFCLASS32, 0, &NOP)).unwrap().payload.headers, None);
    }

    #[test]
    fn damaged_files_never_panic() {
        let attributes = (SHT_RISCV_ATTRIBUTES, attributes::tests::section("rv32i_zba"));
        let seed = File { section: attributes, ..File::with_code(&NOP) }.bytes();
        for seed in [seed, position_independent(R_RISCV_RELATIVE, 0, 0x1000)] {
            damage(&seed, 20_000, |bytes| drop(parse(&bytes)));
        }
    }
}
