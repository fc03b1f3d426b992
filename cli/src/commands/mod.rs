//! The commands, one file each, and where each is carried out.

mod attach;
mod attended;
mod beside_machine;
mod completion;
mod container;
mod cp;
mod create;
mod diff;
mod doctor;
mod events;
mod exec;
mod export;
mod history;
mod image;
mod images;
mod import;
mod info;
mod inspect;
mod kill;
mod listing;
mod load;
mod login;
mod logout;
mod logs;
mod pause;
mod prune;
mod ps;
mod pull;
mod push;
mod registry;
mod rename;
mod restart;
mod rm;
mod rmi;
mod run;
mod save;
mod search;
mod start;
mod stats;
mod stop;
mod system;
mod tag;
mod tool;
mod top;
mod update;
mod version;
mod volume;
mod wait;
mod whole_file;

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;
use container::ContainerCommand;
use image::ImageCommand;

use crate::{
    accel::{self, Host, Place},
    engine,
    failure::{CommandResult, Failure},
    globals::Globals,
    machine,
    options::environment,
};

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create and run a new container from an image
    #[command(override_usage = "caisson run [OPTIONS] IMAGE [COMMAND] [ARG...]")]
    Run(run::RunArgs),
    /// Execute a command in a running container
    #[command(override_usage = "caisson exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
    Exec(exec::ExecArgs),
    /// List containers
    #[command(override_usage = "caisson ps [OPTIONS]")]
    Ps(ps::PsArgs),
    /// List images
    #[command(override_usage = "caisson images [OPTIONS] [REPOSITORY[:TAG]]")]
    Images(images::ImagesArgs),
    /// Load an image from a tar archive or STDIN
    #[command(override_usage = "caisson load [OPTIONS]")]
    Load(load::LoadArgs),
    /// Import the contents from a tarball to create a filesystem image
    #[command(override_usage = "caisson import [OPTIONS] FILE|- [REPOSITORY[:TAG]]")]
    Import(import::ImportArgs),
    /// Attach local standard input, output, and error streams to a running container
    #[command(override_usage = "caisson attach [OPTIONS] CONTAINER")]
    Attach(attach::AttachArgs),
    /// Generate shell completions
    #[command(override_usage = "caisson completion SHELL")]
    Completion(completion::CompletionArgs),
    /// Manage containers
    #[command(override_usage = "caisson container COMMAND")]
    Container(container::ContainerArgs),
    /// Copy files/folders between a container and the local filesystem
    ///
    /// CONTAINER may be stopped: its files are then looked at in a VM of their own. Use '-' as
    /// the source to read a tar archive from standard input and extract it to a directory in a
    /// container, and as the destination to write one of the container's files to standard
    /// output. Device nodes are not made on this host.
    #[command(
        override_usage = "caisson cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n       caisson cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH"
    )]
    Cp(cp::CpArgs),
    /// Create a new container
    #[command(override_usage = "caisson create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
    Create(create::CreateArgs),
    /// Inspect changes to files or directories on a container's filesystem
    #[command(override_usage = "caisson diff CONTAINER")]
    Diff(diff::DiffArgs),
    /// Check what this host offers to containers
    #[command(override_usage = "caisson doctor [OPTIONS]")]
    Doctor(doctor::DoctorArgs),
    /// Get real time events
    ///
    /// Events are kept in a bounded log; --since shows those before now. Container events are
    /// create, start, update, kill, stop, oom, die, pause, unpause, rename, restart and destroy; image
    /// events are pull, push, load, import, tag, untag and delete.
    #[command(override_usage = "caisson events [OPTIONS]")]
    Events(events::EventsArgs),
    /// Export a container's filesystem as a tar archive
    #[command(override_usage = "caisson export [OPTIONS] CONTAINER")]
    Export(export::ExportArgs),
    /// Show the history of an image
    #[command(override_usage = "caisson history [OPTIONS] IMAGE")]
    History(history::HistoryArgs),
    /// Manage images
    #[command(override_usage = "caisson image COMMAND")]
    Image(image::ImageArgs),
    /// Display system-wide information
    #[command(override_usage = "caisson info [OPTIONS]")]
    Info(info::InfoArgs),
    /// Return low-level information on containers and images
    #[command(override_usage = "caisson inspect [OPTIONS] NAME|ID [NAME|ID...]")]
    Inspect(inspect::InspectArgs),
    /// Kill one or more running containers
    #[command(override_usage = "caisson kill [OPTIONS] CONTAINER [CONTAINER...]")]
    Kill(kill::KillArgs),
    /// Authenticate to a registry
    #[command(override_usage = "caisson login [OPTIONS] [SERVER]")]
    Login(login::LoginArgs),
    /// Log out from a registry
    #[command(override_usage = "caisson logout [SERVER]")]
    Logout(logout::LogoutArgs),
    /// Fetch the logs of a container
    #[command(override_usage = "caisson logs [OPTIONS] CONTAINER")]
    Logs(logs::LogsArgs),
    /// Manage the emulated host in which containers run where KVM cannot
    Machine(machine::MachineArgs),
    /// Pause all processes within one or more containers
    #[command(override_usage = "caisson pause CONTAINER [CONTAINER...]")]
    Pause(pause::PauseArgs),
    /// Download an image from a registry
    #[command(override_usage = "caisson pull [OPTIONS] NAME[:TAG|@DIGEST]")]
    Pull(pull::PullArgs),
    /// Upload an image to a registry
    #[command(override_usage = "caisson push [OPTIONS] NAME[:TAG]")]
    Push(push::PushArgs),
    /// Rename a container
    #[command(override_usage = "caisson rename CONTAINER NEW_NAME")]
    Rename(rename::RenameArgs),
    /// Restart one or more containers
    #[command(override_usage = "caisson restart [OPTIONS] CONTAINER [CONTAINER...]")]
    Restart(restart::RestartArgs),
    /// Remove one or more containers
    #[command(override_usage = "caisson rm [OPTIONS] CONTAINER [CONTAINER...]")]
    Rm(rm::RmArgs),
    /// Remove one or more images
    #[command(override_usage = "caisson rmi [OPTIONS] IMAGE [IMAGE...]")]
    Rmi(rmi::RmiArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    #[command(override_usage = "caisson save [OPTIONS] IMAGE [IMAGE...]")]
    Save(save::SaveArgs),
    /// Search a registry for images
    #[command(override_usage = "caisson search [OPTIONS] TERM")]
    Search(search::SearchArgs),
    /// Start one or more stopped containers
    #[command(override_usage = "caisson start [OPTIONS] CONTAINER [CONTAINER...]")]
    Start(start::StartArgs),
    /// Display a live stream of container(s) resource usage statistics
    #[command(override_usage = "caisson stats [OPTIONS] [CONTAINER...]")]
    Stats(stats::StatsArgs),
    /// Stop one or more running containers
    #[command(override_usage = "caisson stop [OPTIONS] CONTAINER [CONTAINER...]")]
    Stop(stop::StopArgs),
    /// Manage Caisson
    #[command(override_usage = "caisson system COMMAND")]
    System(system::SystemArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    #[command(override_usage = "caisson tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]")]
    Tag(tag::TagArgs),
    /// Display the running processes of a container
    ///
    /// Of the options of ps these choose the columns: -f, -ef, aux, and -o LIST with %cpu, %mem,
    /// args, c, cmd, comm, command, cputime, etime, lstart, ni, nice, nlwp, pcpu, pid, pmem,
    /// ppid, rss, s, start, stat, state, stime, thcount, time, tname, tt, tty, ucmd, uid, user,
    /// vsize and vsz. All processes of the container are shown, with the ids that the guest
    /// gives them and times in UTC.
    #[command(override_usage = "caisson top CONTAINER [ps OPTIONS]")]
    Top(top::TopArgs),
    /// Unpause all processes within one or more containers
    #[command(override_usage = "caisson unpause CONTAINER [CONTAINER...]")]
    Unpause(pause::PauseArgs),
    /// Update configuration of one or more containers
    ///
    /// A container that runs gets no more memory and CPUs than its VM was started with.
    #[command(override_usage = "caisson update [OPTIONS] CONTAINER [CONTAINER...]")]
    Update(update::UpdateArgs),
    /// Show the Caisson version information
    #[command(override_usage = "caisson version [OPTIONS]")]
    Version(version::VersionArgs),
    /// Manage volumes
    #[command(override_usage = "caisson volume COMMAND")]
    Volume(volume::VolumeArgs),
    /// Block until one or more containers stop, then print their exit codes
    #[command(override_usage = "caisson wait CONTAINER [CONTAINER...]")]
    Wait(wait::WaitArgs),
    /// Wait for one container's end and clean up after it (for internal use)
    #[command(name = engine::MONITOR_COMMAND, hide = true)]
    Monitor(container::MonitorArgs),
}

#[derive(Debug, thiserror::Error)]
#[error("permission denied: VMs and their state belong to root; run it with sudo")]
struct NotRoot;

/// Carries the command out, here or in the machine.
pub fn dispatch(globals: &Globals, command: Command) -> CommandResult {
    let command = match command {
        Command::Container(args) => args.command.flatten(),
        Command::Image(args) => args.command.flatten(),
        Command::System(args) => args.command.flatten(),
        command => command,
    };
    if command.touches_state() {
        let decided = accel::decide(globals.accel, machine::is_inside(), &Host::probe());
        let place = decided.map_err(|error| command.failed(Failure::from(error)))?;
        if place == Place::Machine {
            let mut variables = command.callers_variables();
            if !beside_machine::is_carried_as_it_is()
                && let Some(done) = beside(globals, &command, &mut variables)
            {
                return done;
            }
            let shared = command.shared_with_machine();
            let shared = shared.map_err(|failure| command.failed(failure))?;
            let carried = machine::carry(globals, command.reads_input(), variables, shared);
            return carried.map_err(|error| command.failed(Failure::from_anyhow(error)));
        }
        if !nix::unistd::Uid::effective().is_root() {
            return Err(command.failed(NotRoot.into()));
        }
    }
    here(globals, command)
}

/// What is done on this host before, or instead of, carrying the command into the machine;
/// the result if that was all.
fn beside(
    globals: &Globals,
    command: &Command,
    variables: &mut Vec<String>,
) -> Option<CommandResult> {
    match command {
        Command::Pull(args) => Some(pull::pull_for_machine(globals, args)),
        Command::Push(args) => Some(push::push_for_machine(globals, args)),
        Command::Cp(args) => cp::copy_from_machine(globals, args),
        Command::Export(args) => export::export_from_machine(globals, args),
        Command::Save(save::SaveArgs { output: Some(path), images, .. }) => {
            Some(save::save_from_machine(globals, path, images))
        }
        Command::Create(create::CreateArgs { flags, words })
        | Command::Run(run::RunArgs { flags, words, .. }) => {
            variables.push(format!("{}=1", pull::PULLED_BY_HOST));
            let prepared = create::prepare_machine(globals, flags, words);
            prepared.err().map(|failure| Err(command.failed(failure)))
        }
        _ => None,
    }
}

fn here(globals: &Globals, command: Command) -> CommandResult {
    match command {
        Command::Attach(args) => attach::attach(globals, &args),
        Command::Completion(args) => completion::completion(&args),
        Command::Container(container::ContainerArgs { command: ContainerCommand::Prune(args) }) => {
            prune::containers(globals, &args)
        }
        Command::Container(args) => here(globals, args.command.flatten()),
        Command::Cp(args) => cp::cp(globals, &args),
        Command::Create(args) => create::create(globals, &args),
        Command::Diff(args) => diff::diff(globals, &args),
        Command::Doctor(args) => doctor::doctor(globals, &args),
        Command::Events(args) => events::events(globals, &args),
        Command::Exec(args) => exec::exec(globals, &args),
        Command::Export(args) => export::export(globals, &args),
        Command::Image(image::ImageArgs { command: ImageCommand::Prune(args) }) => {
            prune::images(globals, &args)
        }
        Command::Image(image::ImageArgs { command: ImageCommand::Exists(args) }) => {
            image::exists(globals, &args)
        }
        Command::Image(args) => here(globals, args.command.flatten()),
        Command::History(args) => history::history(globals, &args),
        Command::Images(args) => images::images(globals, &args),
        Command::Import(args) => import::import(globals, &args),
        Command::Info(args) => info::info(globals, &args),
        Command::Inspect(args) => inspect::inspect(globals, &args),
        Command::Kill(args) => kill::kill(globals, &args),
        Command::Load(args) => load::load(globals, &args),
        Command::Login(args) => login::login(globals, &args),
        Command::Logout(args) => logout::logout(globals, &args),
        Command::Logs(args) => logs::logs(globals, &args),
        Command::Machine(args) => {
            machine::run_machine_command(globals, args).map_err(Failure::from_anyhow)
        }
        Command::Monitor(args) => container::monitor(globals, &args),
        Command::Pause(args) => pause::pause(globals, &args),
        Command::Ps(args) => ps::ps(globals, &args),
        Command::Pull(args) => pull::pull(globals, &args),
        Command::Push(args) => push::push(globals, &args),
        Command::Rename(args) => rename::rename(globals, &args),
        Command::Restart(args) => restart::restart(globals, &args),
        Command::Rm(args) => rm::rm(globals, &args),
        Command::Rmi(args) => rmi::rmi(globals, &args),
        Command::Run(args) => run::run(globals, &args),
        Command::Save(args) => save::save(globals, &args),
        Command::Search(args) => search::search(globals, &args),
        Command::Start(args) => start::start(globals, &args),
        Command::Stats(args) => stats::stats(globals, &args),
        Command::Stop(args) => stop::stop(globals, &args),
        Command::System(args) => system::system(globals, args),
        Command::Tag(args) => tag::tag(globals, &args),
        Command::Top(args) => top::top(globals, &args),
        Command::Unpause(args) => pause::unpause(globals, &args),
        Command::Update(args) => update::update(globals, &args),
        Command::Version(args) => version::version(&args),
        Command::Volume(args) => volume::volume(globals, args),
        Command::Wait(args) => wait::wait(globals, &args),
    }
}

impl Command {
    /// Whether it must be carried out where the containers are.
    fn touches_state(&self) -> bool {
        !matches!(
            self,
            Self::Completion(_)
                | Self::Doctor(_)
                | Self::Login(_)
                | Self::Logout(_)
                | Self::Machine(_)
                | Self::Monitor(_)
                | Self::Search(_)
                | Self::Version(_)
        )
    }

    /// Whether it may read standard input.
    fn reads_input(&self) -> bool {
        match self {
            Self::Attach(_) => true,
            Self::Container(container::ContainerArgs {
                command: ContainerCommand::Prune(args),
            }) => !args.force,
            Self::Image(image::ImageArgs { command: ImageCommand::Prune(args) }) => !args.force,
            Self::Cp(args) => args.reads_input(),
            Self::Volume(volume::VolumeArgs { command: volume::VolumeCommand::Prune(args) }) => {
                !args.force
            }
            Self::System(system::SystemArgs { command: system::SystemCommand::Prune(args) }) => {
                !args.force
            }
            Self::Exec(args) => args.interactive,
            Self::Import(args) => args.file == "-",
            Self::Load(args) => args.input.is_none(),
            Self::Run(args) => args.flags.interactive,
            Self::Start(args) => args.interactive,
            _ => false,
        }
    }

    /// The caller's variables that it takes over by their names, as `NAME=value`.
    fn callers_variables(&self) -> Vec<String> {
        let (files, flags) = match self {
            Self::Create(args) => (&args.flags.env_file, &args.flags.env),
            Self::Exec(args) => (&args.env_file, &args.env),
            Self::Run(args) => (&args.flags.env_file, &args.flags.env),
            _ => return Vec::new(),
        };
        environment::taken_from_caller(files, flags, &|name| std::env::var(name).ok())
    }

    /// What of this host it may change in the machine, beside the working directory.
    fn shared_with_machine(&self) -> Result<Vec<PathBuf>, Failure> {
        match self {
            Self::Create(args) => create::shared_with_machine(&args.flags),
            Self::Run(args) => create::shared_with_machine(&args.flags),
            _ => Ok(Vec::new()),
        }
    }

    /// With the exit code and the hint of those that run something.
    fn failed(&self, failure: Failure) -> Failure {
        match self {
            Self::Run(_) => failure.of_run("caisson run"),
            Self::Create(_) => failure.of_run("caisson create"),
            Self::Exec(_) => failure.of_run("caisson exec"),
            _ => failure,
        }
    }
}

/// Does `action` for each name and prints what it gives; goes on after a failure, and
/// fails at the end.
fn for_each(
    names: &[String],
    mut action: impl FnMut(&str) -> Result<Option<String>, Failure>,
) -> CommandResult {
    let mut failed = false;
    for name in names {
        match action(name) {
            Ok(Some(line)) => print_line(&line)?,
            Ok(None) => {}
            Err(failure) => {
                failure.report();
                failed = true;
            }
        }
    }
    if failed { Err(Failure::quiet(1)) } else { Ok(ExitCode::SUCCESS) }
}

/// Writes a line on standard output; a closed pipe ends the command quietly.
pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    use std::io::Write;
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
