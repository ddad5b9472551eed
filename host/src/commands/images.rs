//! `pxvm images`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::printing;
use crate::cli::Images;
use crate::exit::{Code, Error};
use crate::image::cache;
use crate::report::print_json;
use crate::units::Size;

/// Digits of a hash that are shown.
const HASH_DIGITS: usize = 16;

#[derive(Debug, Serialize)]
struct Listing {
    folder: PathBuf,
    images: Vec<Image>,
}

#[derive(Debug, Serialize)]
struct Image {
    name: String,
    /// What the name is a link to.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<PathBuf>,
    default: bool,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Lists the images in the cache.
pub fn images(args: Images) -> Result<Code, Error> {
    let folder = cache::images();
    let images = list(&folder).map_err(|e| Error::io(format!("read {}", folder.display()), e))?;
    if args.json {
        print_json(&Listing { folder, images }).map_err(printing)?;
        return Ok(Code::Success);
    }
    if images.is_empty() {
        println!("{}", cache::missing());
    }
    for image in images {
        match &image.link {
            Some(target) => println!("{} -> {}", image.name, target.display()),
            None => println!("{}", image.name),
        }
        for file in &image.files {
            let hash = &file.sha256[..HASH_DIGITS];
            println!("  {:<20} {:>10}  {hash}", file.name, Size(file.bytes).to_string());
        }
    }
    Ok(Code::Success)
}

fn list(folder: &Path) -> io::Result<Vec<Image>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut images = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        // Hidden folders are builds under way.
        if !path.is_dir() || name.starts_with('.') {
            continue;
        }
        let files = files(&path)?;
        images.push(Image {
            link: fs::read_link(&path).ok(),
            default: name == "default",
            name,
            files,
        });
    }
    images.sort_by(|a, b| (!a.default, &a.name).cmp(&(!b.default, &b.name)));
    Ok(images)
}

fn files(folder: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.path().is_file() {
            continue;
        }
        let mut hash = Sha256::new();
        let bytes = io::copy(&mut fs::File::open(entry.path())?, &mut HashWriter(&mut hash))?;
        let sha256 = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        files.push(File { name: entry.file_name().to_string_lossy().into_owned(), bytes, sha256 });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_default_first_with_hashes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["abc", "default", ".tmp"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("Image"), b"").unwrap();
        }
        let images = list(dir.path()).unwrap();
        let names: Vec<_> = images.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["default", "abc"]);
        assert!(images[0].files[0].sha256.starts_with("e3b0c44298fc1c14"));
    }

    #[test]
    fn a_missing_cache_is_an_empty_one() {
        assert!(list(Path::new("/nonexistent/pxvm")).unwrap().is_empty());
    }
}
