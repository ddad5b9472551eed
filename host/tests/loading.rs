//! Tests of programs that lie in memory in unusual ways: `pxvm run` and `pxvm boot` load them alike.
//! There is no guest image.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;

    use pxvm_tests::asm::{Asm, reg::*};
    use tempfile::TempDir;

    use super::common::{pxvm, run};

    const RAM: u32 = 0x8000_0000;
    const FINISHER: u32 = 0x10_0000;
    const PASS: u32 = 0x5555;
    const FAIL: u32 = 0x3333;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Ends the machine: well, if two registers are equal.
    fn end_well_if_equal(asm: &mut Asm, a: u32, b: u32) {
        let failed = asm.label();
        asm.bne(a, b, failed).store_li(FINISHER, PASS);
        asm.place(failed).store_li(FINISHER, FAIL);
        let here = asm.mark();
        asm.j(here);
    }

    /// Returns an ELF file with these program headers (type, offset, address, sizes in file and
    /// memory) and contents.
    fn elf(kind: u16, entry: u32, headers: &[[u32; 5]], contents: &[u8]) -> Vec<u8> {
        const RISCV: u16 = 243;
        let mut out = b"\x7fELF\x01\x01\x01".to_vec();
        out.resize(16, 0);
        out.extend([kind, RISCV].iter().flat_map(|half| half.to_le_bytes()));
        out.extend(bytes(&[1, entry, 52, 0, 0]));
        let halves = [52, 32, headers.len() as u16, 40, 0, 0];
        out.extend(halves.iter().flat_map(|half: &u16| half.to_le_bytes()));
        for &[kind, offset, addr, file, memory] in headers {
            out.extend(bytes(&[kind, offset, addr, addr, file, memory, 7, 4]));
        }
        out.extend(contents);
        out
    }

    const EXECUTABLE: u16 = 2;
    const POSITION_INDEPENDENT: u16 = 3;
    const LOAD: u32 = 1;
    const DYNAMIC: u32 = 2;

    /// Returns what `gcc -nostdlib -Ttext=0x80000000` makes: the segment with the code begins with
    /// the file's headers, a page below RAM.
    fn with_headers_below_ram(code: &[u32]) -> Vec<u8> {
        let len = 0x1000 + 4 * code.len() as u32;
        let mut contents = vec![0; 0x1000 - 52 - 32];
        contents.extend(bytes(code));
        elf(EXECUTABLE, RAM, &[[LOAD, 0, RAM - 0x1000, len, len]], &contents)
    }

    /// Returns a position-independent executable, linked to 0, that compares a word which holds the
    /// address of its start with where it runs. The relocation is all that fills the word.
    fn position_independent() -> Vec<u8> {
        const WORD: i32 = 0x800;
        let code = Asm::build(0, |asm| {
            asm.auipc(T0, 0);
            asm.auipc(T1, 0);
            asm.lw(T1, WORD - 4, T1);
            end_well_if_equal(asm, T0, T1);
        });
        const RELATIVE: u32 = 3;
        let relocation = [WORD as u32, RELATIVE, 0];
        // DT_RELA, DT_RELASZ, DT_RELAENT, and the end.
        let dynamic = [7, 0x900, 8, 12, 9, 12, 0, 0];
        let mut contents = bytes(&code);
        contents.resize(0x900, 0);
        contents.extend(bytes(&relocation));
        contents.extend(bytes(&dynamic));
        let (first, len) = (52 + 2 * 32, contents.len() as u32);
        let headers = [[LOAD, first, 0, len, len], [DYNAMIC, first + 0x90c, 0x90c, 32, 32]];
        elf(POSITION_INDEPENDENT, 0, &headers, &contents)
    }

    /// Runs a program by `pxvm run`, and as firmware that starts alone: both must end well.
    fn ends_well(name: &str, file: &[u8]) {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join(name), file).unwrap();
        for args in [&["run"][..], &["boot", "--timeout", "100", "--firmware"]] {
            let mut command = pxvm(args.iter().chain(&[name]));
            command.current_dir(dir.path()).env("PXVM_CACHE", dir.path());
            let (code, stdout, stderr) = run(&mut command);
            assert_eq!(code, 0, "{args:?} {name}: {stdout}{stderr}");
        }
    }

    #[test]
    fn headers_below_memory_are_no_obstacle() {
        let code = Asm::build(RAM, |asm| {
            asm.auipc(T0, 0).li(T1, RAM);
            end_well_if_equal(asm, T0, T1);
        });
        ends_well("odd", &with_headers_below_ram(&code));
    }

    #[test]
    fn a_position_independent_executable_is_relocated() {
        ends_well("pie", &position_independent());
    }

    /// A kernel without a header finds itself where QEMU loads it, or where it is linked to.
    #[test]
    fn a_raw_kernel_starts_where_it_belongs() {
        let dir = TempDir::new().unwrap();
        for (format, at) in [("raw", RAM + (4 << 20)), ("raw@0x80200000", RAM + (2 << 20))] {
            let code = Asm::build(at, |asm| {
                asm.auipc(T0, 0).li(T1, at);
                end_well_if_equal(asm, T0, T1);
            });
            fs::write(dir.path().join("kernel"), bytes(&code)).unwrap();
            let args = format!("boot --timeout 100 --kernel kernel --kernel-format {format}");
            let mut command = pxvm(args.split_ascii_whitespace());
            command.current_dir(dir.path()).env("PXVM_CACHE", dir.path());
            let (exit, stdout, stderr) = run(&mut command);
            assert_eq!(exit, 0, "{format}: {stdout}{stderr}");
        }
    }

    /// The tree of firmware that starts alone names no root file system, and a kernel for M-mode is
    /// told from others.
    #[test]
    fn what_a_linux_without_mmu_is_told_and_how_it_is_started() {
        let dir = TempDir::new().unwrap();
        let mut image = bytes(&[0x6f]);
        image.resize(0x1000, 0);
        // Load offset 0, and the size.
        image[0x11] = 0x10;
        image[0x38..0x3c].copy_from_slice(b"RSC\x05");
        fs::write(dir.path().join("Image"), image).unwrap();
        let dtb = |option| {
            let mut command = pxvm(["dtb", option, "Image"]);
            run(command.current_dir(dir.path()).env("PXVM_CACHE", dir.path()))
        };
        let (code, tree, stderr) = dtb("--firmware");
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(tree.contains("bootargs = \"console=ttyS0\";"), "{tree}");
        let (code, _, stderr) = dtb("--kernel");
        assert!(code == 0 && stderr.contains("is --firmware, without --kernel"), "{stderr}");
    }

    /// M-mode code larger than the 4 MiB up to where a kernel would lie, as a Linux without an MMU.
    #[test]
    fn large_firmware_starts() {
        let end = RAM + (5 << 20);
        let mut file = bytes(&Asm::build(RAM, |asm| {
            asm.li(T0, end - 4).lw(T0, 0, T0).li(T1, 7);
            end_well_if_equal(asm, T0, T1);
        }));
        file.resize((5 << 20) - 4, 0);
        file.extend(7u32.to_le_bytes());
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("large"), file).unwrap();
        let mut command = pxvm(["boot", "--timeout", "100", "--firmware", "large"]);
        command.current_dir(dir.path()).env("PXVM_CACHE", dir.path());
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!(code, 0, "{stdout}{stderr}");
    }
}
