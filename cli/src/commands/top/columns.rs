//! The options of ps(1), as far as they choose columns. Which processes are shown is not
//! theirs to choose: it is all of the container's.

use caisson_agent_protocol::tool::ProcessEntry;

use crate::format::units::{self, UnixNanos};

/// What stands above a column, and what of a process stands in it, at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) heading: &'static str,
    pub(super) cell: Cell,
}

type Cell = fn(&ProcessEntry, UnixNanos) -> String;

/// By the names that `-o` takes.
const COLUMNS: [(&str, &str, Cell); 34] = [
    ("%cpu", "%CPU", cpu_tenths),
    ("%mem", "%MEM", memory),
    ("args", "COMMAND", args),
    ("c", "C", cpu_percent),
    ("cmd", "CMD", args),
    ("comm", "COMMAND", |process, _| process.comm.clone()),
    ("command", "COMMAND", args),
    ("cputime", "TIME", cpu_time),
    ("etime", "ELAPSED", |process, _| elapsed(process.age_centis / 100)),
    ("lstart", "STARTED", |process, now| long_start(began(process, now))),
    ("ni", "NI", |process, _| process.nice.to_string()),
    ("nice", "NI", |process, _| process.nice.to_string()),
    ("nlwp", "NLWP", |process, _| process.threads.to_string()),
    ("pcpu", "%CPU", cpu_tenths),
    ("pid", "PID", |process, _| process.pid.to_string()),
    ("pmem", "%MEM", memory),
    ("ppid", "PPID", |process, _| process.ppid.to_string()),
    ("rss", "RSS", |process, _| process.resident_kib.to_string()),
    ("s", "S", |process, _| process.state.clone()),
    ("start", "START", |process, now| start(began(process, now), now)),
    ("stat", "STAT", |process, _| process.state.clone()),
    ("state", "S", |process, _| process.state.clone()),
    ("stime", "STIME", |process, now| start(began(process, now), now)),
    ("thcount", "THCNT", |process, _| process.threads.to_string()),
    ("time", "TIME", cpu_time),
    ("tname", "TTY", |process, _| process.tty.clone()),
    ("tt", "TT", |process, _| process.tty.clone()),
    ("tty", "TT", |process, _| process.tty.clone()),
    ("ucmd", "CMD", |process, _| process.comm.clone()),
    ("uid", "UID", |process, _| process.uid.to_string()),
    ("user", "USER", |process, _| process.user.clone()),
    ("vsize", "VSZ", |process, _| process.virtual_kib.to_string()),
    ("vsz", "VSZ", |process, _| process.virtual_kib.to_string()),
    // As `-f` heads the user's name.
    (FULL_USER, "UID", |process, _| process.user.clone()),
];

/// Not a name that `-o` takes.
const FULL_USER: &str = "-f user";
const FULL: [&str; 8] = [FULL_USER, "pid", "ppid", "c", "stime", "tname", "time", "cmd"];
const BY_USER: [&str; 11] =
    ["user", "pid", "%cpu", "%mem", "vsz", "rss", "tname", "stat", "start", "time", "command"];
const SHORT: [&str; 4] = ["pid", "tname", "time", "ucmd"];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum OptionError {
    #[error("ps option {0:?} is not supported; there are -e, -f, -ef, aux and -o LIST")]
    Unknown(String),
    #[error("ps option -o needs a list of columns, such as pid,user,cmd")]
    NoList,
    #[error("ps -o has no column {0:?} here; `caisson top --help` lists those it has")]
    NoColumn(String),
}

/// The columns that `options` ask for; `-ef` without any.
pub(super) fn columns(options: &[String]) -> Result<Vec<Column>, OptionError> {
    let mut names: Vec<String> = Vec::new();
    let mut fixed: Option<&[&str]> = None;
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let (letters, list) = match word.split_once('o') {
            // `o` is the last of a group of letters; the list follows it or is the next word.
            Some((letters, list)) => (letters, Some(list)),
            None => (word.as_str(), None),
        };
        let unknown = || OptionError::Unknown(word.clone());
        for letter in letters.strip_prefix('-').unwrap_or(letters).chars() {
            match letter {
                // Which processes: all that there are.
                'e' | 'A' | 'a' | 'x' => fixed = fixed.or(Some(&SHORT)),
                'f' => fixed = Some(&FULL),
                'u' => fixed = Some(&BY_USER),
                _ => return Err(unknown()),
            }
        }
        if let Some(list) = list {
            let list = match list.is_empty() {
                true => words.next().ok_or(OptionError::NoList)?,
                false => list,
            };
            names.extend(list.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    if names.is_empty() {
        let fixed = if options.is_empty() { &FULL } else { fixed.unwrap_or(&FULL) };
        names = fixed.iter().map(ToString::to_string).collect();
    }
    names.into_iter().map(|name| column(&name).ok_or(OptionError::NoColumn(name))).collect()
}

fn column(name: &str) -> Option<Column> {
    let (_, heading, cell) = COLUMNS.iter().find(|(known, ..)| *known == name)?;
    Some(Column { heading, cell: *cell })
}

fn args(process: &ProcessEntry, _: UnixNanos) -> String {
    process.args.clone()
}

/// Of one CPU over the process's life.
fn cpu_percent(process: &ProcessEntry, _: UnixNanos) -> String {
    let share = process.cpu_centis.saturating_mul(100).checked_div(process.age_centis);
    share.unwrap_or(0).min(99).to_string()
}

fn cpu_tenths(process: &ProcessEntry, _: UnixNanos) -> String {
    let share = process.cpu_centis.saturating_mul(1000).checked_div(process.age_centis);
    let share = share.unwrap_or(0);
    format!("{}.{}", share / 10, share % 10)
}

fn memory(process: &ProcessEntry, _: UnixNanos) -> String {
    format!("{}.{}", process.resident_permille / 10, process.resident_permille % 10)
}

fn cpu_time(process: &ProcessEntry, _: UnixNanos) -> String {
    let seconds = process.cpu_centis / 100;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// `[[days-]hours:]minutes:seconds`.
fn elapsed(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let rest = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => rest,
        (0, hours) => format!("{hours:02}:{rest}"),
        (days, hours) => format!("{days}-{hours:02}:{rest}"),
    }
}

fn began(process: &ProcessEntry, now: UnixNanos) -> UnixNanos {
    let age = i64::try_from(process.age_centis).unwrap_or(i64::MAX).saturating_mul(10_000_000);
    now.saturating_sub(age)
}

/// The time of a day that is not over, else the day.
fn start(began: UnixNanos, now: UnixNanos) -> String {
    // 2026-01-02T13:23:37.000000000Z
    let (began, now) = (units::rfc3339(Some(began)), units::rfc3339(Some(now)));
    if began.get(..10) == now.get(..10) {
        return began.get(11..16).unwrap_or("?").to_owned();
    }
    let month = began.get(5..7).and_then(|month| month.parse::<usize>().ok());
    let month = month.and_then(|month| MONTHS.get(month.checked_sub(1)?)).unwrap_or(&"?");
    format!("{month}{}", began.get(8..10).unwrap_or("?"))
}

fn long_start(began: UnixNanos) -> String {
    let began = units::rfc3339(Some(began));
    began.get(..19).unwrap_or("?").replace('T', " ")
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::*;

    fn headings(options: &[&str]) -> Result<Vec<&'static str>, OptionError> {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        Ok(columns(&options)?.iter().map(|column| column.heading).collect())
    }

    #[test]
    fn options_choose_columns_as_ps_has_them() {
        let full = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
        assert_eq!(headings(&[]).unwrap(), full);
        assert_eq!(headings(&["-ef"]).unwrap(), full);
        assert_eq!(headings(&["-e", "-f"]).unwrap(), full);
        assert_eq!(headings(&["-e"]).unwrap(), ["PID", "TTY", "TIME", "CMD"]);
        for aux in ["aux", "-aux", "axu"] {
            assert_eq!(headings(&[aux]).unwrap()[..3], ["USER", "PID", "%CPU"], "{aux}");
        }
        let chosen = ["PID", "COMMAND"];
        for options in [&["-o", "pid,comm"][..], &["-eo", "pid comm"], &["-opid,", "-o", "args"]] {
            assert_eq!(headings(options).unwrap(), chosen, "{options:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert_eq!(headings(&["-q"]), Err(OptionError::Unknown("-q".into())));
        assert_eq!(headings(&["--forest"]), Err(OptionError::Unknown("--forest".into())));
        assert_eq!(headings(&["-o"]), Err(OptionError::NoList));
        assert_eq!(headings(&["-o", "pid,wchan"]), Err(OptionError::NoColumn("wchan".into())));
        assert_eq!(headings(&["-o", FULL_USER]), Err(OptionError::NoColumn("-f".into())));
    }

    #[test]
    fn times_are_short_for_today_and_days_before() {
        const DAY: UnixNanos = 86_400 * 1_000_000_000;
        let noon = 20 * DAY + DAY / 2;
        assert_eq!(start(noon, noon + DAY / 4), "12:00");
        assert_eq!(start(noon, noon + DAY), "Jan21");
        assert_eq!(elapsed(59), "00:59");
        assert_eq!(elapsed(3600 * 25 + 61), "1-01:01:01");
        let process = ProcessEntry { cpu_centis: 150, age_centis: 300, ..ProcessEntry::default() };
        assert_eq!(cpu_percent(&process, 0), "50");
        assert_eq!(cpu_tenths(&process, 0), "50.0");
        assert_eq!(cpu_tenths(&ProcessEntry::default(), 0), "0.0");
    }
}
