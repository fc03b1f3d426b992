//! One container, as its row has it.

use rusqlite::Row;

use crate::{config::ContainerConfig, format::units::UnixNanos};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Creating,
    Created,
    Starting,
    Running,
    Exited,
    Removing,
    /// Of another version: can be removed.
    Unknown,
}

impl State {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Creating, "creating"),
        (Self::Created, "created"),
        (Self::Starting, "starting"),
        (Self::Running, "running"),
        (Self::Exited, "exited"),
        (Self::Removing, "removing"),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("unknown", |(_, word)| word)
    }

    fn parse(word: &str) -> Self {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == word)
            .map_or(Self::Unknown, |(state, _)| *state)
    }

    /// An operation is under way, or died.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Creating | Self::Starting | Self::Removing)
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub(super) number: i64,
    pub id: String,
    pub name: String,
    pub state: State,
    /// `None` if the row's configuration cannot be read; such a container can be listed
    /// and removed.
    pub config: Option<ContainerConfig>,
    pub created: UnixNanos,
    pub started: Option<UnixNanos>,
    pub finished: Option<UnixNanos>,
    pub exit_code: u8,
    pub oom_killed: bool,
    pub error: String,
    pub pid: u32,
    /// Its processes are frozen; only while it runs.
    pub paused: bool,
    /// A command has its files in a VM while it does not run, or died with them there.
    pub visited: bool,
    /// It is stopped to be started again.
    pub restarting: bool,
}

#[cfg(test)]
impl Container {
    /// A row for tests of what is made from rows.
    pub(crate) fn sample(
        id: String,
        name: &str,
        state: State,
        config: Option<ContainerConfig>,
    ) -> Self {
        Self {
            number: 1,
            id,
            name: name.to_owned(),
            state,
            config,
            created: 0,
            started: None,
            finished: None,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            pid: 0,
            paused: false,
            visited: false,
            restarting: false,
        }
    }
}

/// How a container's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: u8,
    pub at: UnixNanos,
    pub oom_killed: bool,
    pub error: String,
}

/// Numbers out of range become the nearest that is in it: a damaged row must not hide the
/// others.
pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Container> {
    let config: String = row.get(4)?;
    Ok(Container {
        number: row.get(0)?,
        id: row.get(1)?,
        name: row.get(2)?,
        state: State::parse(&row.get::<_, String>(3)?),
        config: serde_json::from_str(&config).ok(),
        created: row.get(5)?,
        started: row.get(6)?,
        finished: row.get(7)?,
        exit_code: u8::try_from(row.get::<_, i64>(8)?).unwrap_or(u8::MAX),
        oom_killed: row.get(9)?,
        error: row.get(10)?,
        pid: u32::try_from(row.get::<_, i64>(11)?).unwrap_or(0),
        paused: row.get(12)?,
        visited: row.get(13)?,
        restarting: row.get(14)?,
    })
}
