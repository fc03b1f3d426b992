//! The vmm's control socket, seen from the parent: JSON lines, bounded.

use caisson_vmm::control::{ControlEvent, ControlRequest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// A report lists a dozen stages and some tens of exit reasons.
const MAX_LINE_BYTES: usize = 64 << 10;

/// A vmm says a handful of things; one that a guest has taken over may say more.
const MAX_EVENTS: usize = 10_000;

pub(super) struct Monitor {
    stream: UnixStream,
    pending: Vec<u8>,
    events: usize,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum MonitorError {
    #[error("the vmm's control socket has ended")]
    Ended,
    #[error("the vmm sent a line of over {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("the vmm sent over {MAX_EVENTS} events")]
    TooMany,
    #[error("the vmm sent what is no event: {0}")]
    Malformed(serde_json::Error),
}

impl Monitor {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new(), events: 0 }
    }

    /// The next event. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<ControlEvent, MonitorError> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                self.events += 1;
                if self.events > MAX_EVENTS {
                    return Err(MonitorError::TooMany);
                }
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(MonitorError::Malformed);
            }
            if self.pending.len() >= MAX_LINE_BYTES {
                return Err(MonitorError::TooLong);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).await {
                Ok(count) if count > 0 => self.pending.extend_from_slice(&buffer[..count]),
                _ => return Err(MonitorError::Ended),
            }
        }
    }

    /// Asks for something. A vmm that is ending no longer hears it.
    pub(super) async fn ask(&mut self, request: ControlRequest) {
        let mut line = serde_json::to_vec(&request).expect("a request is plain data");
        line.push(b'\n');
        // A few bytes into an empty socket buffer: this never waits.
        let _ = self.stream.write_all(&line).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn events(text: &[u8]) -> Result<Vec<ControlEvent>, MonitorError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours);
        let text = text.to_vec();
        tokio::spawn(async move { theirs.write_all(&text).await });
        let mut events = Vec::new();
        loop {
            match monitor.next().await {
                Ok(event) => events.push(event),
                Err(MonitorError::Ended) => return Ok(events),
                Err(error) => return Err(error),
            }
        }
    }

    #[tokio::test]
    async fn lines_are_events() {
        let text = b"{\"event\":\"running\"}\n{\"event\":\"paused\"}\n{\"event\":";
        let events = events(text).await.unwrap();
        assert_eq!(events, [ControlEvent::Running, ControlEvent::Paused]);
    }

    #[tokio::test]
    async fn what_a_hostile_vmm_says_is_bounded() {
        let endless = vec![b'x'; MAX_LINE_BYTES + 4096];
        assert!(matches!(events(&endless).await, Err(MonitorError::TooLong)));
        assert!(matches!(events(b"{}\n").await, Err(MonitorError::Malformed(_))));
        let flood = b"{\"event\":\"running\"}\n".repeat(MAX_EVENTS + 1);
        assert!(matches!(events(&flood).await, Err(MonitorError::TooMany)));
    }
}
