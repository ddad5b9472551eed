//! Decompression on the host, so that guests need no decompressor.

use std::fmt;
use std::io::{self, Read};

use super::{LIMIT, Problem};

/// A compressed format, told by its first bytes.
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

const UNSUPPORTED: [(&[u8], &str); 4] = [
    (b"BZh", "bzip2"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x89LZO", "lzo"),
];

/// The compression of `bytes`, if any.
pub fn detect(bytes: &[u8]) -> Result<Option<Format>, Problem> {
    let known: [(&[u8], Format); 3] = [
        (b"\x1f\x8b", Format::Gzip),
        (b"\xfd7zXZ\0", Format::Xz),
        (b"\x28\xb5\x2f\xfd", Format::Zstd),
    ];
    if let Some(&(_, format)) = known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Ok(Some(format));
    }
    match UNSUPPORTED.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, name)) => Err(Problem::Compression(name)),
        None => Ok(None),
    }
}

/// Returns `bytes`, decompressed if they are compressed.
pub fn expand(bytes: Vec<u8>) -> Result<Vec<u8>, Problem> {
    match detect(&bytes)? {
        None => Ok(bytes),
        Some(format) => decompress(format, &bytes),
    }
}

/// Decompresses all of `bytes`, to at most [`LIMIT`].
pub fn decompress(format: Format, bytes: &[u8]) -> Result<Vec<u8>, Problem> {
    let result = match format {
        Format::Gzip => gather(flate2::read::MultiGzDecoder::new(bytes)),
        Format::Xz => gather(lzma_rust2::XzReader::new(bytes, true)),
        Format::Zstd => ruzstd::decoding::StreamingDecoder::new(bytes)
            .map_err(io::Error::other)
            .and_then(gather),
    };
    match result {
        Ok(out) if out.len() as u64 > LIMIT.0 => Err(Problem::TooLarge),
        Ok(out) if out.is_empty() => Err(Problem::Empty),
        Ok(out) => Ok(out),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Err(Problem::Truncated(format!("its {format} data ends too early")))
        }
        Err(source) => Err(Problem::Damaged { format, source }),
    }
}

fn gather(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(LIMIT.0 + 1).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::image::testing::damage;

    /// `TEXT` as written by gzip, xz and zstd.
    pub const TEXT: &[u8] = b"a guest, a guest, a guest\n";
    const XZ: &[u8] = include_bytes!("testdata/text.xz");
    const ZSTD: &[u8] = include_bytes!("testdata/text.zst");

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_format_expands_to_the_same() {
        for packed in [gzip(TEXT), XZ.to_vec(), ZSTD.to_vec(), TEXT.to_vec()] {
            assert_eq!(expand(packed).unwrap(), TEXT);
        }
    }

    #[test]
    fn formats_we_lack_are_named() {
        let error = expand(b"BZh91AY".to_vec()).unwrap_err();
        assert!(error.to_string().contains("bzip2"), "{error}");
    }

    #[test]
    fn a_truncated_stream_is_refused() {
        for packed in [gzip(TEXT), XZ.to_vec(), ZSTD.to_vec()] {
            let half = packed[..packed.len() / 2].to_vec();
            assert!(expand(half).is_err());
        }
    }

    #[test]
    fn damaged_streams_never_panic() {
        for packed in [gzip(TEXT), XZ.to_vec(), ZSTD.to_vec()] {
            damage(&packed, 500, |bytes| drop(expand(bytes)));
        }
    }
}
