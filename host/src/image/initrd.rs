//! Initial root file systems: newc cpio archives, plain or compressed.

use std::path::Path;

use super::{ImageError, LIMIT, Problem, Role, compress, load};

const HEADER: usize = 110;
const NEWC: &[u8] = b"070701";
const NEWC_CRC: &[u8] = b"070702";
const TRAILER: &[u8] = b"TRAILER!!!";
/// Archives begin at multiples of this, and so do headers and data in them.
const ALIGN: usize = 4;

/// Returns the archives in the file at `path`, decompressed.
///
/// The file is what Linux takes (Documentation/driver-api/early-userspace/buffer-format.rst):
/// zeros, archives and compressed archives in any order.
pub fn initrd(path: &Path) -> Result<Vec<u8>, ImageError> {
    load(Role::Initrd, path, |bytes| parse(&bytes))
}

fn parse(bytes: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::new();
    collect(bytes, true, &mut out)?;
    if out.is_empty() {
        Err(Problem::Format("there is no cpio archive in it".into()))
    } else {
        Ok(out)
    }
}

/// Puts the archives in `bytes` at the end of `out`. What a compressed archive expands to is not
/// compressed once more.
fn collect(bytes: &[u8], compressed: bool, out: &mut Vec<u8>) -> Result<(), Problem> {
    let mut rest = bytes;
    loop {
        rest = compress::without_leading_zeros(rest);
        let at = bytes.len() - rest.len();
        if rest.is_empty() {
            return Ok(());
        }
        if rest.starts_with(b"0") {
            let (archive, behind) = rest.split_at(archive_len(rest, at)?);
            out.extend(archive);
            out.resize(out.len().next_multiple_of(ALIGN), 0);
            rest = behind;
        } else if let (Some(format), true) = (compress::detect(rest)?, compressed) {
            let room = LIMIT.0.saturating_sub(out.len() as u64);
            let (archives, behind) = compress::decompress(format, rest, room)?;
            collect(&archives, false, out)?;
            rest = behind;
        } else {
            return Err(Problem::Format(match at {
                0 => "not a cpio archive (newc), plain, gzip, xz or zstd".into(),
                _ => format!("unknown data at offset {at:#x}, where an archive could begin"),
            }));
        }
        if out.len() as u64 > LIMIT.0 {
            return Err(Problem::TooLarge);
        }
    }
}

/// Returns the length of the archive at the start of `bytes`, which are at `offset` in the file.
/// The archive ends with its trailer, or with `bytes`.
fn archive_len(bytes: &[u8], offset: usize) -> Result<usize, Problem> {
    let mut at = 0;
    while at < bytes.len() {
        let damaged = || {
            let at = offset + at;
            Problem::Format(format!("the cpio archive is damaged at offset {at:#x}"))
        };
        let header = bytes
            .get(at..at + HEADER)
            .ok_or_else(|| Problem::Truncated("the cpio archive ends within a header".into()))?;
        if header.starts_with(b"070707") {
            return Err(Problem::Format("an old cpio archive; make it with `cpio -H newc`".into()));
        }
        if !header.starts_with(NEWC) && !header.starts_with(NEWC_CRC) {
            return Err(damaged());
        }
        let size = hex(header, 54).ok_or_else(damaged)?;
        let name_len = hex(header, 94).ok_or_else(damaged)?;
        let name_at = at + HEADER;
        let name = bytes
            .get(name_at..name_at + name_len)
            .ok_or_else(|| Problem::Truncated("the cpio archive ends within a name".into()))?;
        let name = name.split(|&b| b == 0).next().unwrap_or_default();
        if name == TRAILER {
            return Ok(name_at + name_len);
        }
        let data_at = (name_at + name_len).next_multiple_of(ALIGN);
        if data_at + size > bytes.len() {
            return Err(Problem::Truncated(format!(
                "the cpio archive ends within `{}`",
                String::from_utf8_lossy(name).escape_debug()
            )));
        }
        at = (data_at + size).next_multiple_of(ALIGN);
    }
    Ok(bytes.len())
}

/// Returns the value of an eight-digit hexadecimal field.
fn hex(header: &[u8], at: usize) -> Option<usize> {
    let digits = std::str::from_utf8(header.get(at..at + 8)?).ok()?;
    u32::from_str_radix(digits, 16).ok().map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::compress::tests::{SKIPPABLE, gzip, zstd};
    use crate::image::testing::damage;

    /// `archive("a")`, compressed by xz.
    const XZ: &[u8] = include_bytes!("testdata/archive.xz");

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut out = NEWC.to_vec();
        let mut fields = [0; 13];
        (fields[1], fields[6], fields[11]) = (0o100_644, data.len(), name.len() + 1);
        for field in fields {
            out.extend(format!("{field:08X}").bytes());
        }
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn archive(name: &str) -> Vec<u8> {
        [entry(name, b"#!/bin/sh\n"), entry("TRAILER!!!", b"")].concat()
    }

    #[test]
    fn an_archive_is_taken_as_it_is() {
        assert_eq!(parse(&archive("a")).unwrap(), archive("a"));
    }

    #[test]
    fn zeros_archives_and_compressed_archives_come_in_any_order() {
        let [a, b] = ["a", "b"].map(archive);
        let both = [&a[..], &b].concat();
        let zeros = |n| vec![0; n];
        for (pieces, expected) in [
            (vec![a.clone(), zeros(300)], &a),
            (vec![zeros(512), a.clone()], &a),
            (vec![zeros(3), gzip(&a), zeros(5)], &a),
            (vec![a.clone(), b.clone()], &both),
            (vec![a.clone(), zeros(4), gzip(&b)], &both),
            (vec![gzip(&a), b.clone()], &both),
            (vec![gzip(&a), zeros(2), b.clone()], &both),
            (vec![gzip(&a), gzip(&b), zeros(1)], &both),
            (vec![gzip(&[&zeros(8)[..], &a, &zeros(12), &b, &zeros(3)].concat())], &both),
            (vec![XZ.to_vec(), zeros(4), gzip(&b), zeros(9)], &both),
            (vec![XZ.to_vec(), zstd(&b)], &both),
            (vec![SKIPPABLE.to_vec(), zstd(&a), SKIPPABLE.to_vec(), zstd(&b)], &both),
            // One archive in two frames.
            (vec![zstd(&both[..99]), zstd(&both[99..])], &both),
            // Neither archive ends at a multiple of four.
            (vec![gzip(&a[..a.len() - 3]), b[..b.len() - 3].to_vec()], &both),
        ] {
            assert_eq!(&parse(&pieces.concat()).unwrap(), expected, "{pieces:x?}");
        }
    }

    #[test]
    fn a_trailer_may_be_missing_and_longer_than_its_name() {
        let open = entry("a", b"#!/bin/sh\n");
        assert_eq!(parse(&open).unwrap(), open);
        let long = [&open[..], &entry("TRAILER!!!\0\0", b""), &[7; 200]].concat();
        let refused = parse(&long).unwrap_err().to_string();
        assert!(refused.contains("where an archive could begin"), "{refused}");
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let refused = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        let archive = archive("init");
        assert!(refused(&[7; 500]).contains("not a cpio"));
        assert!(refused(&[0; 500]).contains("no cpio archive"));
        assert!(refused(&gzip(b"")).contains("no cpio archive"));
        assert!(refused(&archive[..130]).contains("ends"));
        assert!(refused(&[&archive[..], &[1; 200]].concat()).contains("unknown data at offset 0x"));
        assert!(refused(&[&archive[..], b"BZh91AY"].concat()).contains("bzip2"));
        assert!(refused(&[&gzip(&archive)[..], b"more"].concat()).contains("unknown data"));
        assert!(refused(&gzip(&gzip(&archive))).contains("not a cpio"));
        assert!(refused(&b"070707".repeat(20)).contains("-H newc"));
    }

    #[test]
    fn damaged_archives_never_panic() {
        let pieces = [&archive("a")[..], &[0; 3], &gzip(&archive("b")), &zstd(&archive("c"))];
        damage(&archive("init"), 20_000, |bytes| drop(parse(&bytes)));
        damage(&pieces.concat(), 5_000, |bytes| drop(parse(&bytes)));
    }
}
