//! What the user gives a guest, with the real kernel.

mod common;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::process::Command;
    use std::sync::Arc;
    use std::time::Duration;

    use pxvm::backend::cpu::CpuBackend;
    use pxvm::backend::{Backend, ClockSource, EventKind, Settings};
    use pxvm::console::ready::ReadyPattern;
    use pxvm::image::cache::default_image;
    use pxvm::machine::{BaseImage, Fleet, GuestOptions, assemble};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use tempfile::NamedTempFile;

    use super::common::{cpio, has_image, initrd_with, pxvm, run};

    fn boot(args: &str) -> Command {
        pxvm(["boot", "--timeout", "100"].into_iter().chain(args.split_ascii_whitespace()))
    }

    /// A file with these bytes.
    fn file(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// What vm0 says when it runs `script` instead of an init, and what `pxvm` says.
    fn says(args: &str, append: &str, script: &str) -> (String, String) {
        let initrd = initrd_with(&format!("{script}\npoweroff -f"));
        let append = format!("rdinit=/script {append}");
        let mut command = boot(args);
        command.arg("--initrd").arg(initrd.path()).args(["--append", &append]);
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!(code, 0, "{stdout}{stderr}");
        (stdout, stderr)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    /// The files that the tests' archives bring, found in the guest.
    const LIST: &str = "cd /; echo found: $(cat one two three a 2>/dev/null)\npoweroff -f";

    /// What [`LIST`] has found.
    fn found(console: &str) -> Option<&str> {
        console.lines().find_map(|line| line.trim_end().strip_prefix("found: "))
    }

    fn with_initrd(bytes: &[u8]) -> String {
        let initrd = file(bytes);
        let mut command = boot("--append rdinit=/script --clock instret --initrd");
        let (code, stdout, stderr) = run(command.arg(initrd.path()));
        assert_eq!(code, 0, "{stdout}{stderr}");
        found(&stdout).unwrap_or_else(|| panic!("it found nothing: {stdout}")).to_owned()
    }

    /// The same, but these very bytes are in the guest's memory: the kernel unpacks them.
    fn with_raw_initrd(bytes: &[u8]) -> String {
        let place = file(&cpio(&[("place", 0o100_644, &vec![1; bytes.len()])]));
        let options = GuestOptions {
            initrd: Some(place.path().into()),
            append: "rdinit=/script".into(),
            ..GuestOptions::default()
        };
        let mut fleet: Fleet = assemble(&options).unwrap();
        let plan = &mut fleet.plan;
        let at = plan.initrd.clone().expect("an initrd").start;
        let segment = plan.contents.iter_mut().find(|s| s.addr == at).expect("its place");
        (segment.bytes, segment.size) = (bytes.to_vec(), bytes.len() as u32);
        plan.initrd = Some(at..at + bytes.len() as u32);
        fleet.base =
            BaseImage::new(plan.kind.map().ram_base, plan.memory, &plan.contents, None, None);

        let settings = Settings {
            started: 1,
            threads: 1,
            clock: ClockSource::Instret,
            ready: ReadyPattern::new(ReadyPattern::DEFAULT).unwrap(),
            until_ready: false,
            wire: Arc::default(),
        };
        let backend = CpuBackend::start(fleet, settings).unwrap();
        let mut console = Vec::new();
        loop {
            let event = backend.events().recv_timeout(Duration::from_secs(90)).expect("an event");
            match event.kind {
                EventKind::Console(bytes) => console.extend(bytes),
                EventKind::Halted(_) => break,
                other => panic!("{other:?}: {}", String::from_utf8_lossy(&console)),
            }
        }
        let console = String::from_utf8_lossy(&console).into_owned();
        found(&console).unwrap_or_else(|| panic!("it found nothing: {console}")).to_owned()
    }

    #[test]
    fn initrds_in_several_pieces_are_what_they_are_to_linux() {
        if !has_image() {
            return;
        }
        let base = fs::read(initrd_with(LIST).path()).unwrap();
        let [one, two, three] = ["one", "two", "three"]
            .map(|name| cpio(&[(name, 0o100_644, format!("{name} ").as_bytes())]));
        let zeros = |n| vec![0; n];
        // The kernel of the image has gzip, so it is the referee of all these.
        for (pieces, expected) in [
            (vec![base.clone(), one.clone(), two.clone(), three.clone()], "one two three"),
            (vec![zeros(512), base.clone(), zeros(64), one.clone(), zeros(1000)], "one"),
            (vec![zeros(5), gzip(&base), zeros(3), gzip(&one), gzip(&two), zeros(7)], "one two"),
            (vec![gzip(&base), gzip(&[&one[..], &zeros(4), &two].concat())], "one two"),
            (vec![base.clone(), zeros(4), gzip(&one), gzip(&three)], "one three"),
        ] {
            let bytes = pieces.concat();
            assert_eq!(with_raw_initrd(&bytes), expected, "{} bytes", bytes.len());
            assert_eq!(with_initrd(&bytes), expected, "{} bytes", bytes.len());
        }
        // These it does not know. Here they are unpacked before it starts.
        let skip = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        let xz = include_bytes!("../src/image/testdata/archive.xz");
        for (pieces, expected) in [
            (vec![zstd(&base), zstd(&one), skip.to_vec(), zstd(&two), zeros(3)], "one two"),
            (vec![skip.to_vec(), zstd(&base[..999]), zstd(&base[999..]), zstd(&three)], "three"),
            (vec![xz.to_vec(), zeros(4), gzip(&base), xz.to_vec(), one.clone()], "one #!/bin/sh"),
        ] {
            let bytes = pieces.concat();
            assert_eq!(with_initrd(&bytes), expected, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn kernels_in_several_pieces_boot() {
        if !has_image() {
            return;
        }
        let image = fs::read(default_image().unwrap().kernel).unwrap();
        let (head, tail) = image.split_at(image.len() / 3);
        for kernel in [
            [gzip(head), gzip(tail), vec![0; 512]].concat(),
            [zstd(head), b"\x5f\x2a\x4d\x18\x01\0\0\0x".to_vec(), zstd(tail)].concat(),
        ] {
            let kernel = file(&kernel);
            let args = format!("--kernel {}", kernel.path().display());
            assert!(says(&args, "", "echo it is $((6*7))").0.contains("it is 42"));
        }
    }
}
