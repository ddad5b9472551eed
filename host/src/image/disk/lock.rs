//! Locks on disk images, so that nobody reads what another program is writing.
//!
//! They are QEMU's (its `block/file-posix.c`), so that QEMU's tools and pxvm see each other. A
//! program has shared locks on single bytes of the file: one for each way in which it uses the
//! image, and one for each way in which others must not. Then it looks whether others have the
//! counterparts. The bytes need not exist, and are not touched.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Byte of the first way to use an image.
const USED: i64 = 100;
/// Byte of the first way in which others must not use an image.
const UNSHARED: i64 = 200;

/// Way to use an image: its number for QEMU.
#[derive(Clone, Copy)]
enum Way {
    Read = 0,
    Write = 1,
    Resize = 3,
}

/// What others must not do while this program uses an image.
const REFUSED: [Way; 2] = [Way::Write, Way::Resize];

/// What came of an attempt to lock an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locked {
    /// It is locked until the file is closed.
    Yes,
    /// Another program uses it in a way that does not go with this one.
    InUse,
    /// The file system has no locks.
    Unsupported,
}

/// Locks an image for reading or, if it is `written`, for reading and writing.
pub fn lock(file: &File, written: bool) -> io::Result<Locked> {
    let ways: &[Way] = if written { &[Way::Read, Way::Write] } else { &[Way::Read] };
    let own = ways.iter().map(|&way| USED + way as i64);
    for byte in own.chain(REFUSED.map(|way| UNSHARED + way as i64)) {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(Locked::InUse),
            Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                return Ok(Locked::Unsupported);
            }
            Err(e) => return Err(e.into()),
        }
    }
    let others = ways.iter().map(|&way| UNSHARED + way as i64);
    for byte in others.chain(REFUSED.map(|way| USED + way as i64)) {
        let mut found = range(libc::F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
        if i32::from(found.l_type) != libc::F_UNLCK {
            return Ok(Locked::InUse);
        }
    }
    Ok(Locked::Yes)
}

/// Returns the description of a lock on one byte.
fn range(kind: i32, byte: i64) -> libc::flock {
    // The constants are small.
    #[allow(clippy::cast_possible_truncation, reason = "the types of C's constants")]
    let (l_type, l_whence) = (kind as i16, libc::SEEK_SET as i16);
    libc::flock { l_type, l_whence, l_start: byte, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;

    use super::*;

    #[test]
    fn many_may_read_and_one_may_write() {
        let file = NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second, third) = (open(), open(), open());
        assert_eq!(lock(&first, false).unwrap(), Locked::Yes);
        assert_eq!(lock(&second, false).unwrap(), Locked::Yes);
        assert_eq!(lock(&third, true).unwrap(), Locked::InUse);
        drop((first, second, third));

        let (writer, other) = (open(), open());
        assert_eq!(lock(&writer, true).unwrap(), Locked::Yes);
        assert_eq!(lock(&other, false).unwrap(), Locked::InUse);
        drop(other);
        assert_eq!(lock(&open(), true).unwrap(), Locked::InUse);
        drop(writer);
        assert_eq!(lock(&open(), true).unwrap(), Locked::Yes);
    }
}
