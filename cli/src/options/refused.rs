//! Docker's flags that this version cannot honour. They are known, so that each is
//! answered with its reason and none is silently ignored.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// `(long, short, takes a value, what it needs)`.
type Row = (&'static str, Option<char>, bool, &'static str);

const NETWORKS: &str = "not part of this version; `--network` and `-p` are";
const DRIVERS: &str = "there are volumes of the driver \"local\" only";
const DEVICES: &str = "a microVM has no devices of the host";
const NAMESPACES: &str = "the container has its microVM to itself; there is nothing to share";
const HEALTH: &str = "health checks are not part of this version";
const BLOCK_LIMITS: &str = "a microVM has no devices of the host; `--disk-bandwidth` and \
                            `--disk-iops` limit its own disks";

const FLAGS: [Row; 42] = [
    ("add-host", None, true, NETWORKS),
    ("dns", None, true, NETWORKS),
    ("dns-option", None, true, NETWORKS),
    ("dns-search", None, true, NETWORKS),
    ("expose", None, true, NETWORKS),
    ("ip", None, true, NETWORKS),
    ("ip6", None, true, NETWORKS),
    ("link", None, true, NETWORKS),
    ("link-local-ip", None, true, NETWORKS),
    ("mac-address", None, true, NETWORKS),
    ("network-alias", None, true, NETWORKS),
    ("publish-all", Some('P'), false, NETWORKS),
    ("volume-driver", None, true, DRIVERS),
    ("device", None, true, DEVICES),
    ("device-cgroup-rule", None, true, DEVICES),
    ("gpus", None, true, DEVICES),
    ("cgroupns", None, true, NAMESPACES),
    ("ipc", None, true, NAMESPACES),
    ("pid", None, true, NAMESPACES),
    ("userns", None, true, NAMESPACES),
    ("uts", None, true, NAMESPACES),
    ("cgroup-parent", None, true, NAMESPACES),
    ("health-cmd", None, true, HEALTH),
    ("health-interval", None, true, HEALTH),
    ("health-retries", None, true, HEALTH),
    ("health-start-interval", None, true, HEALTH),
    ("health-start-period", None, true, HEALTH),
    ("health-timeout", None, true, HEALTH),
    ("blkio-weight", None, true, BLOCK_LIMITS),
    ("blkio-weight-device", None, true, BLOCK_LIMITS),
    ("device-read-bps", None, true, BLOCK_LIMITS),
    ("device-read-iops", None, true, BLOCK_LIMITS),
    ("device-write-bps", None, true, BLOCK_LIMITS),
    ("device-write-iops", None, true, BLOCK_LIMITS),
    ("cpu-period", None, true, "`--cpus` sets the CPU limit"),
    ("cpu-quota", None, true, "`--cpus` sets the CPU limit"),
    ("cpuset-mems", None, true, "a microVM has one memory node"),
    ("domainname", None, true, "`--hostname` takes a name with dots"),
    ("group-add", None, true, "`--user user:group` sets the group"),
    ("init", None, false, "name an init of the image with `--entrypoint`"),
    ("memory-swappiness", None, true, "the microVM has no swap"),
    ("runtime", None, true, "Caisson is the runtime"),
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag}: {reason}")]
pub struct Refused {
    flag: &'static str,
    reason: &'static str,
}

/// The first of these flags that was given, if any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedFlags {
    given: Option<usize>,
}

impl RefusedFlags {
    pub fn check(&self) -> Result<(), Refused> {
        match self.given.and_then(|index| FLAGS.get(index)) {
            Some(&(flag, _, _, reason)) => Err(Refused { flag, reason }),
            None => Ok(()),
        }
    }
}

impl Args for RefusedFlags {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, &(long, short, takes_value, reason)| {
            let action = if takes_value { ArgAction::Append } else { ArgAction::SetTrue };
            let mut arg = Arg::new(long).long(long).action(action).hide(true).help(reason);
            if let Some(short) = short {
                arg = arg.short(short);
            }
            if takes_value {
                arg = arg.allow_hyphen_values(true);
            }
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RefusedFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let on_command_line =
            |id| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
        let given = FLAGS.iter().position(|&(long, ..)| on_command_line(long));
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_answered_with_its_reason() {
        for (index, &(long, short, takes_value, reason)) in FLAGS.iter().enumerate() {
            let spellings = [Some(format!("--{long}")), short.map(|short| format!("-{short}"))];
            for spelling in spellings.into_iter().flatten() {
                let mut args = vec!["run".to_owned(), spelling];
                if takes_value {
                    args.push("8080:80".into());
                }
                let matches = RefusedFlags::augment_args(Command::new("run"))
                    .try_get_matches_from(args)
                    .expect("known");
                let flags = RefusedFlags::from_arg_matches(&matches).expect("matches");
                assert_eq!(flags.given, Some(index), "--{long}");
                assert_eq!(flags.check(), Err(Refused { flag: long, reason }));
            }
        }
    }

    #[test]
    fn nothing_given_is_nothing_refused() {
        assert_eq!(RefusedFlags::default().check(), Ok(()));
    }
}
