//! The flags that `run` and `create` share, in the alphabet's order as docker lists them.

use clap::Args;

use super::refused::RefusedFlags;
use crate::config::LogDriver;

#[derive(Args, Clone, Debug, Default)]
pub struct ContainerFlags {
    /// Add Linux capabilities
    #[arg(long, value_name = "list")]
    pub cap_add: Vec<String>,

    /// Drop Linux capabilities
    #[arg(long, value_name = "list")]
    pub cap_drop: Vec<String>,

    /// Write the container ID to the file
    #[arg(long, value_name = "string")]
    pub cidfile: Option<std::path::PathBuf>,

    /// CPU shares (relative weight)
    #[arg(short, long, value_name = "int")]
    pub cpu_shares: Option<u64>,

    /// Number of CPUs; the microVM gets as many, rounded up
    #[arg(long, value_name = "decimal")]
    pub cpus: Option<String>,

    /// CPUs of the microVM in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    pub cpuset_cpus: Option<String>,

    /// Limit what the microVM's disks move in a second (10m, or 10m:50m with a burst)
    #[arg(long, value_name = "bytes[:burst]")]
    pub disk_bandwidth: Option<String>,

    /// Limit the requests to the microVM's disks in a second (500, or 500:2000 with a burst)
    #[arg(long, value_name = "int[:burst]")]
    pub disk_iops: Option<String>,

    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "string")]
    pub entrypoint: Option<String>,

    /// Set environment variables
    #[arg(short, long, value_name = "list")]
    pub env: Vec<String>,

    /// Read in a file of environment variables
    #[arg(long, value_name = "list")]
    pub env_file: Vec<std::path::PathBuf>,

    /// Container host name
    #[arg(short = 'h', long, value_name = "string")]
    pub hostname: Option<String>,

    /// Keep STDIN open even if not attached
    #[arg(short, long)]
    pub interactive: bool,

    /// Set meta data on a container
    #[arg(short, long, value_name = "list")]
    pub label: Vec<String>,

    /// Read in a line delimited file of labels
    #[arg(long, value_name = "list")]
    pub label_file: Vec<std::path::PathBuf>,

    /// Logging driver for the container (json-file|none)
    #[arg(long, value_name = "string", hide_possible_values = true)]
    pub log_driver: Option<LogDriver>,

    /// Log driver options (max-size=10m, max-file=3)
    #[arg(long, value_name = "list")]
    pub log_opt: Vec<String>,

    /// Memory limit; the microVM's size follows it
    #[arg(short, long, value_name = "bytes")]
    pub memory: Option<String>,

    /// Memory soft limit
    #[arg(long, value_name = "bytes")]
    pub memory_reservation: Option<String>,

    /// Swap limit equal to memory plus swap; the guest has no swap
    #[arg(long, value_name = "bytes", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,

    /// Attach a filesystem mount to the container
    #[arg(long, value_name = "mount")]
    pub mount: Vec<String>,

    /// Assign a name to the container
    #[arg(long, value_name = "string")]
    pub name: Option<String>,

    /// Connect a container to a network (none, bridge, ns:PATH)
    #[arg(long, visible_alias = "net", value_name = "network")]
    pub network: Option<String>,

    /// Tune the guest's OOM preferences (-1000 to 1000)
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub oom_score_adj: Option<i32>,

    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,

    /// Publish a container's TCP port to the host: [ADDRESS:]PORT:PORT
    #[arg(short, long, value_name = "port")]
    pub publish: Vec<String>,

    /// Set platform of the image to pull, if there are several
    #[arg(long, value_name = "string")]
    pub platform: Option<String>,

    /// Give extended privileges to this container, within its microVM
    #[arg(long)]
    pub privileged: bool,

    /// Pull image before running ("always"|"missing"|"never")
    #[arg(long, value_name = "string", default_value = "missing")]
    pub pull: String,

    /// Suppress the pull output
    #[arg(short, long)]
    pub quiet: bool,

    /// Mount the container's root filesystem as read only
    #[arg(long)]
    pub read_only: bool,

    /// Restart policy to apply when a container exits (no)
    #[arg(long, value_name = "string")]
    pub restart: Option<String>,

    /// Automatically remove the container when it exits
    #[arg(long)]
    pub rm: bool,

    /// Security options
    #[arg(long, value_name = "list")]
    pub security_opt: Vec<String>,

    /// Size of /dev/shm
    #[arg(long, value_name = "bytes")]
    pub shm_size: Option<String>,

    /// Signal to stop the container
    #[arg(long, value_name = "string")]
    pub stop_signal: Option<String>,

    /// Timeout (in seconds) to stop a container
    #[arg(long, value_name = "int")]
    pub stop_timeout: Option<u64>,

    /// Storage driver options for the container (size=10g)
    #[arg(long, value_name = "list")]
    pub storage_opt: Vec<String>,

    /// Sysctl options, within the microVM
    #[arg(long, value_name = "map")]
    pub sysctl: Vec<String>,

    /// Mount a tmpfs directory
    #[arg(long, value_name = "list")]
    pub tmpfs: Vec<String>,

    /// Allocate a pseudo-TTY
    #[arg(short, long)]
    pub tty: bool,

    /// Ulimit options
    #[arg(long, value_name = "ulimit")]
    pub ulimit: Vec<String>,

    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, value_name = "string")]
    pub user: Option<String>,

    /// Mount a volume, or a directory or file of the host ([HOST:|VOLUME:]CONTAINER[:ro])
    #[arg(short, long, value_name = "list")]
    pub volume: Vec<String>,

    /// Mount volumes from the specified container(s) (CONTAINER[:ro])
    #[arg(long, value_name = "list")]
    pub volumes_from: Vec<String>,

    /// Working directory inside the container
    #[arg(short, long, value_name = "string")]
    pub workdir: Option<String>,

    #[command(flatten)]
    pub refused: RefusedFlags,
}
