//! The time stamps that the processes wrote, as one sequence.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path};

/// A point on the way from the command line to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub process: String,
    pub stage: String,
    /// Milliseconds since the first stage.
    pub at_ms: f64,
}

/// One `caisson run`: its stages, and the vmm's own account.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trace {
    pub stages: Vec<Stage>,
    /// VM exits by reason.
    pub exits: BTreeMap<String, u64>,
    /// CPU time of the vmm.
    pub vmm_cpu_ms: f64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Stage { process: String, stage: String, usec: u64 },
    Report { report: caisson_vmm::control::Report },
}

/// Reads the file that `CAISSON_STAGES` named.
pub fn read(file: &Path) -> anyhow::Result<Trace> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    parse(&text)
}

fn parse(text: &str) -> anyhow::Result<Trace> {
    let mut points = Vec::new();
    let mut trace = Trace::default();
    for line in text.lines() {
        match serde_json::from_str(line).with_context(|| format!("parse the stage {line:?}"))? {
            Line::Stage { process, stage, usec } => points.push((usec, process, stage)),
            Line::Report { report } => {
                for (stage, usec) in report.stages_usec {
                    points.push((usec, "vmm".into(), stage));
                }
                trace.exits = report.exits;
                trace.vmm_cpu_ms = report.cpu_usec as f64 / 1000.0;
            }
        }
    }
    points.sort();
    let start = points.first().context("no stage was written")?.0;
    trace.stages = points
        .into_iter()
        .map(|(usec, process, stage)| Stage {
            process,
            stage,
            at_ms: (usec - start) as f64 / 1000.0,
        })
        .collect();
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_all_processes_become_one_sequence() {
        let text = r#"{"process":"cli","stage":"main","usec":1000}
{"process":"shim","stage":"agent_ready","usec":9000}
{"process":"vmm","report":{"stages_usec":{"first_run":4000},"exits":{"hlt":3},"cpu_usec":2500}}"#;
        let trace = parse(text).expect("a trace");
        let order: Vec<_> = trace.stages.iter().map(|s| (s.stage.as_str(), s.at_ms)).collect();
        assert_eq!(order, [("main", 0.0), ("first_run", 3.0), ("agent_ready", 8.0)]);
        assert_eq!(trace.exits["hlt"], 3);
    }
}
