//! Telling the user how far a long operation is.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Receives the steps of a long operation.
pub trait Progress: Send + Sync {
    /// Begins one step, such as a layer. `total_bytes` is `None` where it is not known.
    fn step(&self, what: &str, total_bytes: Option<u64>) -> Box<dyn Step>;
}

/// One step under way; dropping it without [`Step::done`] means it failed.
pub trait Step: Send {
    fn advance(&mut self, bytes: u64);
    /// `outcome` is a word or two: `done`, `already there`.
    fn done(self: Box<Self>, outcome: &str);
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _what: &str, _total_bytes: Option<u64>) -> Box<dyn Step> {
        Box::new(Silent)
    }
}

impl Step for Silent {
    fn advance(&mut self, _bytes: u64) {}
    fn done(self: Box<Self>, _outcome: &str) {}
}

/// Progress bars on standard error.
pub struct Bars {
    bars: MultiProgress,
}

/// Bars if standard error is a terminal, silence otherwise.
pub fn on_stderr() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() { Box::new(Bars::new()) } else { Box::new(Silent) }
}

impl Bars {
    pub fn new() -> Bars {
        Bars { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)) }
    }
}

impl Default for Bars {
    fn default() -> Bars {
        Bars::new()
    }
}

impl Progress for Bars {
    fn step(&self, what: &str, total_bytes: Option<u64>) -> Box<dyn Step> {
        let template = match total_bytes {
            Some(_) => "{msg:<20} [{bar:30}] {bytes:>10}/{total_bytes:<10} {bytes_per_sec}",
            None => "{msg:<20} {bytes:>10} {bytes_per_sec}",
        };
        let style = ProgressStyle::with_template(template)
            .expect("the template is a constant that is known to parse")
            .progress_chars("=> ");
        let bar = total_bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let bar = self.bars.add(bar).with_style(style).with_message(what.to_owned());
        Box::new(BarStep { bar })
    }
}

struct BarStep {
    bar: ProgressBar,
}

impl Step for BarStep {
    fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn done(self: Box<Self>, outcome: &str) {
        let what = self.bar.message();
        let style = ProgressStyle::with_template("{msg}").expect("a constant that parses");
        self.bar.set_style(style);
        self.bar.finish_with_message(format!("{what:<20} {outcome}"));
    }
}

impl Drop for BarStep {
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_take_known_and_unknown_totals() {
        let bars = Bars { bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()) };
        for total in [Some(10), None] {
            let mut step = bars.step("layer", total);
            step.advance(10);
            step.done("done");
        }
        drop(bars.step("layer", Some(1)));
    }
}
