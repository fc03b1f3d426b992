//! Takes over the output of a container whose caller has detached.

use std::sync::mpsc;

use super::{
    AttachError,
    fifo::OutputFifo,
    log_writer::Log,
    output::{OutputCopy, Sink},
};
use crate::{engine::Engine, records::Container};

/// The threads that empty the container's FIFOs.
pub struct Drainer(Vec<OutputCopy>);

/// Empties the FIFOs in the container's bundle into its log, or into nothing.
pub fn spawn(engine: &Engine, container: &Container) -> Result<Drainer, AttachError> {
    let bundle = engine.globals.bundle_dir(&container.id);
    let config = container.config.as_ref().filter(|config| config.keeps_logs());
    let mut log =
        config.map(|config| Log::new(engine.log_target(&container.id, config.log_rotation)));
    // Nothing here closes on the other side, so nothing is said.
    let (events, _) = mpsc::channel();
    let mut copies = Vec::new();
    for stream in ["stdout", "stderr"] {
        let path = bundle.join(stream);
        if !path.exists() {
            continue;
        }
        let mut fifo = OutputFifo::open(&path)?;
        fifo.opened_by_shim();
        let log = log.as_mut().map(|log| log.writer(stream)).transpose()?;
        let sink = Sink { file: None, log };
        copies.push(OutputCopy::spawn(stream, fifo, sink, events.clone())?);
    }
    Ok(Drainer(copies))
}

impl Drainer {
    /// The container has ended: returns when the last output is taken.
    pub fn finish(self) {
        self.0.into_iter().for_each(OutputCopy::finish);
    }
}
