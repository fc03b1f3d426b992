//! `caisson machine status`

use std::{process::ExitCode, time::Duration};

use caisson_agent_protocol::machine::Ready;

use super::{
    arguments::{Format, StatusArgs},
    control::{Control, ControlError},
    directory::MachineDirectory,
    instance::{Process, Record},
};
use crate::Globals;

const ANSWER: Duration = Duration::from_secs(3);

/// Exit code 0 if the machine runs, 1 if not.
pub(super) fn command(globals: &Globals, options: &StatusArgs) -> anyhow::Result<ExitCode> {
    let directory = MachineDirectory::new(globals);
    let process = Process::find(&directory)?;
    let record = Record::read(&directory)?.filter(|_| process.is_some());
    let ready = match &process {
        Some(_) => ask(&directory).ok().flatten(),
        None => None,
    };
    let pid = process.as_ref().map(|process| process.pid);
    match options.format {
        Format::Json => print_json(pid, record.as_ref(), ready.as_ref()),
        Format::Text => print_text(pid, record.as_ref(), ready.as_ref()),
    }
    Ok(if pid.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn ask(directory: &MachineDirectory) -> Result<Option<Ready>, ControlError> {
    let mut control = Control::open(directory)?;
    control.query()?;
    control.answer(ANSWER)
}

fn print_json(pid: Option<i32>, record: Option<&Record>, ready: Option<&Ready>) {
    let status = serde_json::json!({
        "running": pid.is_some(),
        "answers": ready.is_some(),
        "pid": pid,
        "started_with": record,
        "machine": ready,
    });
    println!("{status:#}");
}

fn print_text(pid: Option<i32>, record: Option<&Record>, ready: Option<&Ready>) {
    let Some(pid) = pid else {
        println!("state:    stopped");
        return;
    };
    let state = if ready.is_some() { "running" } else { "running, does not answer" };
    println!("state:    {state}");
    println!("process:  {pid}");
    if let Some(record) = record {
        let counting = if record.icount { ", counting instructions" } else { "" };
        println!("root:     {}", record.root.display());
        println!("CPUs:     {}{counting}", record.cpus);
        println!("memory:   {} MiB", record.memory_bytes >> 20);
    }
    if let Some(ready) = ready {
        println!("free:     {} MiB", ready.memory_available_kib >> 10);
        println!("kernel:   {}", ready.kernel);
        println!("KVM:      {}", if ready.kvm { "yes" } else { "no" });
        println!("uptime:   {} s", ready.uptime_ms / 1000);
        println!("sessions: {}", ready.sessions);
    }
}
