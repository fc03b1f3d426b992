//! PID 1 of a Caisson VM, the only file in its initramfs.
//!
//! `main` is C's: the standard library's own would open `/dev/null` before there is one,
//! and abort.
#![no_main]

use std::ffi::{c_char, c_int};

use caisson_agent::{
    boot,
    disk::Disks,
    error::chain,
    log,
    runtime::Config,
    server::{End, Server},
    stamp::{self, stamp},
    transport::{Vsock, connect_to_host},
};
use caisson_agent_protocol::{AgentError, BootStage, CONTROL_PORT};

#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    if std::process::id() != 1 {
        log!("this program is the first process of a Caisson VM and nothing else");
        return 2;
    }
    match run() {
        Ok(End::Shutdown) => {}
        Ok(End::ChannelLost(error)) => log!("{}", chain(&error)),
        Err(error) => log!("{error}"),
    }
    boot::end_vm()
}

/// The agent's life.
fn run() -> Result<End, AgentError> {
    stamp::enable();
    stamp(BootStage::AgentStarted);
    boot::mount_root()?;
    boot::open_console()?;
    boot::protect_agent()?;
    let control =
        connect_to_host(CONTROL_PORT).map_err(|error| boot::cannot_connect(CONTROL_PORT, error))?;
    let mut server = Server::new(control, config())?;
    if let Err(error) = server.announce() {
        return Ok(End::ChannelLost(error));
    }
    stamp(BootStage::AgentReady);
    boot::prepare_for_containers()?;
    let end = server.run();
    server.linger();
    Ok(end)
}

fn config() -> Config {
    Config {
        cgroup_root: boot::CGROUP_ROOT.into(),
        transport: Box::new(Vsock),
        disks: Box::new(|| Disks::discover("/sys/block".as_ref())),
    }
}
