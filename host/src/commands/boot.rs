//! `pxvm boot`: boots a fleet.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};

use super::server::ApiServer;
use super::{network, on_cpu, printing};
use crate::api::About;
use crate::backend::cpu::{CpuBackend, check_count};
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::{self, CudaBackend, DeviceFleet};
use crate::backend::lockstep::LockstepBackend;
use crate::backend::{Backend, BackendError, ClockSource, Settings};
use crate::cli::{BackendChoice, Boot, Guest, Running};
use crate::console::escape::Action;
use crate::console::keyboard::{self, Typed};
use crate::console::log::{Logs, Sink, run_name};
use crate::console::ready::ReadyPattern;
use crate::console::screen::Screen;
use crate::console::terminal::{self, RawMode};
use crate::engine::{self, FleetHandle, Inputs, REQUESTS_MAX, Request, RunOutcome, Until};
use crate::exit::{Code, Error};
use crate::host;
use crate::image::cache;
use crate::machine::{Fleet, GuestOptions, Link, assemble};
use crate::net::{Network, VirtualLink};
use crate::progress::Progress;
use crate::report::{BootReport, NetReport, print_json};
use crate::signals;
use crate::stdio::say;

/// Number of signals after which the program does not wait any longer for the fleet to end.
const INSISTING: u32 = 3;

/// Boots a fleet and runs it until the condition.
pub fn boot(args: Boot) -> Result<Code, Error> {
    let Boot { count, capacity, control, mut guest, network: networking, running } = args;
    let capacity = capacity.unwrap_or(count);
    if capacity < count {
        let why = format!("--capacity {capacity} is less than --count {count}");
        return Err(Error::Usage(why));
    }
    let ready = ready_pattern(&running.ready_pattern)?;
    let watched = control.dashboard || control.listen.is_some();
    let until = match running.until {
        Some(until) => until.into(),
        None if watched => Until::Never,
        None => Until::Halt,
    };
    let settings = Settings {
        started: count,
        threads: running.threads.map_or_else(host::cores, usize::from),
        clock: running.clock.into(),
        ready,
        until_ready: until == Until::Ready,
        link: Arc::new(VirtualLink::new(capacity)),
    };
    let drawn = draw_seed(&mut guest, settings.clock)?;
    let api = ApiServer::bind(&control)?;
    let uplink = network::uplink(&networking, capacity, running.backend, api.address())?;
    let device = running.device.unwrap_or_default();
    let options = cuda::Options { device, vms_per_warp: running.lanes };
    // A GPU that cannot be used is reported before images are searched; loading the program into
    // one that can takes seconds the first time, and comes later.
    let wanted = wants_gpu(running.backend, options.device)?;
    if !wanted {
        on_cpu(running.device, running.lanes)?;
    }
    let macs = networking.net_mac.into();
    let carrier = if uplink.is_some() { Link::Up } else { Link::Down };
    let guest = guest.options(capacity, settings.clock);
    let fleet = assemble(&GuestOptions { macs, link: carrier, ..guest })?;
    let gpu = if wanted { open(running.backend, options.device)? } else { None };
    let device = gpu.as_ref().and_then(|_| cuda::available(options.device).ok());
    let lockstep = running.backend == BackendChoice::Lockstep;
    if lockstep && settings.clock != ClockSource::Instret {
        return Err(Error::Usage("--backend lockstep needs --clock instret".into()));
    }
    if lockstep && capacity > count {
        let why = "--backend lockstep compares the machines that it starts with: no --capacity";
        return Err(Error::Usage(why.into()));
    }
    let place = match gpu {
        Some(gpu) => {
            let device = DeviceFleet::new(gpu, &fleet.base, capacity)?;
            if lockstep { Place::Lockstep(device) } else { Place::Cuda(device, options) }
        }
        None => {
            check_count(capacity, fleet.plan.memory)?;
            Place::Cpu
        }
    };

    let capture = network::capture(&networking, capacity, &settings.link)?;
    let mut ui = TerminalUi::new(&running, capacity)?;
    if let Some(seed) = drawn {
        ui.progress.say(&format!("seed: {seed}"));
    }
    let seed = fleet.seed;
    let link = Arc::clone(&settings.link);
    if let Some(places) = network::places(&networking, capacity) {
        ui.progress.say(&places);
    }
    let network = uplink.map(|uplink| Network::start(Arc::clone(&link), uplink)).transpose()?;
    let about = About {
        name: api.name.clone(),
        device: device.map(|info| info.name),
        clock: settings.clock,
        reach: network::reach(&networking, network.as_ref()),
        addresses: network::addresses(&networking, capacity),
        publish: networking.publish.clone(),
    };
    if let Some(url) = api.url() {
        ui.progress.say(&format!("dashboard: {url}"));
    }
    let (requests, inputs) = ui.inputs(capacity, &running)?;
    let backend = start(place, fleet, settings)?;
    let handle = Arc::new(FleetHandle::new(backend, count, capacity, until, requests));
    let server = api.serve(&handle, &link, about)?;
    let options = engine::Options { timeout: running.timeout, hold_input: !ui.interactive };
    let run = engine::run(&handle, &options, &inputs, ui.sink.as_mut(), &mut ui.progress)?;
    drop(server);
    drop(ui.raw.take());
    let network = network.map(|network| NetReport::new(&link, network.stop()));
    if let Some(missing) = capture.and_then(network::finish) {
        ui.progress.say(&missing);
    }
    if ui.interactive && run.outcome == RunOutcome::Left {
        say("\npxvm: left the console");
    }
    if let Some(shortfall) = run.shortfall(until) {
        say(&format!("pxvm: {shortfall}"));
    }
    if running.json {
        let report =
            BootReport::new(handle.backend(), &run, seed, network, &link, ui.logs.as_deref());
        print_json(&report).map_err(printing)?;
    }
    Ok(run.outcome.code())
}

/// Gives a fleet a random seed, and returns it, unless the user or the clock requires runs to be
/// equal.
fn draw_seed(guest: &mut Guest, clock: ClockSource) -> Result<Option<u64>, Error> {
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
    ReadyPattern::new(text).map_err(|e| {
        // The last line of the error says what is wrong; the others show where.
        let what = e.to_string().lines().last().unwrap_or_default().to_owned();
        let what = what.trim_start_matches("error: ");
        Error::Usage(format!("--ready-pattern is no regular expression: {what}"))
    })
}

/// The backend of a fleet, with its memory reserved.
pub(super) enum Place {
    Cpu,
    Cuda(DeviceFleet, cuda::Options),
    Lockstep(DeviceFleet),
}

/// Whether a GPU is to be used, and there is one.
pub(super) fn wants_gpu(choice: BackendChoice, device: u32) -> Result<bool, Error> {
    if choice == BackendChoice::Cpu {
        return Ok(false);
    }
    match (choice, cuda::available(device)) {
        (_, Ok(_)) => Ok(true),
        (BackendChoice::Auto, Err(error)) => {
            tracing::info!("no GPU: {error}");
            Ok(false)
        }
        (_, Err(error)) => Err(BackendError::from(error).into()),
    }
}

/// Opens the GPU; `None` when it does not work and is not required.
pub(super) fn open(choice: BackendChoice, device: u32) -> Result<Option<Box<dyn Gpu>>, Error> {
    match cuda::open(device, &super::say) {
        Ok(gpu) => Ok(Some(gpu)),
        Err(error) if choice == BackendChoice::Auto => {
            tracing::warn!("no GPU, so the CPU: {error}");
            Ok(None)
        }
        Err(error) => Err(BackendError::from(error).into()),
    }
}

pub(super) fn start(
    place: Place,
    fleet: Fleet,
    settings: Settings,
) -> Result<Arc<dyn Backend>, Error> {
    Ok(match place {
        Place::Cpu => Arc::new(CpuBackend::start(fleet, settings)?),
        Place::Cuda(device, options) => {
            Arc::new(CudaBackend::start(device, fleet, settings, options)?)
        }
        Place::Lockstep(device) => Arc::new(LockstepBackend::start(device, fleet, settings)?),
    })
}

/// Terminal UI of a fleet: where consoles and progress are shown.
struct TerminalUi {
    sink: Box<dyn Sink>,
    progress: Progress,
    /// Whether the terminal belongs to the guest's console.
    interactive: bool,
    raw: Option<RawMode>,
    /// Folder of the console logs, if there are any.
    logs: Option<PathBuf>,
}

impl TerminalUi {
    /// Returns the terminal UI of a fleet of up to `count` VMs.
    fn new(running: &Running, count: u32) -> Result<Self, Error> {
        let on_screen = count == 1 && !running.json;
        let logs = match &running.console_dir {
            Some(dir) => Some(dir.clone()),
            None if on_screen => None,
            None => Some(cache::state().join(run_name())),
        };
        let open = |dir: &PathBuf| {
            Logs::new(dir, count, running.console_max)
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
        Ok(Self { sink, progress, interactive, raw: None, logs })
    }

    /// Starts to handle the user's input. Returns the inputs of the run, to which others may send
    /// requests, too.
    fn inputs(
        &mut self,
        count: u32,
        running: &Running,
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
            self.raw = Some(RawMode::enter().map_err(|e| Error::io("set up the terminal", e))?);
        }
        // A fleet of several VMs has no console input; neither has a person at the keyboard of a
        // run with --json.
        let piped = !io::IsTerminal::is_terminal(&io::stdin());
        let typed = if self.interactive || (count == 1 && (piped || !running.json)) {
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
