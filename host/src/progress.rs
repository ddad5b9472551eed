//! Progress of a fleet on standard error: a line that is redrawn on a terminal, otherwise a plain
//! line at intervals.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::stdio::{self, say};

/// Interval of plain lines, if anything changed.
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// Shows the progress of a fleet on standard error.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    bar: Option<ProgressBar>,
    /// State that was last shown, and when.
    last: Option<(String, Duration)>,
    /// Instructions and time of the last update, to compute the current speed.
    before: (u64, Duration),
}

impl Progress {
    /// Returns a progress display that shows nothing, because a console has the terminal.
    pub fn hidden() -> Self {
        Self::new(false, None)
    }

    fn new(shown: bool, bar: Option<ProgressBar>) -> Self {
        Self { shown, bar, last: None, before: (0, Duration::ZERO) }
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
        stdio::set_bar(bar.clone());
        Self::new(true, bar)
    }

    /// Shows the state of the fleet, and its speed since the last call.
    pub fn show(&mut self, state: impl Display, instructions: u64, elapsed: Duration) {
        if !self.shown {
            return;
        }
        let (before, at) = self.before;
        let new = instructions.saturating_sub(before);
        let state = state.to_string();
        let text = line(&state, new, elapsed.saturating_sub(at), elapsed);
        match &self.bar {
            Some(bar) => {
                self.before = (instructions, elapsed);
                bar.set_message(text);
                bar.tick();
            }
            None => {
                let due = match &self.last {
                    Some((before, at)) => *before != state && elapsed >= *at + PLAIN_EVERY,
                    None => elapsed >= PLAIN_EVERY,
                };
                if due {
                    self.before = (instructions, elapsed);
                    self.last = Some((state, elapsed));
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
    pub fn finish(&mut self, state: impl Display, instructions: u64, elapsed: Duration) {
        self.clear();
        if self.shown {
            say(&line(&state.to_string(), instructions, elapsed, elapsed));
        }
    }

    fn clear(&mut self) {
        stdio::set_bar(None);
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

/// Returns the line for a fleet that has executed `instructions` in `span`.
fn line(state: &str, instructions: u64, span: Duration, elapsed: Duration) -> String {
    let mips = instructions as f64 / span.as_secs_f64().max(1e-3) / 1e6;
    format!("{state}; {mips:.0} MIPS; {:.1} s", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_state_speed_and_time() {
        let text =
            line("1 booting", 500_800_000, Duration::from_secs(2), Duration::from_millis(1250));
        assert_eq!(text, "1 booting; 250 MIPS; 1.2 s");
        assert_eq!(line("2 ready", 0, Duration::ZERO, Duration::ZERO), "2 ready; 0 MIPS; 0.0 s");
    }
}
