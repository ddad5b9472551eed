//! `--disk`: the name of an image or of one for each VM, and how it is used.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What becomes of what guests write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Access {
    /// It stays with the VM that wrote it, and is lost at its end.
    #[default]
    CopyOnWrite,
    /// Guests cannot write.
    ReadOnly,
    /// It goes back to the image, which is one VM's own.
    WriteBack,
}

/// The value of `--disk`: `FILE[:OPTION,...]`.
///
/// In the name `%d` is the VM's number, `%04d` has at least four digits, `%%` is a percent sign.
/// Only a list of known options counts as one, so most names with a colon are names; `:cow`, which
/// is the default, protects the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskSpec {
    pieces: Vec<Piece>,
    /// What becomes of what guests write.
    pub access: Access,
    /// Whether the file's bytes are the disk's, whatever they look like.
    pub raw: bool,
}

/// A part of a pattern for names.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Text(Vec<u8>),
    /// The number of the VM, with at least so many digits.
    Number(usize),
}

impl From<OsString> for DiskSpec {
    fn from(value: OsString) -> Self {
        let bytes = value.as_bytes();
        let whole = (bytes, Access::default(), false);
        let (name, access, raw) = split_options(bytes).unwrap_or(whole);
        Self { pieces: pieces(name), access, raw }
    }
}

impl From<&str> for DiskSpec {
    fn from(value: &str) -> Self {
        OsString::from(value).into()
    }
}

impl DiskSpec {
    /// Whether each VM has a disk of its own.
    pub fn is_pattern(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Number(_)))
    }

    /// Returns the path of a VM's image.
    pub fn path(&self, vm: u32) -> PathBuf {
        let mut path = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => path.extend_from_slice(text),
                Piece::Number(digits) => path.extend(format!("{vm:0digits$}").into_bytes()),
            }
        }
        OsString::from_vec(path).into()
    }
}

/// Splits the options from the end of a name; `None` if there are none.
fn split_options(bytes: &[u8]) -> Option<(&[u8], Access, bool)> {
    let colon = bytes.iter().rposition(|&b| b == b':')?;
    let (mut access, mut raw) = (None, false);
    for option in bytes[colon + 1..].split(|&b| b == b',') {
        let chosen = match option {
            b"cow" => Access::CopyOnWrite,
            b"ro" => Access::ReadOnly,
            b"rw" => Access::WriteBack,
            b"raw" if !raw => {
                raw = true;
                continue;
            }
            _ => return None,
        };
        if access.replace(chosen).is_some() {
            return None;
        }
    }
    Some((&bytes[..colon], access.unwrap_or_default(), raw))
}

fn pieces(mut name: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut text = Vec::new();
    while let Some((&first, rest)) = name.split_first() {
        name = rest;
        if first != b'%' {
            text.push(first);
        } else if let Some(rest) = rest.strip_prefix(b"%") {
            text.push(b'%');
            name = rest;
        } else if let Some((digits, rest)) = number(rest) {
            pieces.push(Piece::Text(std::mem::take(&mut text)));
            pieces.push(Piece::Number(digits));
            name = rest;
        } else {
            text.push(b'%');
        }
    }
    pieces.push(Piece::Text(text));
    pieces
}

/// Parses what follows the percent sign of a number: `d`, `02d` to `09d`. Returns its width, and
/// what follows it.
fn number(after: &[u8]) -> Option<(usize, &[u8])> {
    match after {
        [b'd', rest @ ..] => Some((1, rest)),
        [b'0', digit @ b'1'..=b'9', b'd', rest @ ..] => Some(((digit - b'0').into(), rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn path(spec: &str, vm: u32) -> String {
        DiskSpec::from(spec).path(vm).into_os_string().into_string().unwrap()
    }

    #[test]
    fn options_follow_the_last_colon() {
        for (spec, name, access, raw) in [
            ("a.img", "a.img", Access::CopyOnWrite, false),
            ("a.img:cow", "a.img", Access::CopyOnWrite, false),
            ("a.img:rw", "a.img", Access::WriteBack, false),
            ("a.img:ro,raw", "a.img", Access::ReadOnly, true),
            ("a.img:raw,rw", "a.img", Access::WriteBack, true),
            // A name that ends like an option, and those that only seem to.
            ("a:rw:cow", "a:rw", Access::CopyOnWrite, false),
            ("a:rw:rw", "a:rw", Access::WriteBack, false),
            ("pci-0000:00:1f.2", "pci-0000:00:1f.2", Access::CopyOnWrite, false),
            ("a:rw,ro", "a:rw,ro", Access::CopyOnWrite, false),
            ("a:raw,raw", "a:raw,raw", Access::CopyOnWrite, false),
            ("a:rwx", "a:rwx", Access::CopyOnWrite, false),
            ("a:", "a:", Access::CopyOnWrite, false),
            ("rw", "rw", Access::CopyOnWrite, false),
        ] {
            let parsed = DiskSpec::from(spec);
            assert_eq!((parsed.access, parsed.raw), (access, raw), "{spec}");
            assert_eq!(path(spec, 0), name, "{spec}");
        }
    }

    #[test]
    fn a_number_in_the_name_is_the_vms() {
        for (spec, name) in [
            ("img-%d.raw", Some("img-7.raw")),
            ("%03d/%d.img:rw", Some("007/7.img")),
            ("img-%01d", Some("img-7")),
            ("50%.img", None),
            ("img-%%d", None),
            ("img-%%%d", Some("img-%7")),
            ("%4d", None),
            ("%00d", None),
            ("%010d", None),
            ("%", None),
        ] {
            assert_eq!(DiskSpec::from(spec).is_pattern(), name.is_some(), "{spec}");
            if let Some(name) = name {
                assert_eq!(path(spec, 7), name);
            }
        }
        assert_eq!(path("50%.img", 7), "50%.img");
        assert_eq!(path("img-%%d%", 7), "img-%d%");
        assert_eq!(path("%02d", 123), "123");
    }

    #[test]
    fn names_need_not_be_text() {
        let spec = DiskSpec::from(OsString::from_vec(b"\xff%d:ro".to_vec()));
        assert_eq!(spec.path(3).as_os_str(), OsStr::from_bytes(b"\xff3"));
    }
}
