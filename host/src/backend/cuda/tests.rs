//! Tests of the whole CUDA backend on the emulated device, compared with the CPU backend.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use emu_core::clock::Now;
use emu_core::layout::MachineKind;
use emu_device::protocol::launch::{CODE_SLOTS, Entry};
use pxvm_tests::needs;

use super::emulated::Emulated;
use super::fleet::{LaunchArgs, Start};
use super::packing::{InsnLoop, Packing};
use super::{CudaBackend, DeviceFleet, Options};
use crate::backend::cpu::CpuBackend;
use crate::backend::fingerprint::fingerprint;
use crate::backend::{Backend, BackendError, ClockSource, Event, EventKind, Reason, Settings};
use crate::console::ready::ReadyPattern;
use crate::image::{Payload, Segment, cache};
use crate::machine::{Fleet, GuestOptions, assemble};
use crate::net::link::Message;
use crate::net::user::{self, UserUplink};
use crate::net::{GATEWAY_MAC, Network, VirtualLink, publish};
use crate::units::Size;

/// Events of one VM: console output, and the others in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct History {
    console: String,
    events: Vec<(u64, EventKind)>,
}

pub(super) fn settings(until_ready: bool, clock: ClockSource) -> Settings {
    let ready = ReadyPattern::new(ReadyPattern::DEFAULT).unwrap();
    let (started, threads, link) = (u32::MAX, 2, Arc::default());
    Settings { started, threads, clock, ready, until_ready, link }
}

/// Returns a fleet of VMs that run a bare-metal program.
pub(super) fn fleet(count: u32, code: &[u32]) -> Fleet {
    Fleet::bare(count, MachineKind::Virt, Size::mib(1), payload(code)).unwrap()
}

/// Returns a bare-metal program.
pub(super) fn payload(code: &[u32]) -> Payload {
    let bytes: Vec<u8> = code.iter().flat_map(|w| w.to_le_bytes()).collect();
    let size = bytes.len() as u32;
    let segments = vec![Segment { addr: 0x8000_0000, bytes, size }];
    Payload::linked(segments, 0x8000_0000)
}

pub(super) fn cuda(memory: Size, fleet: Fleet, settings: Settings) -> CudaBackend {
    let gpu = Box::new(Emulated::new(memory));
    let device = DeviceFleet::new(gpu, &fleet).unwrap();
    CudaBackend::start(device, fleet, settings, Options::default()).unwrap()
}

/// Receives events until `enough`, then stops the backend and receives the rest.
fn listen(
    backend: &dyn Backend,
    mut enough: impl FnMut(&BTreeMap<u32, History>) -> bool,
) -> BTreeMap<u32, History> {
    let mut histories: BTreeMap<u32, History> = BTreeMap::new();
    let mut stopped = false;
    while let Ok(Event { vm, instret, kind }) =
        backend.events().recv_timeout(Duration::from_secs(120))
    {
        let history = histories.entry(vm).or_default();
        match kind {
            EventKind::Console(bytes) => history.console += &String::from_utf8_lossy(&bytes),
            kind => history.events.push((instret, kind)),
        }
        if !stopped && enough(&histories) {
            backend.stop();
            stopped = true;
        }
    }
    assert!(stopped, "{histories:?}");
    histories
}

fn ended(event: &EventKind) -> bool {
    matches!(event, EventKind::Halted(_) | EventKind::Faulted(_))
}

fn all_ended(count: usize) -> impl FnMut(&BTreeMap<u32, History>) -> bool {
    move |all| {
        all.len() == count && all.values().all(|h| h.events.last().is_some_and(|e| ended(&e.1)))
    }
}

const LUI_T0_UART: u32 = 0x1000_02b7;
const SB_T1_UART: u32 = 0x0062_8023;
const LOOP: u32 = 0x0000_006f;
pub(super) const POWER_OFF: [u32; 4] = [0x0010_03b7, 0x0000_5337, 0x5553_0313, 0x0063_a023];
const RESET: [u32; 4] = [0x0010_03b7, 0x0000_7337, 0x7773_0313, 0x0063_a023];

fn li_t1(n: u8) -> u32 {
    0x0000_0313 | u32::from(n) << 20
}

pub(super) fn print(text: &str) -> Vec<u32> {
    let put = |byte: u8| [li_t1(byte), SB_T1_UART];
    [LUI_T0_UART].into_iter().chain(text.bytes().flat_map(put)).collect()
}

/// Returns a loop of two instructions that runs `n` times.
pub(super) fn work(n: u32) -> [u32; 3] {
    // lui t3, n >> 12; addi t3, t3, -1; bne t3, x0, -4
    [(n & 0xffff_f000) | 0xe37, 0xfffe_0e13, 0xfe0e_1ee3]
}

#[test]
fn a_fleet_says_and_does_the_same_as_on_the_cpu() {
    let long = "x".repeat(300) + "\n";
    let code = [&print("PXVM READY\n")[..], &work(1 << 20), &print(&long), &POWER_OFF].concat();
    let settings = settings(false, ClockSource::Instret);
    let cpu = CpuBackend::start(fleet(3, &code), settings.clone()).unwrap();
    let cuda = cuda(Size::mib(64), fleet(3, &code), settings);
    let (expected, found) = (listen(&cpu, all_ended(3)), listen(&cuda, all_ended(3)));
    assert_eq!(expected, found);
    assert_eq!(found[&2].console.len(), "PXVM READY\n".len() + long.len());
    assert_eq!(found[&2].events.len(), 2);
    for vm in 0..3 {
        assert_eq!(cpu.instret(vm), cuda.instret(vm));
    }
    assert_eq!(cpu.totals().instructions, cuda.totals().instructions);
    assert_eq!(cuda.totals().private_frames, 0);
}

#[test]
fn a_trap_loop_is_told_with_its_first_trap_as_on_the_cpu() {
    const FLW: u32 = 0x0000_2007;
    let code = [&print("hi\n")[..], &[FLW]].concat();
    let settings = settings(false, ClockSource::Instret);
    let cpu = CpuBackend::start(fleet(2, &code), settings.clone()).unwrap();
    let cuda = cuda(Size::mib(64), fleet(2, &code), settings);
    let (expected, found) = (listen(&cpu, all_ended(2)), listen(&cuda, all_ended(2)));
    assert_eq!(expected, found);
    let [(7, EventKind::Faulted(Reason::TrapLoop(traps)))] = &found[&1].events[..] else {
        panic!("{found:?}")
    };
    assert_eq!((traps.first.pc, traps.insn), (0x8000_001c, Some(FLW)));
    assert!(traps.to_string().contains("floating point"), "{traps}");
}

#[test]
fn a_ready_vm_stands_still_when_that_was_all_that_was_asked() {
    let code = [&print("PXVM READY\n")[..], &work(1 << 16), &print("more"), &POWER_OFF].concat();
    let settings = settings(true, ClockSource::Instret);
    let cuda = cuda(Size::mib(64), fleet(2, &code), settings);
    let ready =
        |all: &BTreeMap<u32, History>| all.len() == 2 && all.values().all(|h| !h.events.is_empty());
    for history in listen(&cuda, ready).values() {
        assert_eq!(history.console, "PXVM READY\n");
        assert_eq!(history.events, [(32_768, EventKind::Ready)]);
    }
    assert_eq!(cuda.instret(1), 32_768);
}

#[test]
fn a_prompt_makes_a_vm_ready_at_the_same_instruction_as_on_the_cpu() {
    // Where the log's records and the slices end, the prompt is cut.
    for (before, pause) in [(0, 4096), (116, 4096), (300, 12_288), (2, 16_384)] {
        let start = print(&("x".repeat(before) + "\r\nvm0 lo"));
        let code = [&start[..], &work(pause), &print("gin: "), &[LOOP]].concat();
        let ready = ReadyPattern::new("^vm0 login: ").unwrap();
        let settings = Settings { ready, ..settings(true, ClockSource::Instret) };
        let cpu = CpuBackend::start(fleet(1, &code), settings.clone()).unwrap();
        let cuda = cuda(Size::mib(64), fleet(1, &code), settings);
        let ready = |all: &BTreeMap<u32, History>| all.values().all(|h| !h.events.is_empty());
        let (expected, found) = (listen(&cpu, ready), listen(&cuda, ready));
        assert_eq!(expected, found);
        assert!(matches!(found[&0].events[..], [(_, EventKind::Ready)]), "{found:?}");
        assert!(found[&0].console.ends_with("login: "), "{found:?}");
    }
}

#[test]
fn a_ready_vm_stands_still_on_a_cpu_even_if_its_output_was_held_back() {
    // More than the port takes in a slice.
    let code = [&print("PXVM READY\n")[..], &[SB_T1_UART; 40_000], &POWER_OFF].concat();
    let cpu = CpuBackend::start(fleet(1, &code), settings(true, ClockSource::Instret)).unwrap();
    let found = &listen(&cpu, |all| !all[&0].events.is_empty())[&0];
    assert!(matches!(found.events[..], [(_, EventKind::Ready)]), "{:?}", found.events);
    assert_eq!(found.console.len(), 16 << 10);
}

#[test]
fn a_vm_that_resets_for_ever_is_given_up_and_gives_its_frames_back() {
    // A store first makes a page private.
    let store = [0x8000_1e37, 0x01ce_2023];
    let code = [&store[..], &RESET].concat();
    let settings = settings(true, ClockSource::Instret);
    let cpu = CpuBackend::start(fleet(2, &code), settings.clone()).unwrap();
    let cuda = cuda(Size::mib(64), fleet(2, &code), settings);
    let (expected, found) = (listen(&cpu, all_ended(2)), listen(&cuda, all_ended(2)));
    assert_eq!(expected, found);
    let (_, last) = found[&0].events.last().unwrap();
    assert_eq!(*last, EventKind::Faulted(Reason::BootLoop));
}

#[test]
fn a_start_is_counted_once_when_the_run_ends_with_its_reset() {
    let cuda = cuda(Size::mib(64), fleet(1, &RESET), settings(false, ClockSource::Instret));
    let resets = |all: &BTreeMap<u32, History>| all[&0].events.len() >= 3;
    let events = &listen(&cuda, resets)[&0].events;
    // Instructions of one start, and when the last one ended.
    let (each, last) = (events[0].0, events[events.len() - 1].0);
    assert_eq!(last, events.len() as u64 * each);
    assert!((last..last + each).contains(&cuda.instret(0)), "{last} {}", cuda.instret(0));
}

/// Program that writes to 200 pages. With 300 private frames, only one VM can do so at a time.
/// `lui t3, 0x80001; lui t4, 200; lui t5, 1`, then
/// `sw x0, 0(t3); add t3, t3, t5; sub t4, t4, t5; bne t4, x0, -12`.
const PAGES: [u32; 7] =
    [0x8000_1e37, 0x000c_8eb7, 0x0000_1f37, 0x000e_2023, 0x01ee_0e33, 0x41ee_8eb3, 0xfe0e_9ae3];

fn cuda_with_300_frames(fleet: Fleet) -> CudaBackend {
    let gpu = Box::new(Emulated::new(Size::mib(64)));
    let mut device = DeviceFleet::new(gpu, &fleet).unwrap();
    device.limit_frames(fleet.base.shared() + 300);
    let settings = settings(false, ClockSource::Instret);
    CudaBackend::start(device, fleet, settings, Options::default()).unwrap()
}

#[test]
fn vms_wait_for_the_frames_of_those_that_end() {
    let cuda = cuda_with_300_frames(fleet(4, &[&PAGES[..], &POWER_OFF].concat()));
    let found = listen(&cuda, all_ended(4));
    assert!(found.values().all(|h| h.events == [(807, EventKind::Halted(0))]), "{found:?}");
    assert_eq!(cuda.totals().private_frames, 0);
}

#[test]
fn when_frames_run_out_for_good_some_vms_end_and_one_goes_on() {
    const WFI: u32 = 0x1050_0073;
    let cuda = cuda_with_300_frames(fleet(4, &[&PAGES[..], &print("ok"), &[WFI, LOOP]].concat()));
    let starved =
        |h: &History| h.events.iter().any(|e| e.1 == EventKind::Faulted(Reason::NoMemory));
    let found =
        listen(&cuda, |all| all.values().filter(|h| starved(h) || h.console == "ok").count() == 4);
    let ended = found.values().filter(|h| starved(h)).count();
    assert!((1..4).contains(&ended), "{found:?}");
}

#[test]
fn of_many_vms_that_find_no_frames_as_many_go_on_as_there_is_room_for() {
    const WFI: u32 = 0x1050_0073;
    // Each takes 200 frames, so that one of them goes on; the 39 others hold 300 between them, and
    // end in fewer rounds than there are of them.
    let code = [&PAGES[..], &print("ok"), &[WFI, LOOP]].concat();
    let cuda = cuda_with_300_frames(fleet(40, &code));
    let ended = |h: &History| h.events.iter().any(|e| e.1 == EventKind::Faulted(Reason::NoMemory));
    let over = |all: &BTreeMap<u32, History>| {
        all.values().filter(|h| ended(h) || h.console == "ok").count() == 40
    };
    let found = listen(&cuda, over);
    assert_eq!(found.values().filter(|h| h.console == "ok").count(), 1, "{found:?}");
}

/// Runs a VM that prints for ever until the device is gone. Returns how much it printed, and the
/// error.
fn until_gone(gpu: Emulated) -> (usize, BackendError) {
    // `lui t0, UART; li t1, 'x'`, then `sb t1, 0(t0); j .-4`.
    let fleet = fleet(1, &[LUI_T0_UART, li_t1(b'x'), SB_T1_UART, 0xffdf_f06f]);
    let device = DeviceFleet::new(Box::new(gpu), &fleet).unwrap();
    let settings = settings(false, ClockSource::Instret);
    let cuda = CudaBackend::start(device, fleet, settings, Options::default()).unwrap();
    let mut printed = 0;
    while let Ok(event) = cuda.events().recv_timeout(Duration::from_secs(60)) {
        let EventKind::Console(bytes) = event.kind else { panic!("{event:?}") };
        printed += bytes.len();
    }
    (printed, cuda.failure())
}

#[test]
fn a_lost_device_ends_the_run_with_the_reason_and_all_that_was_printed() {
    // The first launch starts the VM; in every other one it prints.
    let (three, error) = until_gone(Emulated::new(Size::mib(64)).failing_after(4));
    assert!(error.to_string().contains("device lost"), "{error}");
    let (two, _) = until_gone(Emulated::new(Size::mib(64)).failing_after(3));
    let (one, _) = until_gone(Emulated::new(Size::mib(64)).failing_after(2));
    assert!(three > two && two > one && one > 0, "{three} {two} {one}");
    assert!(!error.is_usage());
}

#[test]
fn a_device_that_hangs_ends_the_run_with_the_reason() {
    let (printed, error) = until_gone(Emulated::new(Size::mib(64)).hanging_after(4));
    assert!(printed > 0 && error.to_string().contains("did not answer"), "{printed} {error}");
    let fleet = fleet(1, &[LOOP]);
    let gpu = Box::new(Emulated::new(Size::mib(64)).hanging_after(0));
    let Err(error) = DeviceFleet::new(gpu, &fleet) else { panic!("it does not hang") };
    assert!(error.to_string().contains("upload failed"), "{error}");
}

fn linux(count: u32) -> Option<Fleet> {
    needs::found("image", cache::default_image())?;
    Some(assemble(&GuestOptions { count, ..GuestOptions::default() }).unwrap())
}

#[test]
fn linux_boots_as_on_the_cpu() {
    let Some(fleet) = linux(2) else { return };
    let settings = settings(true, ClockSource::Instret);
    let ready = |all: &BTreeMap<u32, History>| {
        all.len() == 2 && all.values().all(|h| h.events.iter().any(|e| e.1 == EventKind::Ready))
    };
    let cpu = CpuBackend::start(fleet.clone(), settings.clone()).unwrap();
    let expected = listen(&cpu, ready);
    let cuda = cuda(Size::mib(512), fleet, settings);
    assert_eq!(expected, listen(&cuda, ready));
    assert_eq!(cpu.instret(1).next_multiple_of(32_768), cuda.instret(1));
}

#[test]
fn linux_takes_input_and_powers_off() {
    let Some(fleet) = linux(1) else { return };
    let cuda = cuda(Size::mib(256), fleet, settings(false, ClockSource::Host));
    let mut asked = false;
    let found = listen(&cuda, |all| {
        let ready = all[&0].events.iter().any(|e| e.1 == EventKind::Ready);
        if ready && !asked {
            asked = true;
            cuda.input(0, b"echo $((6*7))of$((40+2)); poweroff\n");
        }
        all[&0].events.iter().any(|e| ended(&e.1))
    });
    assert!(found[&0].console.contains("42of42"), "{}", found[&0].console);
    assert_eq!(found[&0].events.last().unwrap().1, EventKind::Halted(0));
}

fn was_ready(history: &History) -> bool {
    history.events.iter().any(|e| e.1 == EventKind::Ready)
}

/// Fetches a file from a VM. Returns the response with its head.
fn fetch(port: u16, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

#[test]
fn sleeping_vms_are_woken_and_serve_pages() {
    let Some(fleet) = linux(2) else { return };
    let bound = publish::bind_any(2, 80);
    let ports = bound.iter().map(|b| b.listener.local_addr().unwrap().port());
    let ports: Vec<u16> = ports.collect();
    let options = user::Options { count: 2, bound, ..user::Options::default() };
    let link = Arc::new(VirtualLink::new(2));
    let _network = Network::start(Arc::clone(&link), Box::new(UserUplink::new(options))).unwrap();
    let settings = Settings { link: Arc::clone(&link), ..settings(false, ClockSource::Host) };
    let cuda = cuda(Size::mib(512), fleet, settings);
    listen(&cuda, |all| {
        let ready = all.len() == 2 && all.values().all(was_ready);
        let check = |vm: usize| {
            let page = String::from_utf8(fetch(ports[vm], "/").unwrap()).unwrap();
            assert!(page.contains(&format!("<title>vm{vm}</title>")), "{page}");
        };
        if ready {
            // One request after the other, then many at a time.
            [0, 1, 0, 1].into_iter().for_each(check);
            std::thread::scope(|scope| {
                for client in 0..24 {
                    scope.spawn(move || (0..4).for_each(|i| check((client + i) % 2)));
                }
            });
        }
        ready
    });
    let counts = link.counts(1);
    assert!(counts.tx_packets >= 150 && counts.rx_packets >= 150, "{counts:?}");
    assert_eq!(counts.drops.total(), 0, "{counts:?}");
}

#[test]
fn bulk_comes_whole_through_inbox_and_log() {
    let Some(fleet) = linux(1) else { return };
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let bound = publish::bind_any(1, 80);
    let published = bound[0].listener.local_addr().unwrap().port();
    let host_ports = port.to_string().parse().unwrap();
    let options = user::Options { count: 1, bound, host_ports, ..user::Options::default() };
    let link = Arc::new(VirtualLink::new(1));
    let _network = Network::start(Arc::clone(&link), Box::new(UserUplink::new(options))).unwrap();
    let settings = Settings { link: Arc::clone(&link), ..settings(false, ClockSource::Host) };
    let cuda = cuda(Size::mib(256), fleet, settings);
    listen(&cuda, |all| {
        if !was_ready(&all[&0]) {
            return false;
        }
        let get = format!("cd /run/www; wget -qO x http://10.0.2.2:{port}/ && mv x copy\n");
        cuda.input(0, get.as_bytes());
        let (mut stream, _) = server.accept().unwrap();
        let _ = stream.read(&mut [0; 512]).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        stream.write_all(&bytes).unwrap();
        drop(stream);
        let limit = Instant::now() + Duration::from_secs(60);
        let answer = loop {
            let answer = fetch(published, "/copy").unwrap();
            if answer.starts_with(b"HTTP/1.1 200") || Instant::now() > limit {
                break answer;
            }
        };
        assert!(answer.ends_with(&bytes), "{} bytes", answer.len());
        true
    });
    assert_eq!(link.total().drops.total(), 0, "{:?}", link.total());
}

#[test]
fn packets_go_in_and_out_when_time_is_instructions_too() {
    let Some(fleet) = linux(1) else { return };
    let link = Arc::new(VirtualLink::new(1));
    let settings = Settings { link: Arc::clone(&link), ..settings(false, ClockSource::Instret) };
    let mac = fleet.macs.of(0);
    let cuda = cuda(Size::mib(256), fleet, settings);
    let mut asked = false;
    let mut heard = VecDeque::new();
    listen(&cuda, |all| {
        if !asked && was_ready(&all[&0]) {
            asked = true;
            link.packet_sender().send(0, user::greeting(mac));
            // The response comes from a guest whose time runs fast.
            let limit = Instant::now() + Duration::from_secs(60);
            while heard.is_empty() && Instant::now() < limit {
                std::thread::yield_now();
                link.messages(1, &mut heard);
            }
        }
        asked
    });
    let Some(Message::Packet(0, answer)) = heard.pop_front() else { panic!("no answer") };
    assert_eq!((&answer[..6], &answer[6..12]), (&GATEWAY_MAC[..], &mac[..]));
}

#[test]
fn a_launch_tells_how_far_vms_came_that_would_go_on() {
    const LOOP: u32 = 0x0000_006f;
    const WFI: u32 = 0x1050_0073;
    let fleet = fleet(2, &[LOOP, WFI, LOOP]);
    let gpu = Box::new(Emulated::new(Size::mib(64)));
    let mut device = DeviceFleet::new(gpu, &fleet).unwrap();
    let mut starts = [0, 1].map(|vm| Start { vm, origin: 0, staged: fleet.stage(vm, 0) });
    starts[1].staged.vm.hart.pc += 4;
    device.start(&starts).unwrap();
    let active = [0, 1].map(|vm| Entry { vm, inbox: 0 });
    let now = Now::Instret;
    let args = LaunchArgs {
        active: &active,
        inbox: &[],
        slices: 2,
        slice: 1024,
        now,
        packing: Packing { vms_per_warp: 1, insn_loop: InsnLoop::Dispatch },
        time: None,
    };
    device.submit(&args).unwrap();
    let completed = device.wait().unwrap();
    let result = device.result(completed).unwrap();
    assert_eq!((result.listed, result.busy, result.ran), (2, 1, 2048));
    assert_eq!(result.instructions, 2049);
}

/// Program that writes a return into 40 pages and calls each, again and again.
/// `lui t3, 0x80001; lui t4, 40; lui t5, 1; lui t6, 8; addi t6, t6, 0x67`, then
/// `sw t6, 0(t3); jalr ra, 0(t3); add t3, t3, t5; sub t4, t4, t5; bne t4, x0, -16; j -40`.
const CALLS: [u32; 11] = [
    0x8000_1e37,
    0x0002_8eb7,
    0x0000_1f37,
    0x0000_8fb7,
    0x067f_8f93,
    0x01fe_2023,
    0x000e_00e7,
    0x01ee_0e33,
    0x41ee_8eb3,
    0xfe0e_98e3,
    0xfd9f_f06f,
];

/// Runs VMs that execute more private pages than they have slots for decoded ones, twice from their
/// start, with a pool of `pool` decoded pages. Returns how many were taken out of it each time, and
/// the VMs' states at the end.
fn calls_with_pool(insn_loop: InsnLoop, pool: u32) -> ([u32; 2], Vec<u64>) {
    let fleet = fleet(3, &CALLS);
    let vms = [0, 1, 2];
    let mut device = DeviceFleet::new(Box::new(Emulated::new(Size::mib(64))), &fleet).unwrap();
    device.limit_code(pool);
    let active = vms.map(|vm| Entry { vm, inbox: 0 });
    let taken = [(); 2].map(|()| {
        device.release(&vms).unwrap();
        device.start(&vms.map(|vm| Start { vm, origin: 0, staged: fleet.stage(vm, 0) })).unwrap();
        let args = LaunchArgs {
            active: &active,
            inbox: &[],
            slices: 2,
            slice: 1024,
            now: Now::Instret,
            packing: Packing { vms_per_warp: 1, insn_loop },
            time: None,
        };
        device.submit(&args).unwrap();
        let completed = device.wait().unwrap();
        device.result(completed).unwrap().code_pages
    });
    let pages = device.digests(&vms).unwrap();
    let states = vms.iter().zip(pages).map(|(&vm, pages)| {
        let state = device.vm(vm).unwrap();
        assert_eq!(state.platform.clock.retired, 2048);
        fingerprint(&state, pages)
    });
    let states = states.collect();
    (taken, states)
}

#[test]
fn a_pool_of_decoded_pages_that_runs_out_changes_no_state() {
    let most = CODE_SLOTS as u32 - 1;
    let (taken, expected) = calls_with_pool(InsnLoop::Dispatch, u32::MAX);
    assert_eq!(taken, [3 * most; 2]);
    for insn_loop in [InsnLoop::Dispatch, InsnLoop::Uniform] {
        for pool in [0, 1, most + 2, 3 * most] {
            assert_eq!(calls_with_pool(insn_loop, pool), ([pool; 2], expected.clone()));
        }
    }
}
