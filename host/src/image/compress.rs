//! Decompression on the host, so that guests need no decompressor.

use std::fmt;
use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use super::{LIMIT, Problem};

/// A compression format, recognised by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        })
    }
}

const UNSUPPORTED: [(&[u8], &str); 5] = [
    (b"BZh", "bzip2"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO", "lzo"),
];

/// Returns the compression of `bytes`, if any.
pub fn detect(bytes: &[u8]) -> Result<Option<Format>, Problem> {
    let known: [(&[u8], Format); 3] = [
        (b"\x1f\x8b", Format::Gzip),
        (b"\xfd7zXZ\0", Format::Xz),
        (b"\x28\xb5\x2f\xfd", Format::Zstd),
    ];
    if let Some(&(_, format)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Ok(Some(format));
    }
    // A frame with something other than data, which decompressors skip (RFC 8878 section 3.1.2).
    if let Some([0x50..=0x5f, 0x2a, 0x4d, 0x18]) = bytes.first_chunk() {
        return Ok(Some(Format::Zstd));
    }
    match UNSUPPORTED.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, name)) => Err(Problem::Compression(name)),
        None => Ok(None),
    }
}

/// Returns `bytes`, decompressed if they are compressed. Zeros may follow.
pub fn expand(bytes: Vec<u8>) -> Result<Vec<u8>, Problem> {
    let Some(format) = detect(&bytes)? else { return Ok(bytes) };
    let (out, rest) = decompress(format, &bytes, LIMIT.0)?;
    let rest = without_leading_zeros(rest);
    if !rest.is_empty() {
        let at = bytes.len() - rest.len();
        return Err(Problem::Format(format!("unknown data at offset {at:#x}, after the {format}")));
    }
    if out.is_empty() { Err(Problem::Empty) } else { Ok(out) }
}

/// Decompresses the data of `format` at the start of `bytes`, to at most `limit` bytes. Returns
/// what they are, and what follows in `bytes`.
///
/// All three formats allow data in several pieces: members, streams, frames. They count as one,
/// also with zeros between them.
pub fn decompress(format: Format, bytes: &[u8], limit: u64) -> Result<(Vec<u8>, &[u8]), Problem> {
    let mut out = Vec::new();
    let mut rest = bytes;
    loop {
        rest = piece(format, rest, limit, &mut out).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                Problem::Truncated(format!("its {format} data ends too early"))
            } else {
                Problem::Damaged { format, source }
            }
        })?;
        if out.len() as u64 > limit {
            return Err(Problem::TooLarge);
        }
        let next = without_leading_zeros(rest);
        match detect(next) {
            Ok(Some(same)) if same == format => rest = next,
            _ => return Ok((out, rest)),
        }
    }
}

/// Decompresses one piece to the end of `out`, which may then have one byte more than `limit`, but
/// no more.
fn piece<'a>(
    format: Format,
    bytes: &'a [u8],
    limit: u64,
    out: &mut Vec<u8>,
) -> io::Result<&'a [u8]> {
    let room = (limit + 1).saturating_sub(out.len() as u64);
    match format {
        Format::Gzip => {
            let mut decoder = flate2::bufread::GzDecoder::new(bytes);
            decoder.by_ref().take(room).read_to_end(out)?;
            Ok(decoder.into_inner())
        }
        Format::Xz => {
            let mut decoder = lzma_rust2::XzReader::new(bytes, false);
            decoder.by_ref().take(room).read_to_end(out)?;
            Ok(decoder.into_inner())
        }
        Format::Zstd => frame(bytes, room, out),
    }
}

/// Decompresses a frame of Zstandard to the end of `out`.
fn frame<'a>(bytes: &'a [u8], room: u64, out: &mut Vec<u8>) -> io::Result<&'a [u8]> {
    let mut rest = bytes;
    // The window is part of what is decompressed, so it needs no limit of its own.
    let mut decoder = match StreamingDecoder::new_with_max_window_size(&mut rest, LIMIT.0) {
        Ok(decoder) => decoder,
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
            length,
            ..
        })) => return rest.get(length as usize..).ok_or(io::ErrorKind::UnexpectedEof.into()),
        Err(e) => return Err(io::Error::other(e)),
    };
    decoder.by_ref().take(room).read_to_end(out)?;
    let decoder = decoder.into_frame_decoder();
    // The decoder computes the checksum and leaves the comparison to us.
    let given = decoder.get_checksum_from_data();
    if decoder.is_finished() && given.is_some() && given != decoder.get_calculated_checksum() {
        return Err(io::Error::other("its checksum is wrong"));
    }
    Ok(rest)
}

/// Returns `bytes` from the first that is not zero.
pub fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|&&b| b == 0).count()..]
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;
    use crate::image::testing::damage;

    /// `TEXT` as written by gzip, xz and zstd.
    pub const TEXT: &[u8] = b"a guest, a guest, a guest\n";
    const XZ: &[u8] = include_bytes!("testdata/text.xz");
    const ZSTD: &[u8] = include_bytes!("testdata/text.zst");
    /// A frame that is to be skipped, with 5 bytes in it.
    pub const SKIPPABLE: &[u8] = b"\x5a\x2a\x4d\x18\x05\0\0\0\x28\xb5\x2f\xfd!";

    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    pub fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    /// `TEXT` in each format.
    fn packed() -> [Vec<u8>; 3] {
        [gzip(TEXT), XZ.to_vec(), ZSTD.to_vec()]
    }

    #[test]
    fn every_format_expands_to_the_same() {
        for packed in packed() {
            assert_eq!(expand(packed).unwrap(), TEXT);
        }
        assert_eq!(expand(TEXT.to_vec()).unwrap(), TEXT);
    }

    #[test]
    fn pieces_count_as_one_and_zeros_may_follow() {
        for packed in packed() {
            let padded = [&packed[..], &packed, &[0; 8], &packed, &[0; 600]].concat();
            assert_eq!(expand(padded).unwrap(), TEXT.repeat(3), "{packed:x?}");
            let behind = [&packed[..], &[0; 4], b"more"].concat();
            let refused = expand(behind).unwrap_err().to_string();
            assert!(refused.contains("unknown data at offset"), "{refused}");
        }
    }

    #[test]
    fn frames_to_skip_are_skipped_wherever_they_are() {
        let long = zstd(&TEXT.repeat(20_000));
        let several = [SKIPPABLE, ZSTD, SKIPPABLE, SKIPPABLE, &long, SKIPPABLE].concat();
        assert_eq!(expand(several.clone()).unwrap(), TEXT.repeat(20_001));
        let cut = several[..several.len() - 1].to_vec();
        assert!(matches!(expand(cut), Err(Problem::Truncated(_))));
    }

    #[test]
    fn a_wrong_checksum_is_damage() {
        for packed in [gzip(TEXT), ZSTD.to_vec()] {
            let mut wrong = packed.clone();
            // The last bytes: of the length in gzip, of the checksum in zstd.
            *wrong.last_mut().unwrap() ^= 1;
            assert!(matches!(expand(wrong), Err(Problem::Damaged { .. })), "{packed:x?}");
        }
    }

    #[test]
    fn the_limit_counts_all_pieces() {
        for packed in packed() {
            let format = detect(&packed).unwrap().unwrap();
            let twice = packed.repeat(2);
            let most = 2 * TEXT.len() as u64;
            assert_eq!(decompress(format, &twice, most).unwrap().0, TEXT.repeat(2));
            let refused = decompress(format, &twice, most - 1);
            assert!(matches!(refused, Err(Problem::TooLarge)), "{format}");
        }
    }

    #[test]
    fn formats_we_lack_are_named() {
        let error = expand(b"BZh91AY".to_vec()).unwrap_err();
        assert!(error.to_string().contains("bzip2"), "{error}");
    }

    #[test]
    fn a_truncated_stream_is_refused() {
        for packed in packed() {
            for len in 7..packed.len() {
                assert!(expand(packed[..len].to_vec()).is_err(), "{len} of {packed:x?}");
            }
        }
    }

    #[test]
    fn damaged_streams_never_panic() {
        for packed in packed() {
            damage(&packed, 500, |bytes| drop(expand(bytes)));
        }
    }
}
