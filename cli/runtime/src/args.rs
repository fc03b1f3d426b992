//! runc's command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::update::UpdateArgs;

#[derive(Parser, Debug)]
#[command(
    name = "caisson-runtime",
    version,
    about = "The OCI runtime command line: each container in its own microVM"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Globals {
    /// Directory of the containers' records
    #[arg(long, value_name = "DIR", default_value = "/run/caisson-runtime")]
    pub root: PathBuf,
    /// Write errors to this file, too
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How they are written there
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Trace on standard error
    #[arg(long)]
    pub debug: bool,
    /// Taken for compatibility: a cgroup path of systemd's kind is understood either way
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Taken for compatibility; /dev/kvm and cgroups need root
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub rootless: Option<String>,
    /// Taken for compatibility: there are no checkpoints
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Boot a VM with the container of a bundle; its process does not run yet
    Create(CreateArgs),
    /// Run the process of a created container
    Start(IdArgs),
    /// Create and start a container
    Run(RunArgs),
    /// Print the state of a container as JSON
    State(IdArgs),
    /// Send a signal to a container's process, SIGTERM if none is named
    Kill(KillArgs),
    /// Remove a stopped container and its VM
    Delete(DeleteArgs),
    /// Run a further process in a container
    Exec(ExecArgs),
    /// List the container's processes, as the guest numbers them
    Ps(PsArgs),
    /// List the containers of this root
    List(ListArgs),
    /// Stop the VM's CPUs
    Pause(IdArgs),
    /// Let them go on
    Resume(IdArgs),
    /// Change limits
    Update(UpdateArgs),
    /// Print a container's use of resources as JSON
    Events(EventsArgs),
    /// Print what this runtime can do, as the runtime-spec's features
    Features,
    /// Write an example of a bundle's config.json
    Spec(SpecArgs),
    /// Stand for a container, or for a process in one, on the host
    #[command(hide = true)]
    Keep(KeepArgs),
}

#[derive(Args, Debug)]
pub(crate) struct IdArgs {
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArgs {
    /// The bundle's directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// A Unix socket that takes the master side of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the host's number of the container's process there
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// How many further files to pass on: none can be passed into a VM
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Taken for compatibility: the VM's root is its own
    #[arg(long)]
    pub no_pivot: bool,
    /// Taken for compatibility: the VM's session keyring is its own
    #[arg(long)]
    pub no_new_keyring: bool,
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub create: CreateArgs,
    /// Do not wait for the container
    #[arg(short, long)]
    pub detach: bool,
    /// Leave the stopped container for `delete`
    #[arg(long)]
    pub keep: bool,
    /// Taken for compatibility
    #[arg(long)]
    pub no_subreaper: bool,
}

#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    /// To every process of the container
    #[arg(short, long)]
    pub all: bool,
    #[arg(value_name = "ID")]
    pub id: String,
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub signal: String,
}

#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    /// End it first; one that is not there is fine
    #[arg(short, long)]
    pub force: bool,
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The process, as the runtime-spec's JSON
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Its directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// On a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// UID[:GID]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Additional group ids
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Additional capabilities
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Without a way to more privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Do not wait for it
    #[arg(short, long)]
    pub detach: bool,
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Taken for compatibility: a paused VM runs nothing
    #[arg(long)]
    pub ignore_paused: bool,
    #[arg(value_name = "ID")]
    pub id: String,
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct PsArgs {
    #[arg(short, long, default_value = "table")]
    pub format: ListFormat,
    #[arg(value_name = "ID")]
    pub id: String,
    /// Options of ps, which are not known here
    #[arg(
        value_name = "PS OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        hide = true
    )]
    pub ps_options: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[arg(short, long, default_value = "table")]
    pub format: ListFormat,
    /// Only the ids
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    Table,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// Once
    #[arg(long)]
    pub stats: bool,
    /// Seconds between two
    #[arg(long, value_name = "SECONDS", default_value = "5s")]
    pub interval: String,
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Args, Debug)]
pub(crate) struct SpecArgs {
    /// The directory to write it in
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct KeepArgs {
    /// Where to tell that it stands, or why not
    #[arg(long)]
    pub status_fd: i32,
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// A prepared process of the container, else the container's own
    #[arg(long)]
    pub exec: Option<String>,
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_of_engines_are_understood() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        for line in [
            "--systemd-cgroup --log /l --log-format json create --bundle /b --pid-file /p abc",
            "--root /r --rootless=false --log-format=json create --no-pivot --bundle /b abc",
            "--systemd-cgroup create --bundle /b --pid-file /p --console-socket /c abc",
            "exec --pid-file /p --process /x --detach abc",
            "exec -d --process /x --console-socket /c abc",
            "exec -t -e A=b --cwd / abc sh -c ls",
            "kill --all abc KILL",
            "kill abc 9",
            "delete --force abc",
            "ps --format json abc",
            "list -f json",
            "update --resources - abc",
            "events --stats abc",
        ] {
            let words = std::iter::once("caisson-runtime").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
