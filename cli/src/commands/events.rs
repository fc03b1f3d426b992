//! `events`: what happens, as it happens, or happened.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::print_line;
use crate::{
    engine::Engine,
    events::{Event, filter::Filters, log::Reader},
    failure::{CommandResult, Failure},
    format::{
        inert::inert,
        moment,
        template::Format,
        units::{self, UnixNanos},
    },
    globals::Globals,
};

#[derive(Args, Clone, Debug)]
pub struct EventsArgs {
    /// Filter output based on conditions provided
    #[arg(short, long, value_name = "filter")]
    pub filter: Vec<String>,

    /// Format the output using the given Go template, or "json"
    #[arg(long, value_name = "string")]
    pub format: Option<String>,

    /// Show all events created since timestamp
    #[arg(long, value_name = "string")]
    pub since: Option<String>,

    /// Stream events until this timestamp
    #[arg(long, value_name = "string")]
    pub until: Option<String>,
}

pub(super) fn events(globals: &Globals, args: &EventsArgs) -> CommandResult {
    let now = units::now();
    let time =
        |text: &Option<String>| text.as_deref().map(|text| moment::parse(text, now)).transpose();
    // Without either, what happens from now on; until a time, all that is kept before it.
    let (since, until) = (time(&args.since)?, time(&args.until)?);
    let since = since.unwrap_or(if until.is_some_and(|until| until <= now) { 0 } else { now });
    let filters = Filters::parse(&args.filter)?;
    let format = Format::parse(args.format.as_deref())?;
    // Opened, so that what dead processes left is told as ended.
    let engine = Engine::open(globals)?;
    let mut reader = Reader::open(&engine.globals.root)?;
    drop(engine);
    loop {
        while let Some(event) = reader.next_event()? {
            let in_time = event.time >= since && until.is_none_or(|until| event.time <= until);
            if in_time && filters.select(&event) {
                show(&event, &format)?;
            }
        }
        match until.map(|until| left(until, units::now())) {
            Some(None) => return Ok(ExitCode::SUCCESS),
            Some(Some(left)) => reader.wait(Some(left))?,
            None => reader.wait(None)?,
        }
    }
}

/// How long it is until then; `None` if it is over.
fn left(until: UnixNanos, now: UnixNanos) -> Option<Duration> {
    u64::try_from(until.saturating_sub(now))
        .ok()
        .filter(|&nanos| nanos > 0)
        .map(Duration::from_nanos)
}

fn show(event: &Event, format: &Format) -> Result<(), Failure> {
    match format {
        Format::Default => print_line(&inert(&event.to_line())),
        Format::Json => print_line(&event.to_json().to_string()),
        Format::Lines(template) | Format::Table(template) => {
            print_line(&template.fill(&event.to_json())?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_over_is_not_waited_for() {
        assert_eq!(left(5, 5), None);
        assert_eq!(left(5, 9), None);
        assert_eq!(left(9, 5), Some(Duration::from_nanos(4)));
    }
}
