//! Packet capture (`--pcap`): what VMs send and receive, as a pcapng file with one interface per VM
//! and timestamps in nanoseconds.
//!
//! Packets are recorded at the VM's network card, with the addresses that the guest sees, including
//! those that are dropped later. Recording never waits: a thread of its own writes, and packets
//! that it has no room for are left out of the file and counted. When the file can no longer be
//! written, a warning is printed and the capture ends; the fleet continues without it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriteError, PcapNgWriter};
use pcap_file::{DataLink, Endianness};
use rustix::fs::OFlags;

/// Packets that may wait for the file: at most about 12 MB.
const WAITING_MAX: usize = 8192;
/// Bytes that are written at once while packets wait.
const BATCH: usize = 64 << 10;

/// Direction of a packet as seen from the VM. The numbers are those of the file format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// To the VM.
    Inbound = 1,
    /// From the VM.
    Outbound = 2,
}

/// A packet at a VM's network card.
struct Record {
    interface: u32,
    /// Time since 1970.
    time: Duration,
    direction: Direction,
    bytes: Box<[u8]>,
}

enum Item {
    Packet(Record),
    End,
}

/// Records packets. Any thread may have a clone.
#[derive(Clone)]
pub struct Recorder {
    sender: Sender<Item>,
    /// Interface number of each VM; `None` if it is not recorded.
    interfaces: Arc<[Option<u32>]>,
    missed: Arc<AtomicU64>,
}

/// A running capture and its file.
pub struct Capture {
    recorder: Recorder,
    writer: JoinHandle<io::Result<u64>>,
}

/// Result of a capture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Packets in the file.
    pub written: u64,
    /// Packets that are missing in the file because writing was too slow.
    pub missed: u64,
}

/// Why a capture cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The path is a folder.
    #[error("--pcap {} is a folder; name a file", .0.display())]
    Folder(PathBuf),
    /// The file's folder does not exist.
    #[error("--pcap {}: there is no folder {}", path.display(), folder.display())]
    NoFolder {
        /// Path of the file.
        path: PathBuf,
        /// Path of the folder.
        folder: PathBuf,
    },
    /// The user has no right to write the file.
    #[error("--pcap {}: there is no right to write this file", .0.display())]
    Access(PathBuf),
    /// The file is a named pipe that no process reads.
    #[error("--pcap {}: nobody reads this pipe; start its reader first", .0.display())]
    NoReader(PathBuf),
    /// Any other reason.
    #[error("cannot write {}", path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

impl CaptureError {
    fn new(path: &Path, source: io::Error) -> Self {
        let (path, folder) = (path.to_owned(), path.parent().unwrap_or(path).to_owned());
        match source.kind() {
            ErrorKind::IsADirectory => Self::Folder(path),
            ErrorKind::NotFound | ErrorKind::NotADirectory if !folder.is_dir() => {
                Self::NoFolder { path, folder }
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::Access(path),
            _ => Self::Io { path, source },
        }
    }

    /// Whether the user named a file that cannot be used.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Io { .. })
    }
}

/// Opens the file at `path` without blocking if it is a named pipe; an error if no process reads
/// it. A blocking open would wait until one does. While this handle is open, the reader sees no end
/// of the file.
fn reader(path: &Path) -> io::Result<Option<File>> {
    let is_pipe = path.metadata().is_ok_and(|about| about.file_type().is_fifo());
    let mut options = File::options();
    options.write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    is_pipe.then(|| options.open(path)).transpose()
}

impl Capture {
    /// Starts a capture of the `chosen` VMs, in that order, out of `count`.
    pub fn create(path: &Path, chosen: &[u32], count: u32) -> Result<Self, CaptureError> {
        let _reader = reader(path).map_err(|_| CaptureError::NoReader(path.to_owned()))?;
        Self::begin(path, chosen, count).map_err(|error| CaptureError::new(path, error))
    }

    fn begin(path: &Path, chosen: &[u32], count: u32) -> io::Result<Self> {
        let mut blocks = Blocks::new(File::create(path)?)?;
        let mut interfaces = vec![None; count as usize];
        let mut next = 0;
        for &vm in chosen {
            if let Some(free @ None) = interfaces.get_mut(vm as usize) {
                blocks.interface(&format!("vm{vm}"))?;
                *free = Some(next);
                next += 1;
            }
        }
        // Flushed, so that readers that follow the file see its interfaces at once.
        blocks.flush()?;
        let (sender, items) = bounded(WAITING_MAX);
        let path = path.to_owned();
        let writer = move || {
            let result = write(&mut blocks, &items);
            if let Err(error) = &result {
                let (file, packets) = (path.display(), blocks.written);
                tracing::warn!("the capture {file} ends here, with {packets} packets: {error}");
            }
            result
        };
        let writer = thread::Builder::new().name("pcap".into()).spawn(writer)?;
        let recorder = Recorder { sender, interfaces: interfaces.into(), missed: Arc::default() };
        Ok(Self { recorder, writer })
    }

    /// Returns a recorder for those who pass packets on.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Writes the waiting packets and closes the file. An error was printed when it happened.
    pub fn finish(self) -> io::Result<Summary> {
        // Sending fails only when the writer has failed and ended.
        let _ = self.recorder.sender.send(Item::End);
        let written = self.writer.join().map_err(|_| io::Error::other("the writer panicked"))??;
        Ok(Summary { written, missed: self.recorder.missed.load(Ordering::Relaxed) })
    }
}

impl Recorder {
    /// Records a packet if its VM was chosen.
    pub fn record(&self, vm: u32, direction: Direction, packet: &[u8]) {
        let Some(Some(interface)) = self.interfaces.get(vm as usize).copied() else { return };
        if self.sender.is_full() {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let item = Item::Packet(Record { interface, time, direction, bytes: packet.into() });
        if let Err(TrySendError::Full(_)) = self.sender.try_send(item) {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes packets until the end, and flushes when there is nothing to write: the body of the
/// capture's thread. Returns the number of packets in the file.
fn write(blocks: &mut Blocks, items: &Receiver<Item>) -> io::Result<u64> {
    loop {
        let item = match items.try_recv() {
            Err(TryRecvError::Empty) => {
                blocks.flush()?;
                items.recv().unwrap_or(Item::End)
            }
            other => other.unwrap_or(Item::End),
        };
        match item {
            Item::Packet(record) => blocks.packet(&record)?,
            Item::End => return blocks.flush().map(|()| blocks.written),
        }
    }
}

/// A file to which only whole blocks are written, so that everything flushed can be read, whenever
/// the program ends.
struct Blocks {
    file: File,
    /// Encodes blocks and holds them until they are written.
    encoder: PcapNgWriter<Vec<u8>>,
    /// Number of packets in the encoder.
    waiting: u64,
    /// Bytes in the file.
    len: u64,
    /// Packets in the file.
    written: u64,
}

impl Blocks {
    /// Returns a file that begins with the section header.
    fn new(file: File) -> io::Result<Self> {
        let program = concat!("pxvm ", env!("CARGO_PKG_VERSION"));
        let header = SectionHeaderBlock {
            endianness: Endianness::Little,
            options: vec![SectionHeaderOption::UserApplication(program.into())],
            ..SectionHeaderBlock::default()
        };
        let encoder = PcapNgWriter::with_section_header(Vec::new(), header).map_err(failed)?;
        Ok(Self { file, encoder, waiting: 0, len: 0, written: 0 })
    }

    fn interface(&mut self, name: &str) -> io::Result<()> {
        let nanoseconds = InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO);
        let name = InterfaceDescriptionOption::IfName(name.into());
        let no_limit = 0;
        let mut block = InterfaceDescriptionBlock::new(DataLink::ETHERNET, no_limit);
        block.options = vec![name, nanoseconds];
        self.put(block)
    }

    fn packet(&mut self, record: &Record) -> io::Result<()> {
        self.put(EnhancedPacketBlock {
            interface_id: record.interface,
            timestamp: record.time,
            original_len: record.bytes.len() as u32,
            data: Cow::Borrowed(&record.bytes),
            options: vec![EnhancedPacketOption::Flags(record.direction as u32)],
        })?;
        self.waiting += 1;
        if self.encoder.get_ref().len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn put<'a>(&mut self, block: impl PcapNgBlock<'a>) -> io::Result<()> {
        self.encoder.write_pcapng_block(block).map(drop).map_err(failed)
    }

    fn flush(&mut self) -> io::Result<()> {
        let blocks = self.encoder.get_mut();
        if let Err(error) = self.file.write_all(blocks) {
            // Removes a block that was written in part. Works only for regular files.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += blocks.len() as u64;
        blocks.clear();
        self.written += std::mem::take(&mut self.waiting);
        Ok(())
    }
}

/// Turns an encoder's error into an I/O error. Writing to memory does not fail, so the error is
/// about a block's content.
fn failed(error: PcapNgWriteError) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, error)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use pcap_parser::pcapng::{Block, parse_block_le};
    use pxvm_tests::needs;

    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("test.pcapng");
        (dir, path)
    }

    /// A packet in a file: its interface, timestamp, flags and bytes.
    type Found = (u32, Duration, u8, Vec<u8>);

    /// Returns the interface names and the packets of a file, read by another library. The file
    /// must consist of whole blocks.
    fn read(path: &Path) -> (Vec<String>, Vec<Found>) {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while !rest.is_empty() {
            let (more, block) = parse_block_le(rest).unwrap();
            rest = more;
            match block {
                Block::SectionHeader(header) => assert_eq!(header.major_version, 1),
                Block::InterfaceDescription(interface) => {
                    assert_eq!((interface.linktype.0, interface.if_tsresol), (1, 9));
                    names.push(interface.options[0].as_str().unwrap().to_owned());
                }
                Block::EnhancedPacket(p) => {
                    let time = u64::from(p.ts_high) << 32 | u64::from(p.ts_low);
                    let bytes = p.data[..p.caplen as usize].to_vec();
                    let time = Duration::from_nanos(time);
                    packets.push((p.if_id, time, p.options[0].value[0], bytes));
                }
                other => panic!("{other:?}"),
            }
        }
        (names, packets)
    }

    #[test]
    fn another_reader_finds_every_packet_with_its_vm_time_and_direction() {
        let (_dir, path) = file();
        let capture = Capture::create(&path, &[3, 0, 3, 9], 4).unwrap();
        let recorder = capture.recorder();
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let before = now();
        recorder.record(0, Direction::Outbound, b"first");
        recorder.record(1, Direction::Outbound, b"not chosen");
        recorder.record(3, Direction::Inbound, b"second");
        recorder.record(7, Direction::Inbound, b"no such VM");
        assert_eq!(capture.finish().unwrap(), Summary { written: 2, missed: 0 });
        let after = now();
        recorder.record(0, Direction::Outbound, b"too late");

        let (names, packets) = read(&path);
        assert_eq!(names, ["vm3", "vm0"]);
        assert!(packets.iter().all(|(_, time, ..)| (before..=after).contains(time)));
        let packets: Vec<_> = packets.into_iter().map(|(i, _, f, bytes)| (i, f, bytes)).collect();
        assert_eq!(packets, [(1, 2, b"first".to_vec()), (0, 1, b"second".to_vec())]);
    }

    #[test]
    fn what_was_recorded_is_in_the_file_before_the_end() {
        let (_dir, path) = file();
        let capture = Capture::create(&path, &[0], 1).unwrap();
        assert_eq!(read(&path).0, ["vm0"]);
        let start = Instant::now();
        for n in 1..=3 {
            capture.recorder().record(0, Direction::Outbound, &[n; 60]);
            while read(&path).1.len() < n.into() {
                assert!(start.elapsed() < Duration::from_secs(60), "packet {n} is not written");
            }
        }
        capture.finish().unwrap();
    }

    #[test]
    fn tshark_reads_it() {
        if !needs::program("tshark") {
            return;
        }
        let (_dir, path) = file();
        let capture = Capture::create(&path, &[0, 1], 2).unwrap();
        let mut packet = Vec::new();
        let ethernet = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let udp = ethernet.ipv4([10, 0, 2, 15], [10, 0, 2, 2], 64).udp(1000, 7);
        udp.write(&mut packet, b"hello").unwrap();
        capture.recorder().record(1, Direction::Outbound, &packet);
        capture.finish().unwrap();
        let fields = ["frame.interface_name", "frame.packet_flags_direction", "udp.dstport"];
        let mut tshark = Command::new("tshark");
        tshark.args(["-T", "fields", "-r"]).arg(&path);
        let output = tshark.args(fields.iter().flat_map(|f| ["-e", f])).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            text.trim(),
            "vm1\t0x00000002\t7",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    fn packets_without_room_are_counted_and_the_recorder_does_not_wait() {
        let (sender, items) = bounded(1);
        let missed = Arc::default();
        let recorder = Recorder { sender, interfaces: Arc::new([Some(0)]), missed };
        for _ in 0..3 {
            recorder.record(0, Direction::Inbound, &[0; 60]);
        }
        assert_eq!((items.len(), recorder.missed.load(Ordering::Relaxed)), (1, 2));
    }

    #[test]
    fn names_that_cannot_be_a_file_are_refused_with_the_reason() {
        let (dir, path) = file();
        std::fs::write(&path, b"").unwrap();
        let said = |path: &Path| {
            let error = Capture::create(path, &[0], 1).err().unwrap();
            (error.to_string(), error.is_usage())
        };
        let dir = dir.path().display();
        let file = path.display();
        let folder = format!("--pcap {dir} is a folder; name a file");
        assert_eq!(said(format!("{dir}").as_ref()), (folder, true));
        let nowhere = format!("--pcap {dir}/a/b: there is no folder {dir}/a");
        assert_eq!(said(format!("{dir}/a/b").as_ref()), (nowhere, true));
        let below = format!("--pcap {file}/b: there is no folder {file}");
        assert_eq!(said(format!("{file}/b").as_ref()), (below, true));
        // No user can create files there.
        let access = "--pcap /sys/b: there is no right to write this file".to_owned();
        assert_eq!(said("/sys/b".as_ref()), (access, true));
        let (full, is_usage) = said("/dev/full".as_ref());
        assert_eq!((full.as_str(), is_usage), ("cannot write /dev/full", false));
    }

    /// Environment variable with the folder for [`fill_a_small_disk`].
    const SMALL_DISK: &str = "PXVM_TEST_SMALL_DISK";

    #[test]
    fn a_full_disk_ends_the_capture_behind_a_whole_packet() {
        if !needs::program("unshare") {
            return;
        }
        let (dir, _) = file();
        let small = r#"mount -t tmpfs -o size=256k none "$0" && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", small]);
        command.arg(dir.path()).env(SMALL_DISK, dir.path());
        let mut allowed = Command::new(command.get_program());
        allowed.args(command.get_args()).arg("true");
        if !allowed.status().is_ok_and(|status| status.success()) {
            needs::skip("namespaces", "they are not allowed here");
            return;
        }
        command.arg(std::env::current_exe().unwrap());
        command.args(["--exact", "net::pcap::tests::fill_a_small_disk", "--ignored"]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    #[ignore = "fills the disk that the test above makes for it"]
    fn fill_a_small_disk() {
        let dir = std::env::var_os(SMALL_DISK).expect("a disk of 256 KiB");
        let path = Path::new(&dir).join("test.pcapng");
        let capture = Capture::create(&path, &[0], 1).unwrap();
        let recorder = capture.recorder();
        for n in 0..1000u32 {
            recorder.record(0, Direction::Outbound, &[n as u8; 1514]);
        }
        let error = capture.finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        let packets = read(&path).1;
        assert!((50..170).contains(&packets.len()), "{}", packets.len());
        // Recording does not wait for the file that is gone.
        (0..WAITING_MAX + 1).for_each(|_| recorder.record(0, Direction::Outbound, b"late"));
        assert_eq!(read(&path).1.len(), packets.len());
    }
}
