//! Tests of the cache of guest images: every user of it detects damage.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use pxvm::image::cache;
    use pxvm_tests::needs;
    use tempfile::TempDir;

    use super::common::{has_image, pxvm, run};

    const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../buildroot/build");
    const BOOT: [&str; 5] = ["boot", "--until", "ready", "--timeout", "100"];

    /// Damages the image in a folder.
    type Damage = fn(&Path);

    /// Damages, and the messages about them.
    const DAMAGES: [(Damage, &str); 8] = [
        (|dir| flip(&dir.join("Image")), "Image is not the file that was built"),
        (|dir| flip(&dir.join("rootfs.cramfs")), "rootfs.cramfs is not the file that was built"),
        (
            |dir| cut(&dir.join("rootfs.cramfs"), 4096),
            "rootfs.cramfs is not the file that was built",
        ),
        (|dir| remove(&dir.join("rootfs.cramfs")), "rootfs.cramfs is missing"),
        (|dir| remove(&dir.join("manifest.txt")), "manifest.txt is missing"),
        (
            |dir| keep_lines(&dir.join("manifest.txt"), -2),
            "manifest.txt does not list rootfs.cramfs",
        ),
        (|dir| keep_lines(&dir.join("manifest.txt"), 0), "manifest.txt does not list Image"),
        // In the last line, behind the hash.
        (|dir| cut(&dir.join("manifest.txt"), 17), "manifest.txt is cut short or overwritten"),
    ];

    fn flip(path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    fn cut(path: &Path, bytes: usize) {
        let all = fs::read(path).unwrap();
        fs::write(path, &all[..all.len() - bytes]).unwrap();
    }

    fn remove(path: &Path) {
        fs::remove_file(path).unwrap();
    }

    /// Keeps the first `count` lines of a text, or all but the last `-count` if it is negative.
    fn keep_lines(path: &Path, count: isize) {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.split_inclusive('\n');
        let kept =
            if count < 0 { lines.clone().count() - count.unsigned_abs() } else { count as usize };
        fs::write(path, lines.take(kept).collect::<String>()).unwrap();
    }

    /// A cache of its own with a copy of the default image, named as `buildroot/build` would.
    struct Cache {
        dir: TempDir,
        image: PathBuf,
    }

    impl Cache {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (code, hash, why) = run(Command::new(BUILD).arg("--print-hash"));
            assert_eq!(code, 0, "{why}");
            let image = dir.path().join("images").join(hash.trim());
            fs::create_dir_all(&image).unwrap();
            let default = cache::images().join("default");
            for name in cache::names(&default).unwrap() {
                fs::copy(default.join(&name), image.join(&name)).unwrap();
            }
            symlink(hash.trim(), dir.path().join("images/default")).unwrap();
            Self { dir, image }
        }

        fn pxvm(&self, args: &[&str]) -> (i32, String, String) {
            run(pxvm(args).env("PXVM_CACHE", self.dir.path()))
        }

        fn build(&self, args: &[&str]) -> (i32, String, String) {
            run(Command::new(BUILD).args(args).env("PXVM_CACHE", self.dir.path()))
        }
    }

    #[test]
    fn a_whole_image_is_one_for_all() {
        if !has_image() {
            return;
        }
        let cache = Cache::new();
        let (code, said, why) = cache.pxvm(&["doctor"]);
        assert!(code == 0 && said.contains("ok  guest image"), "{said}{why}");
        let (code, said, why) = cache.pxvm(&["images"]);
        assert!(code == 0 && !said.contains("damaged"), "{said}{why}");
        let (code, said, why) = cache.pxvm(&BOOT);
        assert_eq!(code, 0, "{said}{why}");
        let (code, said, why) = cache.build(&["--check"]);
        assert!(code == 0 && said.contains("is built"), "{said}{why}");
    }

    #[test]
    fn damage_is_seen_by_boot_doctor_images_and_the_build() {
        if !has_image() {
            return;
        }
        for (damage, expected) in DAMAGES {
            let cache = Cache::new();
            damage(&cache.image);
            let (code, _, why) = cache.pxvm(&BOOT);
            let refused = code == 2 && why.contains("is damaged") && why.contains(expected);
            assert!(refused && why.contains("run `buildroot/build`"), "{expected}: {code} {why}");
            let (_, said, _) = cache.pxvm(&["doctor"]);
            let told = said.contains("--  guest image") && said.contains(expected);
            assert!(told && said.contains("run `buildroot/build`"), "{expected}: {said}");
            let (_, said, _) = cache.pxvm(&["images"]);
            assert!(said.contains("damaged: ") && said.contains(expected), "{expected}: {said}");
            let (code, _, why) = cache.build(&["--check"]);
            assert!(code == 1 && why.contains(expected), "{expected}: {code} {why}");
        }
    }

    #[test]
    fn what_boot_does_not_read_is_seen_by_doctor_and_the_build() {
        if !has_image() {
            return;
        }
        let cache = Cache::new();
        flip(&cache.image.join("vmlinux"));
        assert_eq!(cache.pxvm(&BOOT).0, 0);
        let (_, said, _) = cache.pxvm(&["doctor"]);
        assert!(said.contains("vmlinux is not the file that was built"), "{said}");
        let (code, _, why) = cache.build(&["--check"]);
        assert!(code == 1 && why.contains("vmlinux is not the file that was built"), "{why}");
    }

    #[test]
    fn the_build_makes_a_damaged_image_again() {
        if !has_image() {
            return;
        }
        // From the cached build steps, so that nothing is compiled.
        let (code, _, why) = run(Command::new(BUILD).arg("--check"));
        let built = (code == 0).then_some(()).ok_or(why);
        let Some(()) = needs::found("image of this checkout", built) else { return };
        for (damage, expected) in DAMAGES {
            let cache = Cache::new();
            let steps = cache.dir.path().join("steps");
            let copied =
                run(Command::new("cp").arg("-a").arg(cache::root().join("steps")).arg(&steps));
            assert_eq!(copied.0, 0, "{copied:?}");
            damage(&cache.image);
            let (code, said, why) = cache.build(&[]);
            assert_eq!(code, 0, "{expected}: {said}{why}");
            assert!(said.contains("is damaged") && said.contains(expected), "{said}{why}");
            let (code, said, why) = cache.build(&["--check"]);
            assert_eq!(code, 0, "{expected}: {said}{why}");
            assert!(cache::check(&cache.image).is_ok());
        }
    }
}
