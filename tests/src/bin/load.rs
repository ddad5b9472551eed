//! A load generator: requests web pages from machines, for the scripts in `tests/net` and
//! `tests/gpu`.
//!
//! Machine I is reached at 127.0.0.1:PORT+I, or through the control API. Every request is a
//! connection of its own, and a response counts only if it is the complete page of the right
//! machine.
//!
//! The program needs no other file, so it can be copied to where the machines run.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, thread};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{ClockId, clock_gettime};

const USAGE: &str = "\
usage: load all    PORT COUNT           one request to each machine, all at once
       load single PORT COUNT REQUESTS  one request after the other, machine after machine
       load many   PORT COUNT SECONDS CONNECTIONS [THREADS]
                                        CONNECTIONS to each machine, again and again
With --api, PORT is that of the control API, which asks all machines. Prints a line for people, or
with --json one for programs. Ends with 1 if a request was not answered.";

/// What a machine may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How machines are reached.
#[derive(Clone, Copy)]
enum Way {
    /// Each at a port of its own, from this one on.
    Ports(u16),
    /// All by the control API at this port.
    Api(u16),
}

impl Way {
    fn port(self, vm: u32) -> Option<u16> {
        match self {
            Self::Ports(first) => u16::try_from(u32::from(first) + vm).ok(),
            Self::Api(port) => Some(port),
        }
    }

    fn request(self, vm: u32) -> Vec<u8> {
        match self {
            Self::Ports(_) => b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n".to_vec(),
            Self::Api(_) => {
                let path = format!("/vms/{vm}/http/80/");
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    .into()
            }
        }
    }
}

/// A request that is under way.
struct Request {
    vm: u32,
    stream: TcpStream,
    begun: Instant,
    /// What is still to be sent, all at once.
    request: Option<Vec<u8>>,
    answer: Vec<u8>,
}

/// What became of one.
struct Outcome {
    vm: u32,
    took: Duration,
    error: Option<String>,
}

impl Request {
    fn begin(way: Way, vm: u32, answer: Vec<u8>) -> io::Result<Self> {
        let port = way.port(vm).ok_or_else(|| io::Error::other("no such port"))?;
        let begun = Instant::now();
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        Ok(Self { vm, stream, begun, request: Some(way.request(vm)), answer })
    }

    /// Continues the request. Returns whether it has ended.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        if let Some(request) = &self.request {
            match self.stream.write(request) {
                Ok(n) if n == request.len() => self.request = None,
                Ok(_) => return Err(io::Error::other("the request was cut")),
                Err(e) if waits(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Ok(true),
                Ok(n) => self.answer.extend_from_slice(&buffer[..n]),
                Err(e) if waits(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    }

    /// What is wrong with the answer.
    fn check(&self) -> Result<(), &'static str> {
        let text = str::from_utf8(&self.answer).map_err(|_| "no text")?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or("no head")?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err("no page");
        }
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        let length = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if length.map(|(_, n)| n.parse().ok()).next() != Some(Some(body.len())) {
            return Err("cut");
        }
        let title = format!("<title>vm{}</title>", self.vm);
        if body.contains(&title) { Ok(()) } else { Err("another machine's page") }
    }
}

/// Not connected yet, or nothing there yet.
fn waits(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, NotConnected, WouldBlock};
    matches!(error.kind(), Interrupted | NotConnected | WouldBlock)
}

/// Requests of one thread.
struct Driver<F> {
    way: Way,
    poll: Poll,
    open: Vec<Option<Request>>,
    free: Vec<usize>,
    outcomes: Vec<Outcome>,
    /// The machine to ask after one to this machine has ended.
    next: F,
    buffer: Vec<u8>,
    /// Memory of an answer that is not needed any more.
    spare: Vec<u8>,
}

impl<F: FnMut(u32) -> Option<u32>> Driver<F> {
    /// Begins with requests to `vms` and continues until there is nothing more to ask.
    fn run(way: Way, vms: impl Iterator<Item = u32>, next: F) -> io::Result<Vec<Outcome>> {
        let mut driver = Self {
            way,
            poll: Poll::new()?,
            open: Vec::new(),
            free: Vec::new(),
            outcomes: Vec::new(),
            next,
            buffer: vec![0; 64 << 10],
            spare: Vec::new(),
        };
        vms.for_each(|vm| driver.begin(vm));
        let mut events = Events::with_capacity(1024);
        while driver.free.len() < driver.open.len() {
            match driver.poll.poll(&mut events, Some(Duration::from_secs(1))) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            events.iter().for_each(|event| driver.step(event.token().0));
            if events.is_empty() {
                driver.expire();
            }
        }
        Ok(driver.outcomes)
    }

    fn begin(&mut self, vm: u32) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        let answer = std::mem::take(&mut self.spare);
        let begun = Request::begin(self.way, vm, answer).and_then(|mut request| {
            self.poll.registry().register(&mut request.stream, Token(slot), interest)?;
            Ok(request)
        });
        match begun {
            Ok(request) => self.open[slot] = Some(request),
            Err(error) => {
                self.free.push(slot);
                let error = Some(format!("{:?}", error.kind()));
                self.outcomes.push(Outcome { vm, took: Duration::ZERO, error });
            }
        }
    }

    fn step(&mut self, slot: usize) {
        let Some(Some(request)) = self.open.get_mut(slot) else { return };
        let error = match request.step(&mut self.buffer) {
            Ok(false) => return,
            Ok(true) => request.check().err().map(str::to_owned),
            Err(error) => Some(format!("{:?}", error.kind())),
        };
        self.end(slot, error);
    }

    fn end(&mut self, slot: usize, error: Option<String>) {
        let Some(request) = self.open.get_mut(slot).and_then(Option::take) else { return };
        let Request { vm, begun, stream, mut answer, .. } = request;
        self.outcomes.push(Outcome { vm, took: begun.elapsed(), error });
        // It closes both ways; a machine that has closed already has no use for more.
        let _ = stream.shutdown(Shutdown::Both);
        drop(stream);
        answer.clear();
        self.spare = answer;
        self.free.push(slot);
        if let Some(vm) = (self.next)(vm) {
            self.begin(vm);
        }
    }

    fn expire(&mut self) {
        for slot in 0..self.open.len() {
            let late = |request: &Request| request.begun.elapsed() > TIMEOUT;
            if self.open[slot].as_ref().is_some_and(late) {
                self.end(slot, Some("timeout".to_owned()));
            }
        }
    }
}

/// What to ask.
enum Mode {
    All,
    Single { requests: u32 },
    Many { seconds: f64, connections: u32, threads: u32 },
}

struct Load {
    name: String,
    mode: Mode,
    way: Way,
    count: u32,
    json: bool,
}

fn parse(words: impl Iterator<Item = String>) -> Option<Load> {
    let (flags, words): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with("--"));
    let given = |name: &str| flags.iter().any(|flag| flag == name);
    let (json, api) = (given("--json"), given("--api"));
    if flags.len() != usize::from(json) + usize::from(api) {
        return None;
    }
    let number = |at: usize| words.get(at)?.parse::<u32>().ok().filter(|&n| n > 0);
    let (port, count) = (words.get(1)?.parse().ok()?, number(2)?);
    let (mode, most) = match words.first()?.as_str() {
        "all" => (Mode::All, 3),
        "single" => (Mode::Single { requests: number(3)? }, 4),
        "many" => {
            let seconds = words.get(3)?.parse().ok().filter(|s| (0.0..1e6).contains(s))?;
            let threads = if words.len() > 5 { number(5)? } else { 1 };
            (Mode::Many { seconds, connections: number(4)?, threads }, 6)
        }
        _ => return None,
    };
    let way = if api { Way::Api(port) } else { Way::Ports(port) };
    (words.len() <= most).then(|| Load { name: words[0].clone(), mode, way, count, json })
}

impl Load {
    fn run(&self) -> io::Result<Vec<Outcome>> {
        let Self { way, count, .. } = *self;
        match self.mode {
            Mode::All => Driver::run(way, 0..count, |_| None),
            Mode::Single { requests } => {
                let mut turns = (1..requests).map(|turn| turn % count);
                Driver::run(way, 0..1, |_| turns.next())
            }
            Mode::Many { seconds, connections, threads } => {
                let threads = threads.min(count);
                let end = Instant::now() + Duration::from_secs_f64(seconds);
                let work = |first: u32| {
                    let vms = (first..count).step_by(threads as usize);
                    let all = (0..connections).flat_map(|_| vms.clone());
                    Driver::run(way, all, |vm| (Instant::now() < end).then_some(vm))
                };
                thread::scope(|scope| {
                    let work = &work;
                    let threads: Vec<_> =
                        (0..threads).map(|first| scope.spawn(move || work(first))).collect();
                    let mut outcomes = Vec::new();
                    for thread in threads {
                        let result = thread.join().map_err(|_| io::Error::other("a thread ended"));
                        outcomes.extend(result??);
                    }
                    Ok(outcomes)
                })
            }
        }
    }

    /// Prints the outcome of all requests. Returns whether at least one succeeded and none failed.
    fn report(&self, outcomes: &[Outcome], wall: Duration) -> bool {
        let good: Vec<&Outcome> = outcomes.iter().filter(|o| o.error.is_none()).collect();
        let machines = good.iter().map(|o| o.vm).collect::<BTreeSet<_>>().len();
        let mut errors = BTreeMap::<&str, u32>::new();
        for error in outcomes.iter().filter_map(|o| o.error.as_deref()) {
            *errors.entry(error).or_default() += 1;
        }
        let mut times: Vec<f64> = good.iter().map(|o| o.took.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let last = times.len().saturating_sub(1);
            times.get(((part * times.len() as f64) as usize).min(last)).copied().unwrap_or(0.0)
        };
        let ms = [("min", 0.0), ("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];
        let ms = ms.map(|(name, part)| (name, at(part)));
        let (name, wall) = (&self.name, wall.as_secs_f64());
        let rate = good.len() as f64 / wall.max(1e-9);
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
        let (asked, answered, count) = (outcomes.len(), good.len(), self.count);
        if self.json {
            let list = |pairs: Vec<String>| pairs.join(", ");
            let ms = list(ms.iter().map(|(k, v)| format!("\"{k}\": {v:.3}")).collect());
            let errors = list(errors.iter().map(|(k, n)| format!("\"{k}\": {n}")).collect());
            println!(
                "{{\"mode\": \"{name}\", \"machines\": {count}, \"machines_answered\": {machines}, \
                 \"asked\": {asked}, \"answered\": {answered}, \"seconds\": {wall:.3}, \
                 \"per_second\": {rate:.1}, \"cpu_seconds\": {used:.3}, \"ms\": {{{ms}}}, \
                 \"errors\": {{{errors}}}}}"
            );
        } else {
            let ms = ms.map(|(name, value)| format!("{name} {value:.2}")).join("  ");
            println!(
                "{name:6} {machines} of {count} machines, {answered} of {asked} requests, \
                 {wall:.2} s ({used:.1} of processor time), {rate:.0}/s  ms: {ms}"
            );
            if !errors.is_empty() {
                println!("errors: {errors:?}");
            }
        }
        errors.is_empty() && answered > 0
    }
}

fn main() -> ExitCode {
    let Some(load) = parse(env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    match load.run() {
        Ok(outcomes) if load.report(&outcomes, begun.elapsed()) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}
