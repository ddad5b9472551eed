//! Options of `pxvm bench`.

use std::fmt;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::{
    BackendChoice, COUNT_MAX, Codes, GuestArgs, INTERRUPTED, LoopArgs, long_help, seconds,
};
use crate::console::ready::ReadyPattern;
use crate::exit::Code;

const EXAMPLES: &str = "Examples:\n  \
        pxvm bench                                       what this machine can do\n  \
        pxvm bench --workload busy --busy awk,gzip       fleets whose machines do different things\n  \
        pxvm bench --workload compute --count 256,8448 --packing auto,1,8,32\n  \
        pxvm bench --compare                             CPU, GPU and QEMU\n  \
        pxvm bench --backend cpu --count 1,64 --packing 1,2 --json";

const CODES: &Codes = &[
    (Code::Success, "everything that fits was measured"),
    (Code::Failure, "the backend failed"),
    (Code::Usage, "wrong usage or bad input; nothing was started"),
    (Code::Timeout, "a line took longer than --timeout"),
    (Code::Guest, "a guest failed or came to a wrong result"),
    INTERRUPTED,
];

/// What a fleet of [`Bench`] does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Linux, from reset until every machine is ready
    Boot,
    /// Booted machines with work that differs from one to the next, under the host's clock
    Busy,
    /// A bare-metal program whose branches differ from one machine to the next
    Apart,
    /// A loop of integer arithmetic, loads and stores
    Compute,
    /// Booted machines that wait, under the host's clock
    Idle,
}

/// What the machines of [`Workload::Busy`] do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Busy {
    /// Each of the others in every fifth machine
    Mix,
    /// A loop of the shell
    Shell,
    /// A program of awk
    Awk,
    /// A text is compressed and unpacked
    Gzip,
    /// A file is hashed
    Sha256sum,
    /// A page of the machine's own nginx is fetched and hashed
    Wget,
}

/// How much code the program of [`Workload::Apart`] has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeSize {
    /// 4 KiB
    Small,
    /// 470 KiB: a thousand functions
    Large,
}

/// A workload with its variant: what one line of the result measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Task {
    /// The workload.
    pub workload: Workload,
    /// What busy machines do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy: Option<Busy>,
    /// How much code machines with diverging branches have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<CodeSize>,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        f.write_str(&name(self.workload.to_possible_value()))?;
        let busy = self.busy.and_then(|busy| busy.to_possible_value());
        match busy.or(self.apart.and_then(|size| size.to_possible_value())) {
            Some(variant) => write!(f, " {}", variant.get_name()),
            None => Ok(()),
        }
    }
}

impl Bench {
    /// Returns what is to be measured, in order.
    pub fn tasks(&self) -> Vec<Task> {
        let tasks = |&workload: &Workload| {
            let task = Task { workload, busy: None, apart: None };
            match workload {
                Workload::Busy => {
                    self.busy.iter().map(|&busy| Task { busy: Some(busy), ..task }).collect()
                }
                Workload::Apart => {
                    self.apart.iter().map(|&size| Task { apart: Some(size), ..task }).collect()
                }
                Workload::Boot | Workload::Compute | Workload::Idle => vec![task],
            }
        };
        let all = Workload::value_variants();
        // What idle machines cost is no matter of speed.
        let default = || all.iter().filter(|&&w| !self.compare || w != Workload::Idle).collect();
        let wanted: Vec<&Workload> =
            if self.workload.is_empty() { default() } else { self.workload.iter().collect() };
        wanted.into_iter().flat_map(tasks).collect::<Vec<_>>()
    }
}

/// How many VMs share what runs them: a number, or `auto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Packing(pub Option<u32>);

fn packing(text: &str) -> Result<Packing, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Packing(None)),
        Ok(n @ 1..=1024) => Ok(Packing(Some(n))),
        _ => Err("it is `auto`, or a number from 1 to 32 (CPU: 1024)".into()),
    }
}

/// `pxvm bench`.
#[derive(Debug, Args)]
#[command(
    long_about = "Measure how fast fleets run here: each workload with each number of machines \
        and each packing, one line each.\n\n\
        `busy`, `apart` and `compute` check each machine's results. What does not fit, or takes too long, is a line \
        that says so.",
    after_help = EXAMPLES,
    after_long_help = long_help(EXAMPLES, CODES)
)]
pub struct Bench {
    /// What the machines do
    /// [default: all; with --compare all but idle]
    #[arg(long, value_enum, value_name = "WORKLOAD,...", value_delimiter = ',')]
    pub workload: Vec<Workload>,
    /// Numbers of machines [default: 1,256,8448 on a GPU, 1,16,64 on a CPU, all of these and 1024 with
    /// --compare]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    pub count: Vec<u32>,
    /// Run each fleet on the CPU and on the GPU, and busy machines under QEMU as well, if it is in
    /// PATH, and tell from how many machines on the GPU is faster
    #[arg(long)]
    pub compare: bool,
    /// Machines that share a warp of the GPU, 1 to 32; on a CPU, host threads
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = packing)]
    #[arg(default_value = "auto")]
    pub packing: Vec<Packing>,
    /// What executes their instructions on a GPU.
    #[command(flatten)]
    pub insn_loop: LoopArgs,
    /// What executes the machines; auto takes a GPU if there is one
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Number of the GPU, as in nvidia-smi [default: 0]
    #[arg(long, value_name = "N")]
    pub device: Option<u32>,
    /// What the machines of `busy` do
    #[arg(long, value_enum, value_name = "WORK,...", value_delimiter = ',')]
    #[arg(default_value = "mix")]
    pub busy: Vec<Busy>,
    /// Duration of the measurement of `busy`
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "10")]
    pub busy_seconds: Duration,
    /// How much code the program of `apart` has
    #[arg(long, value_enum, value_name = "SIZE,...", value_delimiter = ',')]
    #[arg(default_value = "small,large")]
    pub apart: Vec<CodeSize>,
    /// Duration of the measurement of `idle`
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "5")]
    pub idle_seconds: Duration,
    /// Time limit of a line (exit code 3)
    #[arg(long, value_name = "SECS", value_parser = seconds, default_value = "120")]
    pub timeout: Duration,
    /// A machine is ready when a line of its console matches this regular expression
    #[arg(long, value_name = "REGEX", default_value = ReadyPattern::DEFAULT)]
    pub ready_pattern: String,
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// The machines of `boot`, `busy` and `idle`.
    #[command(flatten)]
    pub guest: GuestArgs,
}
