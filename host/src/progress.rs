//! Progress of a fleet on standard error: a line that is redrawn on a terminal, otherwise a plain
//! line at intervals.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::backend::Totals;
use crate::engine::StateCounts;
use crate::stdio::{self, say};
use crate::sync::lock;

/// Interval of plain lines, if anything changed.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// The progress bar on the terminal, if there is one; other output must not overwrite it.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shows the progress of a fleet on standard error.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    bar: Option<ProgressBar>,
    /// State that was last shown, and when.
    last: Option<(StateCounts, Duration)>,
    /// Instructions and time of the last update, to compute the current speed.
    before: (u64, Duration),
}

impl Progress {
    /// Returns a progress display that shows nothing, because a console has the terminal.
    pub fn hidden() -> Self {
        Self { shown: false, bar: None, last: None, before: (0, Duration::ZERO) }
    }

    /// Returns a display with one line for the fleet.
    pub fn fleet() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // The template is fixed and valid.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        *lock(&BAR) = bar.clone();
        Self { shown: true, bar, ..Self::hidden() }
    }

    /// Shows the state of the fleet.
    pub fn show(&mut self, counts: StateCounts, totals: Totals, elapsed: Duration) {
        if !self.shown {
            return;
        }
        let (instructions, at) = self.before;
        let span = elapsed.saturating_sub(at).as_secs_f64().max(1e-3);
        let mips = totals.instructions.saturating_sub(instructions) as f64 / span / 1e6;
        let text = line(counts, mips, elapsed);
        match &self.bar {
            Some(bar) => {
                self.before = (totals.instructions, elapsed);
                bar.set_message(text);
                bar.tick();
            }
            None => {
                let due = match self.last {
                    Some((before, at)) => before != counts && elapsed >= at + PLAIN_EVERY,
                    None => elapsed >= PLAIN_EVERY,
                };
                if due {
                    self.before = (totals.instructions, elapsed);
                    self.last = Some((counts, elapsed));
                    say(&text);
                }
            }
        }
    }

    /// Prints a message without disturbing the line.
    pub fn say(&self, text: &str) {
        say(text);
    }

    /// Prints the final state of the fleet, with the average speed.
    pub fn finish(&mut self, counts: StateCounts, totals: Totals, elapsed: Duration) {
        self.clear();
        if self.shown {
            let mips = totals.instructions as f64 / elapsed.as_secs_f64().max(1e-3) / 1e6;
            say(&line(counts, mips, elapsed));
        }
    }

    fn clear(&mut self) {
        *lock(&BAR) = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(counts: StateCounts, mips: f64, elapsed: Duration) -> String {
    let StateCounts { booting, ready, paused, halted, faulted, stopped } = counts;
    // Shown only if a user has caused them.
    let asked = [(paused, "paused"), (stopped, "stopped")].into_iter().filter(|(n, _)| *n > 0);
    let asked: String = asked.map(|(n, state)| format!(", {n} {state}")).collect();
    format!(
        "{booting} booting, {ready} ready, {halted} halted, {faulted} faulted{asked}; \
         {mips:.0} MIPS; {:.1} s",
        elapsed.as_secs_f64()
    )
}

/// Standard error, written without disturbing the fleet's line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = lock(&BAR).clone();
        match bar {
            Some(bar) => bar.suspend(|| stdio::write(io::stderr().as_fd(), bytes)),
            None => stdio::write(io::stderr().as_fd(), bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_every_state_speed_and_time() {
        let counts =
            StateCounts { booting: 1, ready: 2, halted: 3, faulted: 4, ..StateCounts::default() };
        let text = line(counts, 250.4, Duration::from_millis(1250));
        assert_eq!(text, "1 booting, 2 ready, 3 halted, 4 faulted; 250 MIPS; 1.2 s");
        let text = line(StateCounts { paused: 5, stopped: 6, ..counts }, 0.0, Duration::ZERO);
        assert_eq!(
            text,
            "1 booting, 2 ready, 3 halted, 4 faulted, 5 paused, 6 stopped; 0 MIPS; 0.0 s"
        );
    }
}
