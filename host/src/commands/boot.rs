//! `pxvm boot`: boots a fleet.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use crossbeam_channel::{Sender, bounded};

use super::choose::{Found, Selected};
use super::network::NetArgs;
use super::server::{ApiArgs, ApiServer};
use super::{network, on_cpu, printing};
use crate::api::About;
use crate::backend::cpu::{self, CpuBackend};
use crate::backend::cuda::{self, CudaBackend, DeviceFleet};
use crate::backend::lockstep::LockstepBackend;
use crate::backend::{Backend, ClockSource, Settings};
use crate::calibration::Runs;
use crate::choice::Wanted;
use crate::cli::{
    BackendChoice, COUNT_MAX, Clock, Codes, GuestArgs, INTERRUPTED, PackingArgs, long_help, seconds,
};
use crate::console::escape::Action;
use crate::console::keyboard::{self, Typed};
use crate::console::log::{Logs, Sink, run_name};
use crate::console::ready::ReadyPattern;
use crate::console::screen::Screen;
use crate::console::terminal::{self, OutputMode, RawMode};
use crate::engine::consoles::Consoles;
use crate::engine::{
    self, FleetHandle, Inputs, REQUESTS_MAX, Request, RunOutcome, RunSummary, Until,
};
use crate::error::Error;
use crate::exit::Code;
use crate::host;
use crate::image::cache;
use crate::image::disk::Access;
use crate::machine::{Fleet, GuestOptions, Link, assemble};
use crate::net::{Network, VirtualLink};
use crate::progress::Progress;
use crate::report::{BootReport, NetReport, print_json};
use crate::signals;
use crate::stdio::say;
use crate::units::Size;
use crate::usage::{self, UsageFile};
use crate::virtio::Guest;

const EXAMPLES: &str = "Examples:\n  \
        pxvm boot                                         one machine on this terminal\n  \
        pxvm boot --count 4 --until ready                 four, until they serve\n  \
        pxvm boot --count 64 --until ready --timeout 120 --json\n  \
        echo 'cat /proc/cpuinfo; poweroff' | pxvm boot    a script for one machine\n  \
        pxvm boot --count 8 --publish 4000:80             curl http://127.0.0.1:4003/ asks vm3\n  \
        pxvm boot --count 8 --net tap --pcap run.pcapng   vm3 is 10.77.0.5; its packets are recorded\n  \
        pxvm boot --count 16 --dashboard                  sixteen in the browser\n  \
        pxvm boot --machine semu --until ready            semu's memory map\n  \
        pxvm boot --firmware fw_dynamic.bin --kernel default  OpenSBI in M-mode\n  \
        pxvm boot --firmware fw_payload.bin --memory 64M  firmware alone, with what it contains\n  \
        pxvm boot --kernel Image --initrd root.cpio.gz --append 'ip=off debug'\n  \
        pxvm boot --disk root.ext2:rw --append 'pxvm.root=/dev/vda'    a root that is kept\n  \
        pxvm boot --rom root.cramfs                       another root file system in ROM";

const CODES: &Codes = &[
    (Code::Success, "every machine met --until, or the user left"),
    (Code::Failure, "the backend failed, a file cannot be written"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "--timeout expired first"),
    (Code::Guest, "a machine faulted, failed, or ended too early"),
    INTERRUPTED,
];

/// `pxvm boot`.
#[derive(Debug, Args)]
#[command(
    long_about = "Boot one or many Linux machines.\n\n\
        One machine has its console here: on a terminal every key goes to the guest, and Ctrl-A x \
        leaves (Ctrl-A h helps); otherwise standard input is passed on when the guest is ready, \
        or after 5 seconds, and at once to what is no Linux. Several machines, or --json, have \
        one log file each, and a line on standard error tells how they do.",
    after_help = EXAMPLES,
    after_long_help = long_help(EXAMPLES, CODES)
)]
pub struct Boot {
    /// Number of machines; machine I has the host name vmI
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub count: u32,
    /// Largest number of machines; those above --count are added while the fleet runs
    /// [default: --count]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub capacity: Option<u32>,
    /// How the fleet is observed and controlled.
    #[command(flatten)]
    pub api: ApiArgs,
    /// The machines.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// How the machines are connected.
    #[command(flatten)]
    pub network: NetArgs,
    /// How the machines are run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Smallest size of a console log before it is rotated.
const LOG_MIN: Size = Size(64 << 10);

/// How a fleet is run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// What executes the machines; auto takes what is faster for so many, and says why
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Number of the GPU, as in nvidia-smi [default: 0]
    #[arg(long, value_name = "N")]
    pub device: Option<u32>,
    /// How they are packed on a GPU.
    #[command(flatten)]
    pub packing: PackingArgs,
    /// Guest time: the host's (idle guests sleep), or retired instructions (the same in every
    /// run; idle guests skip to their next timer)
    #[arg(long, value_enum, default_value_t = Clock::Host)]
    pub clock: Clock,
    /// Host threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Write each console to DIR/vmI.log [default for several machines:
    /// ~/.local/state/pxvm/TIME]
    #[arg(long, value_name = "DIR")]
    pub console_dir: Option<PathBuf>,
    /// Largest size of a console's file; a full one is kept as DIR/vmI.log.1
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = log_size)]
    pub console_max: Size,
    /// End when every machine was ready, when every one has powered off, or only by Ctrl-C
    /// [default: halt; never with --dashboard or --listen]
    #[arg(long, value_enum)]
    pub until: Option<UntilChoice>,
    /// A machine is ready when a line of its console matches this regular expression: as soon as
    /// it does, for a prompt; with `$`, when the line has ended
    #[arg(long, value_name = "REGEX", default_value = ReadyPattern::DEFAULT)]
    pub ready_pattern: String,
    /// Give up after this many seconds (exit code 3)
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Print one JSON object on standard output at the end
    #[arg(long)]
    pub json: bool,
}

fn log_size(text: &str) -> Result<Size, String> {
    let size: Size = text.parse()?;
    if size < LOG_MIN {
        return Err(format!("it must be {LOG_MIN} or more"));
    }
    Ok(size)
}

/// `--until`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum UntilChoice {
    /// Every machine was ready
    Ready,
    /// Every machine has powered off
    Halt,
    /// Ctrl-C
    Never,
}

impl From<UntilChoice> for Until {
    fn from(until: UntilChoice) -> Self {
        match until {
            UntilChoice::Ready => Self::Ready,
            UntilChoice::Halt => Self::Halt,
            UntilChoice::Never => Self::Never,
        }
    }
}

impl RunArgs {
    /// Returns an option that was given and is for a GPU.
    fn gpu_option(&self) -> Option<&'static str> {
        let given = [
            ("--device", self.device.is_some()),
            ("--lanes", self.packing.lanes.is_some()),
            ("--loop", self.packing.insn_loop.get().is_some()),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }
}

/// Number of signals after which the program does not wait any longer for the fleet to end.
const INSISTING: u32 = 3;

/// Boots a fleet and runs it until the condition.
pub fn boot(args: Boot) -> Result<Code, Error> {
    let Boot { count, capacity, api: api_args, mut guest, network: net_args, run: run_args } = args;
    let capacity = capacity.unwrap_or(count);
    if capacity < count {
        let why = format!("--capacity {capacity} is less than --count {count}");
        return Err(Error::Usage(why));
    }
    let watched = api_args.dashboard || api_args.listen.is_some();
    let until = match run_args.until {
        Some(until) => until.into(),
        None if watched => Until::Never,
        None => Until::Halt,
    };
    let settings = Settings {
        started: count,
        threads: run_args.threads.map_or_else(host::cores, usize::from),
        clock: run_args.clock.into(),
        ready: ready_pattern(&run_args.ready_pattern)?,
        until_ready: until == Until::Ready,
        link: Arc::new(VirtualLink::new(capacity)),
    };
    let drawn = draw_seed(&mut guest, settings.clock)?;
    let api = ApiServer::bind(&api_args)?;
    let uplink = network::uplink(&net_args, capacity, run_args.backend, api.address())?;
    // A GPU that cannot be used is reported before images are searched; loading the program into
    // one that can takes seconds the first time, and comes later.
    let writes_back = guest.disk.as_ref().is_some_and(|disk| disk.access == Access::WriteBack);
    let found = match run_args.backend {
        BackendChoice::Auto if writes_back => Found::Unwanted,
        backend => Found::look(backend, run_args.device.unwrap_or_default())?,
    };
    if !found.is_card() {
        on_cpu(run_args.device, Some(&run_args.packing))?;
    }
    let macs = net_args.net_mac.into();
    let carrier = if uplink.is_some() { Link::Up } else { Link::Down };
    let guest = guest.options(capacity, settings.clock)?;
    let append = guest.append.clone();
    let mut fleet = assemble(&GuestOptions { macs, link: carrier, ..guest })?;
    let usage_file = UsageFile::of(&cache::usage(), &fleet, &run_args.ready_pattern);
    usage::expect(&mut fleet, &usage_file);
    let wanted = Wanted {
        count: capacity,
        cores: host::cores() as u32,
        threads: settings.threads as u32,
        runs: if settings.until_ready { Runs::Alike } else { Runs::Apart },
        writes_back,
        gpu_option: run_args.gpu_option(),
        host_room: cpu::room(&fleet),
    };
    let (prepared, selected) = prepare(&run_args, &found, wanted, &fleet, count)?;

    let capture = network::capture(&net_args, capacity, &settings.link)?;
    let mut ui = TerminalUi::new(&run_args, capacity)?;
    if let Some(choice) = &selected.choice {
        ui.progress.say(&choice.to_string());
    }
    if let Some(shortage) = prepared.shortage() {
        ui.progress.say(shortage);
    }
    if let Some(seed) = drawn {
        ui.progress.say(&format!("seed: {seed}"));
    }
    let seed = fleet.seed;
    let link = Arc::clone(&settings.link);
    if let Some(places) = network::places(&net_args, capacity) {
        ui.progress.say(&places);
    }
    let network = uplink.map(|uplink| Network::start(Arc::clone(&link), uplink)).transpose()?;
    let about = About {
        name: api.name.clone(),
        device: selected.device().and_then(|number| cuda::available(number).ok()).map(|it| it.name),
        clock: settings.clock,
        reach: network::reach(&net_args, network.as_ref()),
        addresses: network::addresses(&net_args, capacity),
        publish: net_args.publish.clone(),
    };
    if let Some(url) = api.url() {
        ui.progress.say(&format!("dashboard: {url}"));
    }
    let (requests, inputs) = ui.inputs(capacity, &run_args)?;
    let hold_input = holds_input(ui.interactive, fleet.guest);
    let backend = start(prepared, fleet, settings)?;
    let handle = Arc::new(FleetHandle::new(backend, count, capacity, until, requests));
    let server = api.serve(&handle, &link, about)?;
    let options = engine::Options { timeout: run_args.timeout, hold_input };
    let run = engine::run(&handle, &options, &inputs, ui.sink.as_mut(), &mut ui.progress)?;
    if let Some(Err(error)) = run.usage.map(|usage| usage_file.note(usage)) {
        tracing::info!("what the machines used of memory cannot be kept: {error}");
    }
    drop(server);
    drop(ui.raw.take());
    let network = network.map(|network| NetReport::new(&link, network.stop()));
    if let Some(missing) = capture.and_then(network::finish) {
        ui.progress.say(&missing);
    }
    ui.finish(&run, until, &handle.consoles, &append);
    if run_args.json {
        let report =
            BootReport::new(handle.backend(), &run, seed, network, &link, ui.logs.as_deref());
        let report = BootReport { choice: selected.choice, ..report };
        print_json(&report).map_err(printing)?;
    }
    Ok(run.outcome.code())
}

/// Chooses the backend, as far as the options leave it open, and reserves its memory, for a fleet of
/// which `count` VMs start.
fn prepare(
    args: &RunArgs,
    found: &Found,
    wanted: Wanted,
    fleet: &Fleet,
    count: u32,
) -> Result<(PreparedBackend, Selected), Error> {
    let device = args.device.unwrap_or_default();
    let lockstep = args.backend == BackendChoice::Lockstep;
    if lockstep && ClockSource::from(args.clock) != ClockSource::Instret {
        return Err(Error::Usage("--backend lockstep needs --clock instret".into()));
    }
    if lockstep && fleet.count > count {
        let why = "--backend lockstep compares the machines that it starts with: no --capacity";
        return Err(Error::Usage(why.into()));
    }
    let mut selected = match args.backend {
        BackendChoice::Auto => Selected::choose(wanted, found, device),
        _ => Selected::given(found.is_card().then_some(device)),
    };
    let options = cuda::Options { device, packing: args.packing.choice() };
    let prepared = selected.prepare(fleet, options, lockstep)?;
    Ok((prepared, selected))
}

/// Whether input waits until the guest is ready. Linux throws away what came before it opens its
/// console; what is no Linux reads from the beginning, and seldom says that it is ready.
fn holds_input(interactive: bool, guest: Guest) -> bool {
    match guest {
        Guest::Linux => !interactive,
        Guest::Other => false,
    }
}

/// Gives a fleet a random seed, and returns it, unless the user or the clock requires runs to be
/// equal.
fn draw_seed(guest: &mut GuestArgs, clock: ClockSource) -> Result<Option<u64>, Error> {
    if guest.seed.is_none() && clock == ClockSource::Host {
        let seed =
            host::random().map(u64::from_ne_bytes).map_err(|e| Error::io("draw a seed", e))?;
        guest.seed = Some(seed);
        return Ok(Some(seed));
    }
    Ok(None)
}

/// Parses `--ready-pattern`.
pub(super) fn ready_pattern(text: &str) -> Result<ReadyPattern, Error> {
    ReadyPattern::new(text)
        .map_err(|e| Error::Usage(format!("--ready-pattern is no regular expression: {e}")))
}

/// The backend of a fleet, with its memory reserved.
pub(super) enum PreparedBackend {
    Cpu,
    Cuda(DeviceFleet, cuda::Options),
    Lockstep(DeviceFleet, cuda::Choice),
}

impl PreparedBackend {
    /// Says so where machines might not all find memory.
    fn shortage(&self) -> Option<&str> {
        match self {
            Self::Cpu => None,
            Self::Cuda(device, _) | Self::Lockstep(device, _) => device.shortage(),
        }
    }
}

pub(super) fn start(
    prepared: PreparedBackend,
    fleet: Fleet,
    settings: Settings,
) -> Result<Arc<dyn Backend>, Error> {
    Ok(match prepared {
        PreparedBackend::Cpu => Arc::new(CpuBackend::start(fleet, settings)?),
        PreparedBackend::Cuda(device, options) => {
            Arc::new(CudaBackend::start(device, fleet, settings, options)?)
        }
        PreparedBackend::Lockstep(device, packing) => {
            Arc::new(LockstepBackend::start(device, packing, fleet, settings)?)
        }
    })
}

/// Terminal UI of a fleet: where consoles and progress are shown.
struct TerminalUi {
    sink: Box<dyn Sink>,
    progress: Progress,
    /// Whether standard output is the guest's console.
    on_screen: bool,
    /// Whether the terminal belongs to the guest's console.
    interactive: bool,
    raw: Option<RawMode>,
    /// Folder of the console logs, if there are any.
    logs: Option<PathBuf>,
}

impl TerminalUi {
    /// Returns the terminal UI of a fleet of up to `count` VMs.
    fn new(run_args: &RunArgs, count: u32) -> Result<Self, Error> {
        let on_screen = count == 1 && !run_args.json;
        let logs = match &run_args.console_dir {
            Some(dir) => Some(dir.clone()),
            None if on_screen => None,
            None => Some(cache::state().join(run_name())),
        };
        let open = |dir: &PathBuf| {
            Logs::new(dir, count, run_args.console_max)
                .map_err(|e| Error::io(format!("write console logs to {}", dir.display()), e))
        };
        let log = logs.as_ref().map(open).transpose()?;
        let interactive = on_screen && terminal::is_interactive();
        let (sink, progress): (Box<dyn Sink>, _) = match log {
            Some(log) if !on_screen => (Box::new(log), Progress::fleet()),
            log => (Box::new(Screen::new(log)), Progress::hidden()),
        };
        if let (Some(dir), false) = (&logs, interactive) {
            progress.say(&format!("consoles: {}", dir.display()));
        }
        if interactive {
            say("pxvm: Ctrl-A x leaves, Ctrl-A h helps");
        }
        Ok(Self { sink, progress, on_screen, interactive, raw: None, logs })
    }

    /// Says how the run ended. `append` is what the user gave of the command line.
    fn finish(&self, run: &RunSummary, until: Until, consoles: &Consoles, append: &str) {
        if self.interactive && run.outcome == RunOutcome::Left {
            say("\npxvm: left the console");
        }
        if let Some(shortfall) = run.shortfall(until) {
            let seen = self.on_screen && io::IsTerminal::is_terminal(&io::stdout());
            say(&format!("pxvm: {}", shortfall.message(consoles, seen, append)));
        }
    }

    /// Starts to handle the user's input. Returns the inputs of the run, to which others may send
    /// requests, too.
    fn inputs(
        &mut self,
        count: u32,
        run_args: &RunArgs,
    ) -> Result<(Sender<Request>, Inputs), Error> {
        let (sender, requests) = bounded(REQUESTS_MAX);
        let (ender, end) = bounded(1);
        let on_signal = ender.clone();
        // Ending takes time, and a second Ctrl-C changes nothing. But repeated signals end the
        // program even when a blocked terminal has stopped everything.
        let mut insisting = 0;
        signals::on_interrupt(move || {
            insisting += 1;
            if on_signal.try_send(RunOutcome::Interrupted).is_err() && insisting >= INSISTING {
                signals::end();
            }
        });
        if self.interactive {
            self.raw = Some(
                RawMode::enter(OutputMode::Raw).map_err(|e| Error::io("set up the terminal", e))?,
            );
        }
        // A fleet of several VMs has no console input; neither has a person at the keyboard of a
        // run with --json.
        let piped = !io::IsTerminal::is_terminal(&io::stdin());
        let typed = if self.interactive || (count == 1 && (piped || !run_args.json)) {
            let helper = sender.clone();
            // A full channel holds the same request already.
            let act = move |action| match action {
                Action::Leave => drop(ender.try_send(RunOutcome::Left)),
                Action::Help => drop(helper.try_send(Request::Help)),
            };
            keyboard::read(self.interactive, act)
                .map_err(|e| Error::io("read standard input", e))?
        } else {
            Typed::nothing()
        };
        Ok((sender, Inputs { requests, end, typed }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn boot(args: &[&str]) -> Result<Boot, clap::Error> {
        let args = ["pxvm", "boot"].iter().chain(args);
        crate::commands::Cli::try_parse_from(args).map(|cli| match cli.subcommand {
            crate::commands::Subcommand::Boot(boot) => *boot,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn only_linux_gets_its_input_when_it_is_ready() {
        assert!(holds_input(false, Guest::Linux) && !holds_input(true, Guest::Linux));
        assert!(!holds_input(false, Guest::Other));
    }

    #[test]
    fn boot_has_sensible_defaults() {
        let boot = boot(&[]).unwrap();
        assert_eq!((boot.count, boot.guest.memory), (1, Size::mib(24)));
        assert_eq!(boot.run.until, None);
        assert_eq!(boot.run.clock, Clock::Host);
    }

    #[test]
    fn boot_takes_all_its_options() {
        let line = "--count 64 --kernel k --initrd i --rom r --dtb d --dtb-fix --append -x --memory 32M \
            --machine semu --firmware f --disk q --backend cpu --clock instret --threads 2 \
            --console-dir c --until ready --ready-pattern ^up --timeout 1.5 --json --seed 9 \
            --net tap=p0 --net-mesh --net-subnet 10.9.0.0/16 --net-rate 10M \
            --pcap c.pcapng --pcap-vm 0,3 --publish 4000:80 --publish 5000:22 --publish-http 8080 \
            --net-host-ports 8000,9000-9010 --net-mac each --capacity 80 --dashboard \
            --listen 127.0.0.1:9000 --token 0123456789abcdef --name lab --semihosting";
        let boot = boot(&line.split_ascii_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!((boot.count, boot.guest.seed), (64, Some(9)));
        assert_eq!(boot.guest.append, "-x");
        assert_eq!(boot.run.timeout, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            &["--count", "0"][..],
            &["--count", "99999999999"],
            &["--memory", "lots"],
            &["--timeout", "-1"],
            &["--timeout", "nan"],
            &["--threads", "0"],
            &["--lanes", "0"],
            &["--lanes", "33"],
            &["--lanes", "x"],
            &["--machine", "pdp11"],
            &["--net", "wifi"],
            &["--net", "user=x"],
            &["--net-subnet", "10.77.0.1/16"],
            &["--net-rate", "0"],
            &["--net-rate", "10T"],
            &["--pcap-vm", "1"],
            &["--publish", "80"],
            &["--publish", "4000:0"],
            &["--publish-http", "0"],
            &["--net-host-ports", "9000-8000"],
            &["--net-host-ports", "x"],
            &["--capacity", "0"],
            &["--listen", "8080"],
            &["--token", "short"],
            &["--token", "with spaces in between"],
        ] {
            assert!(boot(args).is_err(), "{args:?}");
        }
    }
}
