//! Build attributes of RISC-V ELF files: the extensions for which the code was compiled.

/// Attribute with the target architecture, such as `rv32i2p1_m2p0_zicsr2p0`.
const TAG_ARCH: u64 = 5;
/// Kind of a list of attributes: those of the whole file.
const TAG_FILE: u64 = 1;
/// First byte of the section: version of the format.
const FORMAT: u8 = b'A';
const VENDOR: &[u8] = b"riscv";

/// Extensions that the machine has, as compilers name them.
const HAS: [&str; 13] = [
    "i",
    "m",
    "a",
    "g",
    "zicsr",
    "zifencei",
    "zicntr",
    "zihpm",
    "zmmul",
    "zaamo",
    "zalrsc",
    "zihintpause",
    "zihintntl",
];

/// Extensions that a compiler uses for floating-point values only. Programs compiled for `rv32g`
/// that have no such values run all the same; riscv-tests are such.
const FLOAT: [&str; 2] = ["f", "d"];

/// Returns the target architecture in a section of build attributes, if it states one. Malformed
/// sections state none.
pub fn arch(section: &[u8]) -> Option<&str> {
    let mut rest = section.strip_prefix(&[FORMAT])?;
    while !rest.is_empty() {
        let vendor = sized(&mut rest, 0)?;
        let Some(mut lists) = vendor.strip_prefix(VENDOR).and_then(|v| v.strip_prefix(&[0])) else {
            continue;
        };
        while !lists.is_empty() {
            let mut list = lists;
            let kind = number(&mut list)?;
            let tag = lists.len() - list.len();
            let list = sized(&mut lists, tag)?;
            if let (TAG_FILE, Some(arch)) = (kind, find(list, TAG_ARCH)) {
                return Some(arch);
            }
        }
    }
    None
}

/// Takes a part of `rest` that states its length, itself included, in the word at `at`. Returns what
/// follows that word.
fn sized<'a>(rest: &mut &'a [u8], at: usize) -> Option<&'a [u8]> {
    let head = at.checked_add(4)?;
    let len = u32::from_le_bytes(rest.get(at..head)?.try_into().ok()?) as usize;
    let (part, more) = rest.split_at_checked(len)?;
    *rest = more;
    part.get(head..)
}

/// Returns the text of an attribute in a list of attributes.
fn find(mut list: &[u8], wanted: u64) -> Option<&str> {
    while !list.is_empty() {
        let tag = number(&mut list)?;
        // Odd attributes are texts that end in a zero, even ones numbers.
        if tag & 1 == 0 {
            number(&mut list)?;
            continue;
        }
        let end = list.iter().position(|&byte| byte == 0)?;
        let text = &list[..end];
        list = &list[end + 1..];
        if tag == wanted {
            return std::str::from_utf8(text).ok();
        }
    }
    None
}

/// Takes a number in the format ULEB128.
fn number(list: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = list.split_first()?;
        *list = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Returns the extensions of an architecture that the machine lacks.
pub fn lacks(arch: &str) -> Vec<&str> {
    let known = |name: &&str| HAS.contains(name) || FLOAT.contains(name);
    extensions(arch).into_iter().filter(|name| !known(name)).collect()
}

/// Returns the names in an architecture: letters, and longer names behind underscores, each with a
/// version or without.
fn extensions(arch: &str) -> Vec<&str> {
    let arch = arch.strip_prefix("rv32").or_else(|| arch.strip_prefix("rv64")).unwrap_or(arch);
    let mut names = Vec::new();
    for mut part in arch.split('_') {
        while let Some(first) = part.chars().next() {
            let long = matches!(first, 'z' | 's' | 'x');
            let end = if long { part.len() } else { first.len_utf8() };
            let (name, rest) = part.split_at(end);
            names.push(if long { unversioned(name) } else { name });
            part = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            // The minor version is behind a `p`, which is an extension's letter, too.
            let minor = part.strip_prefix('p').filter(|_| part.len() < rest.len());
            if let Some(minor) = minor.filter(|m| m.starts_with(|c: char| c.is_ascii_digit())) {
                part = minor.trim_start_matches(|c: char| c.is_ascii_digit());
            }
        }
    }
    names
}

/// Returns the name of `zicsr2p0`.
fn unversioned(name: &str) -> &str {
    let digit = |c: char| c.is_ascii_digit();
    let major = name.trim_end_matches(digit).strip_suffix('p').filter(|_| name.ends_with(digit));
    match major {
        Some(major) if major.ends_with(digit) => major.trim_end_matches(digit),
        _ => name,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::testing::damage;

    /// Returns a section with an attribute of another vendor, one of another kind, a number, and
    /// the architecture.
    pub fn section(arch: &str) -> Vec<u8> {
        let sized = |head: &[u8], body: &[u8]| {
            let len = (head.len() + 4 + body.len()) as u32;
            [head, &len.to_le_bytes(), body].concat()
        };
        let texts = [b"\x04\x90\x01\x05", arch.as_bytes(), b"\0"].concat();
        let lists = [b"riscv\0", &sized(&[2], b"\x05rv64\0")[..], &sized(&[1], &texts)].concat();
        [b"A", &sized(&[], b"other\0junk")[..], &sized(&[], &lists)].concat()
    }

    #[test]
    fn the_architecture_is_found_among_other_attributes() {
        assert_eq!(arch(&section("rv32i2p1_m2p0")), Some("rv32i2p1_m2p0"));
        assert_eq!(arch(b""), None);
        assert_eq!(arch(b"B"), None);
    }

    #[test]
    fn what_the_machine_lacks_is_named() {
        for (arch, missing) in [
            ("rv32i2p1_m2p0_a2p1_zicsr2p0_zifencei2p0_zmmul1p0_zaamo1p0_zalrsc1p0", &[][..]),
            ("rv32i2p1_m2p0_a2p1_f2p2_d2p2_zicsr2p0", &[]),
            ("rv32ima", &[]),
            ("rv32imac", &["c"]),
            ("rv32i2p1m2p0a2p1c2p0v1p0", &["c", "v"]),
            (
                "rv32i2p1_m2p0_zba1p0_zbb1p0_zve32x1p0_zvl32b1p0",
                &["zba", "zbb", "zve32x", "zvl32b"],
            ),
            ("rv32i_p0p2_xtheadba", &["p", "xtheadba"]),
            ("rv32e1p9", &["e"]),
            ("rv32i\u{e4}", &["\u{e4}"]),
        ] {
            assert_eq!(lacks(arch), missing, "{arch}");
        }
    }

    #[test]
    fn damaged_sections_never_panic() {
        damage(&section("rv32i2p1_m2p0_zba1p0"), 20_000, |bytes| {
            arch(&bytes).map(lacks);
        });
    }
}
