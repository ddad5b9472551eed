//! Initial root file systems: newc cpio archives, plain or compressed.

use std::path::Path;

use super::{ImageError, Problem, Role, compress, load};

const HEADER: usize = 110;
const NEWC: &[u8] = b"070701";
const NEWC_CRC: &[u8] = b"070702";
const TRAILER: &[u8] = b"TRAILER!!!\0";

/// The archive at `path`, decompressed.
///
/// Archives may follow one another, as the kernel allows; the last may be compressed (an early
/// archive with firmware or microcode in front of the real one).
pub fn initrd(path: &Path) -> Result<Vec<u8>, ImageError> {
    load(Role::Initrd, path, parse)
}

fn parse(bytes: Vec<u8>) -> Result<Vec<u8>, Problem> {
    let mut out = compress::expand(bytes)?;
    let mut at = 0;
    loop {
        at = archive_end(&out, at)?;
        // Zeros pad archives to any alignment.
        at += out.iter().skip(at).take_while(|&&b| b == 0).count();
        let Some(rest) = out.get(at..).filter(|r| !r.is_empty()) else { return Ok(out) };
        if let Some(format) = compress::detect(rest)? {
            let tail = compress::decompress(format, rest)?;
            out.truncate(at);
            out.resize(at.next_multiple_of(4), 0);
            at = out.len();
            out.extend(tail);
        }
    }
}

/// Walks one archive and returns where it ends.
fn archive_end(bytes: &[u8], mut at: usize) -> Result<usize, Problem> {
    let first = at;
    loop {
        let Some(header) = bytes.get(at..at + HEADER) else {
            return Err(match at {
                0 => Problem::Format("not a cpio archive (newc), plain, gzip, xz or zstd".into()),
                _ => Problem::Truncated("the cpio archive ends before its trailer".into()),
            });
        };
        if !header.starts_with(NEWC) && !header.starts_with(NEWC_CRC) {
            return Err(Problem::Format(match at {
                0 => "not a cpio archive (newc), plain, gzip, xz or zstd".into(),
                _ if at == first => format!("unknown data at offset {at:#x}, after the archive"),
                _ => format!("the cpio archive is damaged at offset {at:#x}"),
            }));
        }
        let size = hex(header, 54).ok_or_else(|| damaged(at))?;
        let name_len = hex(header, 94).ok_or_else(|| damaged(at))?;
        let name_at = at + HEADER;
        let data_at = (name_at + name_len).next_multiple_of(4);
        let name = bytes
            .get(name_at..name_at + name_len)
            .ok_or_else(|| Problem::Truncated("the cpio archive ends within a name".into()))?;
        if name == TRAILER {
            return Ok(data_at.min(bytes.len()));
        }
        if data_at + size > bytes.len() {
            return Err(Problem::Truncated(format!(
                "the cpio archive ends within `{}`",
                String::from_utf8_lossy(name).trim_end_matches('\0').escape_debug()
            )));
        }
        at = (data_at + size).next_multiple_of(4);
    }
}

fn damaged(at: usize) -> Problem {
    Problem::Format(format!("the cpio archive is damaged at offset {at:#x}"))
}

/// An eight-digit hexadecimal field.
fn hex(header: &[u8], at: usize) -> Option<usize> {
    let digits = std::str::from_utf8(header.get(at..at + 8)?).ok()?;
    u32::from_str_radix(digits, 16).ok().map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::image::testing::damage;

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut out = NEWC.to_vec();
        let mut fields = [0; 13];
        (fields[6], fields[11]) = (data.len(), name.len() + 1);
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

    fn archive() -> Vec<u8> {
        [entry("init", b"#!/bin/sh\n"), entry("TRAILER!!!", b"")].concat()
    }

    #[test]
    fn an_archive_is_taken_as_it_is() {
        assert_eq!(parse(archive()).unwrap(), archive());
        let padded = [archive(), vec![0; 300]].concat();
        assert_eq!(parse(padded.clone()).unwrap(), padded);
    }

    #[test]
    fn a_compressed_archive_may_follow_a_plain_one() {
        let mut gz = flate2::write::GzEncoder::new(archive(), flate2::Compression::fast());
        gz.write_all(&archive()).unwrap();
        let expected = [archive(), archive()].concat();
        assert_eq!(parse(gz.finish().unwrap()).unwrap(), expected);
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let refused = |bytes: Vec<u8>| parse(bytes).unwrap_err().to_string();
        assert!(refused(vec![7; 500]).contains("not a cpio"));
        assert!(refused(entry("init", b"x")).contains("trailer"));
        assert!(refused(archive()[..130].to_vec()).contains("ends"));
        assert!(refused([archive(), vec![1; 200]].concat()).contains("after the archive"));
    }

    #[test]
    fn damaged_archives_never_panic() {
        damage(&archive(), 20_000, |bytes| drop(parse(bytes)));
    }
}
