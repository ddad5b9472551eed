//! What VMs send and receive, as a pcapng file: one interface a VM, nanoseconds.
//!
//! Frames are recorded at the VM's card, with the addresses that the guest sees; also those that
//! are dropped later. Whoever records never waits: a thread of its own writes, and frames that it
//! has no room for are left out of the file and counted.
//!
//! The writer is our own because it is three kinds of blocks, and the crates that have them are
//! candidates for releases or need a later compiler than ours.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

/// Frames that may wait for the file: at most about 12 MB.
const WAITING_MAX: usize = 8192;

/// As seen from the VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// To the VM.
    Inbound = 1,
    /// From the VM.
    Outbound = 2,
}

enum Item {
    Frame { interface: u32, time: u64, direction: Direction, bytes: Box<[u8]> },
    End,
}

/// Takes frames. Any thread may have one.
#[derive(Clone)]
pub struct Recorder {
    sender: Sender<Item>,
    /// The interface of each VM, if it is recorded.
    interfaces: Arc<[Option<u32>]>,
    missed: Arc<AtomicU64>,
}

/// The file.
pub struct Capture {
    recorder: Recorder,
    writer: JoinHandle<io::Result<u64>>,
}

/// What a capture ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Frames in the file.
    pub written: u64,
    /// Frames that are not in the file because writing was too slow.
    pub missed: u64,
}

impl Capture {
    /// Begins a file about `chosen` VMs, in that order, of `count`.
    pub fn create(path: &Path, chosen: &[u32], count: u32) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        section(&mut file)?;
        let mut interfaces = vec![None; count as usize];
        let mut next = 0;
        for &vm in chosen {
            if let Some(free @ None) = interfaces.get_mut(vm as usize) {
                interface(&mut file, &format!("vm{vm}"))?;
                *free = Some(next);
                next += 1;
            }
        }
        // Readers that follow the file see its interfaces at once.
        file.flush()?;
        let (sender, items) = bounded(WAITING_MAX);
        let writer =
            thread::Builder::new().name("pcap".into()).spawn(move || write(file, &items))?;
        let recorder = Recorder { sender, interfaces: interfaces.into(), missed: Arc::default() };
        Ok(Self { recorder, writer })
    }

    /// For whoever sees frames.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Writes what waits and closes the file.
    pub fn finish(self) -> io::Result<Summary> {
        // A writer that failed is gone.
        let _ = self.recorder.sender.send(Item::End);
        let written = self.writer.join().map_err(|_| io::Error::other("the writer panicked"))??;
        Ok(Summary { written, missed: self.recorder.missed.load(Ordering::Relaxed) })
    }
}

impl Recorder {
    /// Records a frame, if its VM was chosen.
    pub fn record(&self, vm: u32, direction: Direction, frame: &[u8]) {
        let Some(Some(interface)) = self.interfaces.get(vm as usize).copied() else { return };
        if self.sender.is_full() {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = time.as_nanos() as u64;
        let item = Item::Frame { interface, time, direction, bytes: frame.into() };
        if let Err(TrySendError::Full(_)) = self.sender.try_send(item) {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread: writes until the end, and flushes when there is nothing to write.
fn write(mut file: BufWriter<File>, items: &Receiver<Item>) -> io::Result<u64> {
    let result = (|| {
        for written in 0.. {
            let item = match items.try_recv() {
                Err(TryRecvError::Empty) => {
                    file.flush()?;
                    items.recv().unwrap_or(Item::End)
                }
                other => other.unwrap_or(Item::End),
            };
            match item {
                Item::Frame { interface, time, direction, bytes } => {
                    packet(&mut file, interface, time, direction, &bytes)?;
                }
                Item::End => return file.flush().map(|()| written),
            }
        }
        Ok(u64::MAX)
    })();
    if let Err(error) = &result {
        tracing::error!("the capture ends early: {error}");
    }
    result
}

/// Names of the format (draft-ietf-opsawg-pcapng).
mod pcapng {
    pub const SECTION_HEADER: u32 = 0x0a0d_0d0a;
    pub const INTERFACE_DESCRIPTION: u32 = 1;
    pub const ENHANCED_PACKET: u32 = 6;
    pub const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
    pub const LINKTYPE_ETHERNET: u16 = 1;
    pub const SHB_USERAPPL: u16 = 4;
    pub const IF_NAME: u16 = 2;
    pub const IF_TSRESOL: u16 = 9;
    pub const EPB_FLAGS: u16 = 2;
    pub const OPT_ENDOFOPT: u16 = 0;
    /// Time stamps count in units of 10^-9 s.
    pub const NANOSECONDS: u8 = 9;
}

/// A block: its fixed part, data, and options.
fn block(
    file: &mut impl Write,
    kind: u32,
    fixed: &[u8],
    data: &[u8],
    options: &[(u16, &[u8])],
) -> io::Result<()> {
    let padded = |len: usize| len.next_multiple_of(4);
    let options_len: usize = options.iter().map(|(_, value)| 4 + padded(value.len())).sum();
    // Type and length in front, the end of options, length again.
    let len = (8 + fixed.len() + padded(data.len()) + options_len + 4 + 4) as u32;
    file.write_all(&kind.to_le_bytes())?;
    file.write_all(&len.to_le_bytes())?;
    file.write_all(fixed)?;
    write_padded(file, data)?;
    for (code, value) in options.iter().chain([&(pcapng::OPT_ENDOFOPT, &[][..])]) {
        file.write_all(&code.to_le_bytes())?;
        file.write_all(&(value.len() as u16).to_le_bytes())?;
        write_padded(file, value)?;
    }
    file.write_all(&len.to_le_bytes())
}

fn write_padded(file: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.write_all(&[0; 3][..bytes.len().next_multiple_of(4) - bytes.len()])
}

fn section(file: &mut impl Write) -> io::Result<()> {
    let mut fixed = Vec::new();
    fixed.extend(pcapng::BYTE_ORDER_MAGIC.to_le_bytes());
    // Version 1.0, of unknown length.
    fixed.extend([1, 0, 0, 0]);
    fixed.extend(u64::MAX.to_le_bytes());
    let program = concat!("pxvm ", env!("CARGO_PKG_VERSION")).as_bytes();
    block(file, pcapng::SECTION_HEADER, &fixed, &[], &[(pcapng::SHB_USERAPPL, program)])
}

fn interface(file: &mut impl Write, name: &str) -> io::Result<()> {
    let mut fixed = Vec::new();
    fixed.extend(pcapng::LINKTYPE_ETHERNET.to_le_bytes());
    // Reserved; no limit on lengths.
    fixed.extend([0; 6]);
    let options =
        [(pcapng::IF_NAME, name.as_bytes()), (pcapng::IF_TSRESOL, &[pcapng::NANOSECONDS])];
    block(file, pcapng::INTERFACE_DESCRIPTION, &fixed, &[], &options)
}

fn packet(
    file: &mut impl Write,
    interface: u32,
    time: u64,
    direction: Direction,
    frame: &[u8],
) -> io::Result<()> {
    let (high, low, len) = ((time >> 32) as u32, time as u32, frame.len() as u32);
    let mut fixed = [0; 20];
    for (place, word) in fixed.chunks_exact_mut(4).zip([interface, high, low, len, len]) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let flags = (direction as u32).to_le_bytes();
    block(file, pcapng::ENHANCED_PACKET, &fixed, frame, &[(pcapng::EPB_FLAGS, &flags)])
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use pcap_parser::pcapng::{Block, parse_block_le};

    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("test.pcapng");
        (dir, path)
    }

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
    }

    #[test]
    fn another_reader_finds_every_frame_with_its_vm_time_and_direction() {
        let (_dir, path) = file();
        let capture = Capture::create(&path, &[3, 0, 3, 9], 4).unwrap();
        let recorder = capture.recorder();
        let before = now();
        recorder.record(0, Direction::Outbound, b"first");
        recorder.record(1, Direction::Outbound, b"not chosen");
        recorder.record(3, Direction::Inbound, b"second");
        recorder.record(7, Direction::Inbound, b"no such VM");
        assert_eq!(capture.finish().unwrap(), Summary { written: 2, missed: 0 });
        let after = now();
        recorder.record(0, Direction::Outbound, b"too late");

        let bytes = std::fs::read(&path).unwrap();
        let mut rest = &bytes[..];
        let (mut names, mut packets) = (Vec::new(), Vec::new());
        while !rest.is_empty() {
            let (more, block) = parse_block_le(rest).unwrap();
            rest = more;
            match block {
                Block::SectionHeader(header) => assert_eq!(header.major_version, 1),
                Block::InterfaceDescription(interface) => {
                    assert_eq!((interface.linktype.0, interface.if_tsresol), (1, 9));
                    let name = &interface.options[0];
                    names.push(name.as_bytes().unwrap().to_vec());
                }
                Block::EnhancedPacket(p) => {
                    let time = u64::from(p.ts_high) << 32 | u64::from(p.ts_low);
                    assert!((before..=after).contains(&time));
                    let flags = p.options[0].value[0];
                    packets.push((p.if_id, flags, p.data[..p.caplen as usize].to_vec()));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names, [b"vm3", b"vm0"]);
        assert_eq!(packets, [(1, 2, b"first".to_vec()), (0, 1, b"second".to_vec())]);
    }

    #[test]
    fn tshark_reads_it() {
        if !pxvm_tests::needs::program("tshark") {
            return;
        }
        let (_dir, path) = file();
        let capture = Capture::create(&path, &[0, 1], 2).unwrap();
        let mut frame = Vec::new();
        let ethernet = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let udp = ethernet.ipv4([10, 0, 2, 15], [10, 0, 2, 2], 64).udp(1000, 7);
        udp.write(&mut frame, b"hello").unwrap();
        capture.recorder().record(1, Direction::Outbound, &frame);
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
    fn frames_without_room_are_counted_and_the_recorder_does_not_wait() {
        let (sender, items) = bounded(1);
        let missed = Arc::default();
        let recorder = Recorder { sender, interfaces: Arc::new([Some(0)]), missed };
        for _ in 0..3 {
            recorder.record(0, Direction::Inbound, &[0; 60]);
        }
        assert_eq!((items.len(), recorder.missed.load(Ordering::Relaxed)), (1, 2));
    }

    #[test]
    fn a_full_disk_ends_the_capture_with_its_error() {
        let capture = Capture::create(Path::new("/dev/null"), &[0], 1).unwrap();
        assert!(capture.finish().is_ok());
        assert!(Capture::create(Path::new("/dev/full"), &[0], 1).is_err());
        let file = File::options().write(true).open("/dev/full").unwrap();
        let (sender, items) = bounded(9);
        let bytes = vec![0; 60].into();
        let direction = Direction::Inbound;
        sender.send(Item::Frame { interface: 0, time: 0, direction, bytes }).unwrap();
        let error = write(BufWriter::new(file), &items).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
