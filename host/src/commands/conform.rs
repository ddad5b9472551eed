//! `pxvm conform`: runs the riscv-tests.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use clap::Args;
use emu_core::layout::MachineKind;
use emu_core::trace::NoTrace;
use serde::Serialize;

use super::{gpu_for, on_cpu, printing};
use crate::backend::cuda::Choice;
use crate::backend::cuda::gpu::Gpu;
use crate::bare::{Bare, End, Hardware};
use crate::cli::{BackendArgs, Codes, INTERRUPTED, PackingArgs, long_help};
use crate::error::Error;
use crate::exit::{Code, sentence};
use crate::host;
use crate::machine::plan;
use crate::report::print_json;
use crate::stdio::print;
use crate::sync::lock;
use crate::units::Size;

const EXAMPLES: &str = "Examples:\n  \
        pxvm conform riscv-tests/isa\n  \
        pxvm conform isa/rv32ui-p-add isa/rv32ui-v-add --json";

const CODES: &Codes = &[
    (Code::Success, "every test passed or was skipped"),
    (Code::Failure, "the GPU failed"),
    (Code::Usage, "wrong usage, or no tests in what was given"),
    (Code::Guest, "a test failed"),
    INTERRUPTED,
];

/// `pxvm conform`.
#[derive(Debug, Args)]
#[command(
    long_about = "Run riscv-tests and report which pass.\n\n\
        Folders are searched for files named rv32{ui,um,ua,si,mi}-{p,v}-NAME; files are run \
        whatever their name. Tests of other extensions (rv32uc, rv32uf, ...) are listed as \
        skipped.",
    after_help = EXAMPLES,
    after_long_help = long_help(EXAMPLES, CODES)
)]
pub struct Conform {
    /// Test files, or folders with test files
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
    /// Where they run.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// How they are packed on a GPU.
    #[command(flatten)]
    pub packing: PackingArgs,
    /// Largest number of instructions of a test
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    pub max_instructions: u64,
    /// Host threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// RAM of each test's VM.
const MEMORY: Size = Size::mib(16);
/// Groups of riscv-tests that apply to this machine.
const GROUPS: [&str; 5] = ["rv32ui", "rv32um", "rv32ua", "rv32si", "rv32mi"];

/// A test file, and why it does not apply, if so.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Test {
    path: PathBuf,
    skip: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum TestResult {
    Passed,
    Failed,
    Skipped,
}

#[derive(Clone, Debug, Serialize)]
struct Line {
    name: String,
    result: TestResult,
    /// Why the test failed or was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    instructions: u64,
}

#[derive(Debug, Serialize)]
struct Summary {
    passed: usize,
    failed: usize,
    skipped: usize,
    tests: Vec<Line>,
}

/// Runs riscv-tests.
pub fn conform(args: Conform) -> Result<Code, Error> {
    let mut tests = Vec::new();
    for path in &args.paths {
        collect(path, &mut tests)
            .map_err(|e| Error::Usage(format!("cannot read {}: {e}", path.display())))?;
    }
    tests.sort();
    tests.dedup();
    if tests.is_empty() {
        return Err(Error::Usage("no riscv-tests (rv32ui-p-add, ...) in what was given".into()));
    }
    let threads = args.threads.map_or_else(host::cores, usize::from);
    let max = args.max_instructions;
    let lines = match gpu_for(args.backend)? {
        None => {
            on_cpu(None, Some(&args.packing))?;
            run_all(&tests, threads, max)
        }
        Some(gpu) => run_all_on(gpu, args.packing.choice(), &tests, max)?,
    };
    let count = |result| lines.iter().filter(|l| l.result == result).count();
    let (passed, failed) = (count(TestResult::Passed), count(TestResult::Failed));
    let skipped = count(TestResult::Skipped);
    let code = if failed == 0 { Code::Success } else { Code::Guest };
    if args.json {
        print_json(&Summary { passed, failed, skipped, tests: lines }).map_err(printing)?;
        return Ok(code);
    }
    let mut text = String::new();
    for line in &lines {
        let mark = match line.result {
            TestResult::Passed => "ok",
            TestResult::Failed => "FAILED",
            TestResult::Skipped => "skipped",
        };
        let detail = line.detail.as_ref().map(|d| format!(": {d}")).unwrap_or_default();
        text += &format!("{mark} {}{detail}\n", line.name);
    }
    text += &format!("{passed} passed, {failed} failed, {skipped} skipped\n");
    print(text.as_bytes()).map_err(printing)?;
    Ok(code)
}

/// Collects tests: files as they are given; in folders those with names of riscv-tests.
fn collect(path: &Path, tests: &mut Vec<Test>) -> io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        tests.push(Test { path: path.into(), skip: None });
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, tests)?;
        } else if let Some(skip) = classify(&name(&path)) {
            tests.push(Test { path, skip });
        }
    }
    Ok(())
}

/// Returns `None` for the name of no test, otherwise why the test is skipped, if it is.
fn classify(name: &str) -> Option<Option<String>> {
    let mut parts = name.splitn(3, '-');
    let (group, environment, rest) = (parts.next()?, parts.next()?, parts.next()?);
    if !group.starts_with("rv") || rest.is_empty() || rest.contains('.') {
        return None;
    }
    let Some(letters) = group.strip_prefix("rv32") else {
        return group.starts_with("rv64").then(|| Some("64-bit".into()));
    };
    if !GROUPS.contains(&group) {
        return Some(Some(match letters {
            "uc" => "compressed instructions (the C extension)".into(),
            "uf" | "ud" | "uzfh" => "floating point".into(),
            _ => format!("extension {letters}, which the machine does not have"),
        }));
    }
    match environment {
        "p" | "v" => Some(None),
        _ => Some(Some(format!("environment {environment}: one hart only"))),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Runs every test on several threads. Returns the results in the order of `tests`.
fn run_all(tests: &[Test], threads: usize, max: u64) -> Vec<Line> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(tests.len()));
    let worker = || {
        while let Some((i, test)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            tests.get(i).map(|test| (i, test))
        } {
            let line = run_one(test, max);
            lock(&done).push((i, line));
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads.clamp(1, tests.len().max(1)) {
            scope.spawn(worker);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    done.sort_by_key(|&(i, _)| i);
    done.into_iter().map(|(_, line)| line).collect()
}

/// Runs every test on a GPU, one after the other.
fn run_all_on(
    mut gpu: Box<dyn Gpu>,
    packing: Choice,
    tests: &[Test],
    max: u64,
) -> Result<Vec<Line>, Error> {
    let mut lines = Vec::with_capacity(tests.len());
    for test in tests {
        if let Some(line) = skipped(test) {
            lines.push(line);
            continue;
        }
        // A file that is no program fails before it gets the GPU.
        let program = Bare::load(&test.path);
        let program = match program {
            Ok(program) => program,
            Err(error) => {
                lines.push(Line::new(name(&test.path), Some(sentence(&error)), 0));
                continue;
            }
        };
        if let Err(error) = plan::bare(MachineKind::Virt, MEMORY, program.payload.clone()) {
            lines.push(Line::new(name(&test.path), Some(sentence(&error)), 0));
            continue;
        }
        let mut bare = Bare::new_on(gpu, packing, vec![program], Hardware::virt(MEMORY))?;
        lines.push(judge(name(&test.path), &mut bare, max)?);
        gpu = match bare.into_gpu() {
            Some(gpu) => gpu?,
            None => return Err(Error::Usage("the program did not run on the GPU".into())),
        };
    }
    Ok(lines)
}

fn skipped(test: &Test) -> Option<Line> {
    let detail = Some(test.skip.clone()?);
    let name = name(&test.path);
    Some(Line { name, result: TestResult::Skipped, detail, instructions: 0 })
}

fn run_one(test: &Test, max: u64) -> Line {
    if let Some(line) = skipped(test) {
        return line;
    }
    let result = Bare::load(&test.path)
        .and_then(|program| Bare::new(vec![program], Hardware::virt(MEMORY)))
        .and_then(|mut bare| judge(name(&test.path), &mut bare, max));
    result.unwrap_or_else(|error| Line::new(name(&test.path), Some(sentence(&error)), 0))
}

fn judge(name: String, bare: &mut Bare, max: u64) -> Result<Line, Error> {
    let end = bare.run(max, &mut NoTrace, &mut Vec::new())?.into_iter().next();
    let detail = match end {
        Some(End::Passed) | None => None,
        Some(End::Failed(n)) => Some(format!("test {n}")),
        Some(End::Limit) => Some(format!("no result after {max} instructions")),
        Some(other) => Some(other.to_string()),
    };
    let instructions = bare.instrets()?.first().copied().unwrap_or_default();
    Ok(Line::new(name, detail, instructions))
}

impl Line {
    /// Returns the line of a test that ran; `detail` says why it failed, if it did.
    fn new(name: String, detail: Option<String>, instructions: u64) -> Self {
        let result = if detail.is_none() { TestResult::Passed } else { TestResult::Failed };
        Self { name, result, detail, instructions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_told_by_their_names() {
        for name in ["rv32ui-p-add", "rv32mi-p-csr", "rv32ua-v-lrsc", "rv32si-p-ma_fetch"] {
            assert_eq!(classify(name), Some(None), "{name}");
        }
        for name in ["rv32ui-p-add.dump", "Makefile", "rv32ui", "rvx", "rv128ui-p-add"] {
            assert_eq!(classify(name), None, "{name}");
        }
    }

    #[test]
    fn what_does_not_apply_is_skipped_with_its_reason() {
        let why = |name| classify(name).unwrap().unwrap();
        assert!(why("rv32uc-p-rvc").contains("compressed"));
        assert!(why("rv64ui-p-add").contains("64-bit"));
        assert!(why("rv32uf-v-fadd").contains("floating"));
        assert!(why("rv32uzba-p-sh1add").contains("uzba"));
        assert!(why("rv32ui-pm-add").contains("one hart"));
    }
}
