//! Writes bare-metal programs as ELF files.

/// Bytes of a page.
const PAGE: usize = 4096;
const EHDR: usize = 52;
const PHDR: usize = 32;

/// An executable with `bytes` at `base`, which begins at `entry`. Pages of zeros are left out.
pub fn executable(base: u32, bytes: &[u8], entry: u32) -> Vec<u8> {
    // Runs of pages that hold something.
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (page, content) in bytes.chunks(PAGE).enumerate() {
        if content.iter().all(|&byte| byte == 0) {
            continue;
        }
        let start = page * PAGE;
        match runs.last_mut().filter(|(_, end)| *end == start) {
            Some((_, end)) => *end = start + content.len(),
            None => runs.push((start, start + content.len())),
        }
    }
    let mut out = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const EXECUTABLE: u16 = 2;
    const RISCV: u16 = 243;
    out.extend([EXECUTABLE, RISCV].iter().flat_map(|half| half.to_le_bytes()));
    let words = [1, entry, EHDR as u32, 0, 0];
    out.extend(words.iter().flat_map(|word: &u32| word.to_le_bytes()));
    let halves = [EHDR as u16, PHDR as u16, runs.len() as u16, 40, 0, 0];
    out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    let first = EHDR + PHDR * runs.len();
    let mut offset = first;
    for &(start, end) in &runs {
        const LOAD: u32 = 1;
        const READ_WRITE_EXECUTE: u32 = 7;
        let (addr, size) = (base + start as u32, (end - start) as u32);
        let words = [LOAD, offset as u32, addr, addr, size, size, READ_WRITE_EXECUTE, 4];
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        offset += end - start;
    }
    for (start, end) in runs {
        out.extend_from_slice(&bytes[start..end]);
    }
    out
}

#[cfg(test)]
mod tests {
    use goblin::elf::Elf;

    use super::*;

    #[test]
    fn pages_with_something_in_them_are_loaded_where_they_belong() {
        let mut bytes = vec![0; 5 * PAGE];
        (bytes[PAGE], bytes[2 * PAGE], bytes[4 * PAGE + 8]) = (1, 2, 3);
        let file = executable(0x8000_0000, &bytes, 0x8000_1000);
        let elf = Elf::parse(&file).unwrap();
        assert_eq!((elf.header.e_machine, elf.entry), (243, 0x8000_1000));
        let mut loaded = vec![0; bytes.len()];
        for header in &elf.program_headers {
            let at = (header.p_paddr - 0x8000_0000) as usize;
            let content = &file[header.file_range()];
            loaded[at..at + content.len()].copy_from_slice(content);
        }
        assert!(loaded == bytes && elf.program_headers.len() == 2);
    }
}
