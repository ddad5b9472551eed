//! Tests of disks on all backends: read on demand, in a cache of bounded size, with errors, written
//! back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use emu_core::layout::MachineKind;
use emu_device::memory::WAYS;
use pxvm_tests::disk::{Work, program};

use super::cpu::CpuBackend;
use super::cuda::emulated::Emulated;
use super::cuda::{CudaBackend, DeviceFleet, Options};
use super::images::Images;
use super::images::testing::Pattern;
use super::lockstep::LockstepBackend;
use super::{Backend, BackendError, ClockSource, Event, EventKind, Settings};
use crate::console::ready::ReadyPattern;
use crate::image::disk::{Access, Disks, Source};
use crate::image::{Payload, Segment};
use crate::machine::Fleet;
use crate::units::Size;
use crate::virtio::Virtio;

/// Bytes of a disk of 20 GB.
const SIZE: u64 = 20 << 30;

fn settings() -> Settings {
    let ready = ReadyPattern::new(ReadyPattern::DEFAULT).unwrap();
    let (started, threads, link) = (u32::MAX, 2, Arc::default());
    let clock = ClockSource::Instret;
    Settings { started, threads, clock, ready, until_ready: false, link }
}

fn payload(words: &[u32]) -> Payload {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let size = bytes.len() as u32;
    let segments = vec![Segment { addr: 0x8000_0000, bytes, size }];
    Payload::linked(segments, 0x8000_0000)
}

/// Returns a fleet with one program for each of `seeds`, whose disk is `image`.
fn fleet(image: &Arc<Pattern>, access: Access, work: Work, seeds: std::ops::Range<u32>) -> Fleet {
    let sectors = (image.size() / 512) as u32;
    let programs = seeds.map(|seed| payload(&program(work, 60, sectors, seed, false)));
    let mut fleet =
        Fleet::several(MachineKind::Virt, Size::mib(1), programs.collect()).expect("they fit");
    fleet.virtio = Virtio::LINUX;
    fleet.disks = Some(Disks::one(Arc::clone(image) as Arc<dyn Source>, access));
    fleet
}

/// Returns what each VM printed before it powered off, and its instruction count then.
fn run(backend: &dyn Backend, count: usize) -> BTreeMap<u32, (String, u64)> {
    let mut found: BTreeMap<u32, (String, u64)> = BTreeMap::new();
    let mut ended = 0;
    while ended < count {
        let event = backend.events().recv_timeout(Duration::from_secs(120));
        let Ok(Event { vm, instret, kind }) = event else { panic!("{}", backend.failure()) };
        let (console, end) = found.entry(vm).or_default();
        match kind {
            EventKind::Console(bytes) => *console += &String::from_utf8_lossy(&bytes),
            EventKind::Halted(0) => {
                *end = instret;
                ended += 1;
            }
            EventKind::Reset => {}
            other => panic!("vm{vm}: {other:?}"),
        }
    }
    backend.stop();
    found
}

fn on_cpu(fleet: Fleet) -> BTreeMap<u32, (String, u64)> {
    let count = fleet.count as usize;
    run(&CpuBackend::start(fleet, settings()).unwrap(), count)
}

/// Runs a fleet on an emulated GPU with so many lines in the cache of disk images.
fn on_gpu(fleet: Fleet, lines: u32) -> BTreeMap<u32, (String, u64)> {
    let count = fleet.count as usize;
    let device = device(&fleet, lines);
    run(&CudaBackend::start(device, fleet, settings(), Options::default()).unwrap(), count)
}

fn device(fleet: &Fleet, lines: u32) -> DeviceFleet {
    let images = Images::new(fleet.disks.as_ref());
    let gpu = Box::new(Emulated::new(Size::mib(64)));
    DeviceFleet::with_cache(gpu, fleet, images, lines).unwrap()
}

fn errors(found: &BTreeMap<u32, (String, u64)>) -> Vec<u32> {
    let count = |text: &str| u32::from_str_radix(text.trim().split(' ').nth(1).unwrap(), 16);
    found.values().map(|(text, _)| count(text).unwrap()).collect()
}

#[test]
fn a_fleet_reads_and_writes_a_large_disk_alike_on_all_backends() {
    let image = Pattern::new(SIZE);
    let fleet = || fleet(&image, Access::CopyOnWrite, Work::Mixed, 1..7);
    let expected = on_cpu(fleet());
    assert_eq!(errors(&expected), [0; 6]);
    assert_eq!(image.written.lock().unwrap().len(), 0);
    // With a cache of one set, most of what is loaded is evicted before it is needed again.
    for lines in [WAYS, 64 * WAYS] {
        assert_eq!(on_gpu(fleet(), lines), expected, "{lines} lines");
    }
    let fleet = fleet();
    let lockstep = LockstepBackend::start(
        device(&fleet, WAYS),
        super::cuda::Choice::default(),
        fleet,
        settings(),
    )
    .unwrap();
    assert_eq!(run(&lockstep, 6), expected);
}

#[test]
fn what_is_loaded_is_loaded_once_for_all_and_again_when_it_was_evicted() {
    let reads = |lines, count| {
        let image = Pattern::new(SIZE);
        let mut fleet = fleet(&image, Access::CopyOnWrite, Work::Reads, 1..2);
        (fleet.count, fleet.entries) = (count, Vec::new());
        on_gpu(fleet, lines);
        image.reads.load(Ordering::Relaxed)
    };
    let alone = reads(1024 * WAYS, 1);
    assert_eq!(reads(1024 * WAYS, 8), alone);
    assert!(reads(WAYS, 1) > alone);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let image = Pattern::new(SIZE);
    let found = on_cpu(fleet(&image, Access::ReadOnly, Work::Writes, 5..6));
    // The flushes are fine.
    assert_eq!(errors(&found), [60]);
    assert_eq!(image.written.lock().unwrap().len(), 0);
    assert_eq!(on_gpu(fleet(&image, Access::ReadOnly, Work::Writes, 5..6), WAYS), found);
}

#[test]
fn an_image_that_became_shorter_fails_the_requests_behind_its_end_alone() {
    let cut = |run: &dyn Fn(Fleet) -> BTreeMap<u32, (String, u64)>| {
        let image = Pattern::new(SIZE);
        image.end.store(SIZE / 2, Ordering::Relaxed);
        run(fleet(&image, Access::CopyOnWrite, Work::Reads, 1..4))
    };
    let expected = cut(&on_cpu);
    assert!(errors(&expected).iter().all(|&n| n > 0 && n < 60), "{expected:?}");
    assert_eq!(cut(&|fleet| on_gpu(fleet, 64 * WAYS)), expected);
    assert_eq!(cut(&|fleet| on_gpu(fleet, WAYS)), expected);
}

#[test]
fn an_odd_size_ends_with_its_last_sector() {
    let image = Pattern::new(703 * 512);
    let fleet = || fleet(&image, Access::CopyOnWrite, Work::Mixed, 1..3);
    let expected = on_cpu(fleet());
    assert_eq!(errors(&expected), [0; 2]);
    assert_eq!(on_gpu(fleet(), 8 * WAYS), expected);
}

#[test]
fn what_a_guest_writes_back_is_in_the_image_and_synced() {
    let image = Pattern::new(SIZE);
    let found = on_cpu(fleet(&image, Access::WriteBack, Work::Writes, 5..6));
    assert_eq!(errors(&found), [0]);
    // One for each flush, one at the guest's end, and one at that of the fleet.
    assert_eq!(image.syncs.load(Ordering::Relaxed), 62);
    let written: usize = image.written.lock().unwrap().iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(written, 60 * 8192);
    // It reads what it has written, and so does the next guest.
    let mixed = fleet(&image, Access::WriteBack, Work::Reads, 5..6);
    let before = on_cpu(fleet(&Pattern::new(SIZE), Access::CopyOnWrite, Work::Reads, 5..6));
    assert_ne!(on_cpu(mixed)[&0].0, before[&0].0);
}

#[test]
fn what_a_guest_has_written_back_is_synced_when_it_is_stopped_or_resets() {
    let image = Pattern::new(SIZE);
    let words = program(Work::Writes, 8, (SIZE / 512) as u32, 3, true);
    let mut fleet =
        Fleet::bare(1, MachineKind::Virt, Size::mib(1), payload(&words)).expect("it fits");
    fleet.virtio = Virtio::LINUX;
    fleet.disks = Some(Disks::one(Arc::clone(&image) as Arc<dyn Source>, Access::WriteBack));
    let backend = CpuBackend::start(fleet, settings()).unwrap();
    let mut resets = 0;
    while resets < 3 {
        let event = backend.events().recv_timeout(Duration::from_secs(60)).expect("it resets");
        resets += u32::from(event.kind == EventKind::Reset);
    }
    drop(backend);
    let syncs = image.syncs.load(Ordering::Relaxed);
    // Eight flushes and the end of each start, whether the last came to its end or not, and the
    // fleet's end.
    assert!(syncs > 3 * 9, "{syncs}");
}

#[test]
fn a_reset_drops_what_a_guest_has_written_unless_it_writes_back() {
    let after_reset = |access| {
        let image = Pattern::new(SIZE);
        let words = program(Work::Mixed, 100, (SIZE / 512) as u32, 3, true);
        let mut fleet =
            Fleet::bare(1, MachineKind::Virt, Size::mib(1), payload(&words)).expect("it fits");
        fleet.virtio = Virtio::LINUX;
        fleet.disks = Some(Disks::one(image, access));
        let backend = CpuBackend::start(fleet, settings()).unwrap();
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        while lines.len() < 2 {
            let event = backend.events().recv_timeout(Duration::from_secs(60)).expect("it resets");
            match event.kind {
                EventKind::Console(bytes) => line += &String::from_utf8_lossy(&bytes),
                EventKind::Reset => lines.push(std::mem::take(&mut line)),
                other => panic!("{other:?}"),
            }
        }
        lines
    };
    let own = after_reset(Access::CopyOnWrite);
    assert_eq!(own[0], own[1]);
    let back = after_reset(Access::WriteBack);
    assert_ne!(back[1], back[0]);
}

#[test]
fn a_guest_sees_the_same_disk_whether_it_writes_back_or_not() {
    let own = on_cpu(fleet(&Pattern::new(SIZE), Access::CopyOnWrite, Work::Writes, 9..10));
    let back = on_cpu(fleet(&Pattern::new(SIZE), Access::WriteBack, Work::Writes, 9..10));
    assert_eq!(own, back);
}

#[test]
fn an_image_that_cannot_be_written_fails_writes_and_flushes() {
    let image = Pattern::new(SIZE);
    image.writable.store(false, Ordering::Relaxed);
    let found = on_cpu(fleet(&image, Access::WriteBack, Work::Writes, 5..6));
    assert_eq!(errors(&found), [120]);
}

#[test]
fn a_gpu_refuses_to_write_back() {
    let fleet = fleet(&Pattern::new(SIZE), Access::WriteBack, Work::Writes, 5..6);
    let gpu = Box::new(Emulated::new(Size::mib(64)));
    let Err(error) = DeviceFleet::new(gpu, &fleet) else { panic!("it does not") };
    assert!(matches!(error, BackendError::WriteBack) && error.is_usage());
    assert!(error.to_string().contains("--backend cpu"), "{error}");
}
