//! Work on a container's files and processes that the agent does itself, in a process of its
//! own with streams like any other's. It is created, started, signalled, told of and deleted
//! as an exec is, also in a container whose process has not been started.
//!
//! Results go to standard output. Why a tool failed is one line on standard error, and the
//! exit code is then 1.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tool {
    /// The container's processes: one [`ProcessEntry`] as JSON a line.
    Top,
    /// The root filesystem without what is mounted in it, as a tar archive of `./`'s contents.
    Export,
    /// What differs from the image: `A`, `C` or `D`, a space, the path, and a NUL each.
    Diff,
    /// What is at `path`, as a tar archive whose first entry is it. Of a path that ends with
    /// `/.` the directory's contents, below `./`.
    Read {
        path: String,
        /// If `path` names a symbolic link, what that leads to.
        follow: bool,
    },
    /// Unpacks the tar archive on standard input.
    Write { path: String, source: WriteSource },
}

/// What a [`Tool::Write`] gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteSource {
    /// Any entries, which keep their owners, for a directory that must be there.
    Entries,
    /// One file or directory, whose name all entries begin with, placed as `docker cp` does.
    Tree {
        directory: bool,
        /// A directory's contents: the entries do not begin with its name.
        contents: bool,
        /// Else root owns everything.
        keep_owner: bool,
    },
}

/// One line of [`Tool::Top`]. Texts are the workload's: any bytes, cut at
/// [`MAX_COMMAND_BYTES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// As the guest numbers them.
    pub pid: u32,
    pub ppid: u32,
    pub uid: u32,
    /// The name of `uid` in the container's `/etc/passwd`; the number where it has none.
    pub user: String,
    /// `R`, `S`, `D`, `Z`, …
    pub state: String,
    /// `pts/0`; `?` without a terminal.
    pub tty: String,
    /// Hundredths of a second on a CPU.
    pub cpu_centis: u64,
    /// Hundredths of a second since it began.
    pub age_centis: u64,
    pub nice: i64,
    pub threads: u64,
    pub virtual_kib: u64,
    pub resident_kib: u64,
    /// `resident_kib` in thousandths of the guest's memory.
    pub resident_permille: u64,
    /// The program's short name.
    pub comm: String,
    /// Arguments with spaces between; `[comm]` without any.
    pub args: String,
}

/// Of a command line in [`ProcessEntry`].
pub const MAX_COMMAND_BYTES: usize = 4096;
