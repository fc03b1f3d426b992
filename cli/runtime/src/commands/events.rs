//! `events`: what a container uses.

use std::{path::Path, thread, time::Duration};

use caisson_shim::client::ShimClient;
use serde_json::json;

use super::{CommandResult, print};
use crate::{args::EventsArgs, container::Container, error::RuntimeError};

pub(super) fn events(root: &Path, args: &EventsArgs) -> CommandResult {
    let interval = interval(&args.interval)?;
    let container = Container::load(root, &args.id)?;
    let client = container.connect_alive()?;
    loop {
        print(&stats(container.id(), &client)?)?;
        if args.stats {
            return Ok(0);
        }
        thread::sleep(interval);
        if container.connect_alive().is_err() {
            // As runc: the end of the container is that of its events.
            return Ok(0);
        }
    }
}

fn stats(id: &str, client: &ShimClient) -> Result<String, RuntimeError> {
    let stats = client.stats()?;
    let event = json!({ "type": "stats", "id": id, "data": {
        "cpu": { "usage": {
            "total": stats.cpu_usage_usec.saturating_mul(1000),
            "user": stats.cpu_user_usec.saturating_mul(1000),
            "kernel": stats.cpu_system_usec.saturating_mul(1000),
        } },
        "memory": { "usage": { "usage": stats.memory_bytes, "limit": stats.memory_limit_bytes } },
        "pids": { "current": stats.pids, "limit": stats.pids_limit },
    } });
    Ok(event.to_string())
}

/// `5s`, `500ms` or a bare number of seconds.
fn interval(text: &str) -> Result<Duration, RuntimeError> {
    let (number, unit_ms) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1)
    } else {
        (text.strip_suffix('s').unwrap_or(text), 1000)
    };
    match number.parse::<u64>() {
        Ok(number) if number > 0 => Ok(Duration::from_millis(number.saturating_mul(unit_ms))),
        _ => Err(RuntimeError::Usage(format!(
            "--interval {text}: a duration above zero, such as 5s or 500ms"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_duration_above_zero() {
        assert_eq!(interval("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(interval("2").unwrap(), Duration::from_secs(2));
        assert_eq!(interval("500ms").unwrap(), Duration::from_millis(500));
        for bad in ["0", "", "-1s", "5m", "x"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
