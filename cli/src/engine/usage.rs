//! What a container uses, at a moment.

use std::time::Instant;

use caisson_agent_protocol::message::Stats;

use super::{Engine, finish};
use crate::records::{Container, State};

/// What the container's cgroup in the guest has counted.
#[derive(Clone, Debug)]
pub struct Sample {
    pub at: Instant,
    pub stats: Stats,
}

impl Engine {
    /// Asks the container's shim; `None` if it does not run, or nobody answers.
    pub fn sample(&self, container: &Container) -> Option<Sample> {
        if container.state != State::Running {
            return None;
        }
        let client = self.connect(container).ok()?;
        match finish::ask(&client, |client| client.stats())? {
            Ok(stats) => Some(Sample { at: Instant::now(), stats }),
            Err(error) => {
                tracing::debug!(%error, "statistics of {}", container.id);
                None
            }
        }
    }
}
