//! Everything a person or CI does with this repository, by one program.
//!
//! `cargo xtask quickstart` and `cargo xtask test` are the two commands of the README;
//! the others are their steps.

mod bench;
mod binaries;
mod check;
mod cpio;
mod emulator;
mod fuzz;
mod images;
mod kernel;
mod machine_assets;
mod packages;
mod policy;
mod process;
mod quickstart;
mod soak;
mod specification;
mod tests;
mod workspace;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Sets up, builds, tests and measures Caisson")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, build everything, make an image and run it in a microVM
    Quickstart,
    /// Install the Debian packages that building and testing need
    Setup,
    /// Build the programs, the guest kernel, the initramfs and the machine
    Build {
        /// Compile sooner, for slower programs: to try a change, not to ship or measure
        #[arg(long)]
        quick: bool,
    },
    /// Make the images of the tests, and print where their archives are
    Images,
    /// Run every check and every test
    Test {
        /// Only the tests whose name contains this
        filter: Option<String>,
        /// Leave out formatting, lints, policy and unit tests
        #[arg(long)]
        only_end_to_end: bool,
    },
    /// Run what needs no VM: formatting, lints, policy, unit tests
    Check,
    /// Feed the parsers of foreign data with what they must bear: all targets, or these
    Fuzz {
        /// Names of files in fuzz/targets, without the ending
        targets: Vec<String>,
        /// How long each target runs
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Measure, and compare with the recorded budgets
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Run containers with random faults for a long time, and fail if anything grows
    Soak(soak::SoakArgs),
    /// Copy the built programs and files below a prefix
    Install {
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// From `caisson run` to the first byte of output: stages, exits, instructions, memory
    Boot {
        #[arg(long, default_value_t = 3)]
        runs: usize,
    },
    /// What jail and filters cost: boot and disk I/O, on and off
    Isolation {
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Task::Quickstart => quickstart::run_all(),
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Setup => packages::install_missing(),
        Task::Build { quick: false } => binaries::build_all(),
        Task::Build { quick: true } => binaries::build_all_as(binaries::Profile::Quick),
        Task::Images => images::make_all().map(|images| {
            for image in images {
                println!("{}", image.path.display());
            }
        }),
        Task::Test { filter, only_end_to_end } => tests::run(filter.as_deref(), only_end_to_end),
        Task::Check => check::run(),
        Task::Fuzz { targets, seconds } => fuzz::run(&targets, seconds),
        Task::Bench { bench: Bench::Boot { runs } } => bench::boot(runs),
        Task::Bench { bench: Bench::Isolation { runs } } => bench::isolation(runs),
        Task::Install { prefix } => binaries::install(&prefix),
    }
}
