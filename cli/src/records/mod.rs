//! Containers as the database knows them: one row each.
//!
//! ```text
//!            create            start             ends
//!  creating ───────► created ───────► starting ───────► running ───────► exited
//!      │                │  ▲              │  │                             │ │
//!      │ failed         │  └── failed ────┘  └─────────── failed ─────────►│ │
//!      ▼                │                     ▲──────────── start ─────────┘ │
//!    (gone) ◄─ removing ◄┴───────────────────── rm ──────────────────────────┘
//! ```
//!
//! The states with an -ing are written before the side effects they announce, under the
//! container's lock ([`lock`]). Whoever finds such a state with the lock free knows that
//! its owner died, and undoes or finishes it ([`crate::engine`]'s `reap`).

mod container;
pub mod lock;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use caisson_rootfs::StoreError;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, config::DbConfig};

use crate::{config::ContainerConfig, format::units, names};
use container::from_row;
pub use container::{Container, Ended, State};
use lock::{ContainerLock, LockError, LockFile, Purpose};

const MIGRATIONS: [&str; 4] = [
    "
    CREATE TABLE containers (
        number     INTEGER PRIMARY KEY AUTOINCREMENT,  -- names its bytes in the lock file
        id         TEXT NOT NULL UNIQUE,
        name       TEXT NOT NULL UNIQUE,
        state      TEXT NOT NULL,
        config     TEXT NOT NULL,                      -- ContainerConfig, JSON
        created    INTEGER NOT NULL,                   -- times: nanoseconds since 1970
        started    INTEGER,
        finished   INTEGER,
        exit_code  INTEGER NOT NULL DEFAULT 0,
        oom_killed INTEGER NOT NULL DEFAULT 0,
        error      TEXT NOT NULL DEFAULT '',
        pid        INTEGER NOT NULL DEFAULT 0          -- the vmm's, while it runs
    );
",
    "ALTER TABLE containers ADD COLUMN paused INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE containers ADD COLUMN visited INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE containers ADD COLUMN restarting INTEGER NOT NULL DEFAULT 0",
];

/// Generated names that are taken before giving up.
const MAX_NAME_ATTEMPTS: u32 = 200;

/// A write-ahead log that is worth writing back. Opening reads all of it.
const MAX_LOG_BYTES: u64 = 512 << 10;

/// The kernel has no timeout for locks of open file descriptions.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);
const LAST_WATCHER_LEAVES_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {action} in the container table")]
    Database { action: &'static str, source: rusqlite::Error },
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("write the container's configuration as JSON")]
    Config(#[source] serde_json::Error),
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have \
         to remove (or rename) that container to be able to reuse that name."
    )]
    NameInUse { name: String, owner: String },
    #[error("No such container: {0}")]
    NotFound(String),
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    #[error(
        "the output of the last run of container {name} is still being read by another command; end that \
         command first"
    )]
    StillWatched { name: String },
    #[error("get random bytes for a name")]
    Random(#[source] std::io::Error),
}

/// The table and its locks.
pub struct Records {
    connection: Connection,
    locks: LockFile,
}

impl Records {
    /// `connection` is the store's; `root` is where the lock file goes.
    pub fn open(mut connection: Connection, root: &Path) -> Result<Self, RecordError> {
        keep_log(&connection, root).map_err(database_error("set up access"))?;
        caisson_rootfs::migrate(&mut connection, "containers", &MIGRATIONS)?;
        Ok(Self { connection, locks: LockFile::open(root)? })
    }

    /// Adds a container in state `creating`, locked by this process. Without a name it gets
    /// a generated one.
    pub fn insert(
        &mut self,
        id: &str,
        name: Option<&str>,
        config: &ContainerConfig,
    ) -> Result<(Container, ContainerLock), RecordError> {
        let text = serde_json::to_string(config).map_err(RecordError::Config)?;
        if let Some(name) = name {
            return self.try_insert(id, name, &text);
        }
        let mut attempt = 0;
        loop {
            let generated = names::generate(attempt).map_err(RecordError::Random)?;
            match self.try_insert(id, &generated, &text) {
                Err(RecordError::NameInUse { .. }) if attempt < MAX_NAME_ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    fn try_insert(
        &mut self,
        id: &str,
        name: &str,
        config: &str,
    ) -> Result<(Container, ContainerLock), RecordError> {
        let failed = database_error("add a container");
        let transaction = begin(&mut self.connection).map_err(failed)?;
        reject_taken(&transaction, name)?;
        transaction
            .execute(
                "INSERT INTO containers (id, name, state, config, created)
                 VALUES (?1, ?2, 'creating', ?3, ?4)",
                (id, name, config, units::now()),
            )
            .map_err(failed)?;
        let number = transaction.last_insert_rowid();
        // Before anyone can see the row: a creating container that is not locked is dead.
        let lock = self.locks.lock(number, Purpose::Change)?;
        transaction.commit().map_err(failed)?;
        Ok((self.by_id(id)?, lock))
    }

    /// Waits for the container's lock and reads the row again under it.
    pub fn lock(&self, container: &Container) -> Result<(Container, ContainerLock), RecordError> {
        let lock = self.locks.lock(container.number, Purpose::Change)?;
        Ok((self.by_id(&container.id)?, lock))
    }

    /// Waits until nobody else watches the container.
    pub fn watch(&self, container: &Container) -> Result<ContainerLock, RecordError> {
        Ok(self.locks.lock(container.number, Purpose::Watch)?)
    }

    /// As [`Records::watch`], for one whose last run is over: whoever watched that lets go
    /// as soon as its output is read.
    pub fn watch_next_run(&self, container: &Container) -> Result<ContainerLock, RecordError> {
        let until = Instant::now() + LAST_WATCHER_LEAVES_WITHIN;
        loop {
            match self.locks.try_lock(container.number, Purpose::Watch)? {
                Some(lock) => return Ok(lock),
                None if Instant::now() < until => thread::sleep(LOCK_INTERVAL),
                None => return Err(RecordError::StillWatched { name: container.name.clone() }),
            }
        }
    }

    /// Either lock, unless another process holds it.
    pub fn try_lock(
        &self,
        container: &Container,
        purpose: Purpose,
    ) -> Result<Option<ContainerLock>, RecordError> {
        Ok(self.locks.try_lock(container.number, purpose)?)
    }

    /// All containers, the newest first.
    pub fn all(&self) -> Result<Vec<Container>, RecordError> {
        self.query("list containers", &format!("{SELECT} ORDER BY created DESC, number DESC"), [])
    }

    /// Those whose state another process should be tending.
    pub fn tended(&self) -> Result<Vec<Container>, RecordError> {
        let sql = format!(
            "{SELECT} WHERE state IN ('creating', 'starting', 'running', 'removing') OR visited
             ORDER BY number"
        );
        self.query("list containers", &sql, [])
    }

    pub fn by_id(&self, id: &str) -> Result<Container, RecordError> {
        let found = self.query("find a container", &format!("{SELECT} WHERE id = ?1"), [id])?;
        found.into_iter().next().ok_or_else(|| RecordError::NotFound(id.to_owned()))
    }

    /// By full id, by name, or by a unique prefix of the id, in this order.
    pub fn find(&self, reference: &str) -> Result<Container, RecordError> {
        let not_found = || RecordError::NotFound(reference.to_owned());
        let name = reference.strip_prefix('/').unwrap_or(reference);
        let sql = format!("{SELECT} WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC LIMIT 1");
        if let Some(found) = self.query("find a container", &sql, [name])?.pop() {
            return Ok(found);
        }
        if reference.is_empty()
            || !reference.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(not_found());
        }
        let sql = format!("{SELECT} WHERE id GLOB ?1 || '*' LIMIT 2");
        let mut found = self.query("find a container", &sql, [reference])?;
        match (found.pop(), found.pop()) {
            (Some(container), None) => Ok(container),
            (Some(_), Some(_)) => Err(RecordError::Ambiguous(reference.to_owned())),
            (None, _) => Err(not_found()),
        }
    }

    pub fn set_state(&self, id: &str, state: State) -> Result<(), RecordError> {
        self.update("UPDATE containers SET state = ?2 WHERE id = ?1", (id, state.as_str()))
    }

    pub fn set_running(&self, id: &str, pid: u32) -> Result<(), RecordError> {
        self.update(
            "UPDATE containers SET state = 'running', pid = ?2, started = ?3, finished = NULL,
                exit_code = 0, oom_killed = 0, error = '', paused = 0, restarting = 0
             WHERE id = ?1",
            (id, pid, units::now()),
        )
    }

    /// A start that did not succeed: back to where it was, with the reason.
    pub fn set_start_failed(&self, id: &str, code: u8, error: &str) -> Result<(), RecordError> {
        self.update(
            "UPDATE containers SET pid = 0, exit_code = ?2, error = ?3,
                state = CASE WHEN started IS NULL THEN 'created' ELSE 'exited' END WHERE id = ?1",
            (id, code, error),
        )
    }

    pub fn set_exited(&self, id: &str, ended: &Ended) -> Result<(), RecordError> {
        self.update(
            "UPDATE containers SET state = 'exited', pid = 0, exit_code = ?2, finished = ?3,
                oom_killed = ?4, error = ?5, paused = 0 WHERE id = ?1",
            (id, ended.code, ended.at, ended.oom_killed, &ended.error),
        )
    }

    pub fn set_paused(&self, id: &str, paused: bool) -> Result<(), RecordError> {
        self.update("UPDATE containers SET paused = ?2 WHERE id = ?1", (id, paused))
    }

    /// Written before a VM gets the container's files while it does not run, and after.
    pub fn set_visited(&self, id: &str, visited: bool) -> Result<(), RecordError> {
        self.update("UPDATE containers SET visited = ?2 WHERE id = ?1", (id, visited))
    }

    /// Its next end is not its last: it does not go with it, whatever it was made with. Until
    /// it runs again.
    pub fn set_restarting(&self, id: &str) -> Result<(), RecordError> {
        self.update("UPDATE containers SET restarting = 1 WHERE id = ?1", [id])
    }

    pub fn set_config(&self, id: &str, config: &ContainerConfig) -> Result<(), RecordError> {
        let text = serde_json::to_string(config).map_err(RecordError::Config)?;
        self.update("UPDATE containers SET config = ?2 WHERE id = ?1", [id, &text])
    }

    /// Gives the container another name, which nobody else has.
    pub fn rename(&mut self, id: &str, name: &str) -> Result<(), RecordError> {
        let failed = database_error("rename a container");
        let transaction = begin(&mut self.connection).map_err(failed)?;
        reject_taken(&transaction, name)?;
        transaction
            .execute("UPDATE containers SET name = ?2 WHERE id = ?1", [id, name])
            .map_err(failed)?;
        transaction.commit().map_err(failed)
    }

    pub fn delete(&self, id: &str) -> Result<(), RecordError> {
        self.update("DELETE FROM containers WHERE id = ?1", [id])
    }

    fn update(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<(), RecordError> {
        self.connection
            .execute(sql, parameters)
            .map(drop)
            .map_err(database_error("change a container"))
    }

    fn query(
        &self,
        action: &'static str,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Container>, RecordError> {
        let failed = database_error(action);
        let mut statement = self.connection.prepare(sql).map_err(failed)?;
        let rows = statement.query_map(parameters, from_row).map_err(failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(failed)
    }
}

/// A command changes a few pages. The log of them stays for the next command, where closing
/// would write it back and make the next start another: three waits for the disk.
fn keep_log(connection: &Connection, root: &Path) -> rusqlite::Result<()> {
    let bytes = fs::metadata(root.join("caisson.db-wal")).map_or(0, |metadata| metadata.len());
    let keep = bytes < MAX_LOG_BYTES;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop)
}

const SELECT: &str =
    "SELECT number, id, name, state, config, created, started, finished, exit_code,
    oom_killed, error, pid, paused, visited,
    restarting FROM containers";

/// A transaction that writes: what it reads does not change before.
fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// Within the transaction that goes on to take the name.
fn reject_taken(transaction: &Transaction<'_>, name: &str) -> Result<(), RecordError> {
    let owner: Option<String> = transaction
        .query_row("SELECT id FROM containers WHERE name = ?1", [name], |row| row.get(0))
        .optional()
        .map_err(database_error("look for a name"))?;
    match owner {
        Some(owner) => Err(RecordError::NameInUse { name: name.to_owned(), owner }),
        None => Ok(()),
    }
}

fn database_error(action: &'static str) -> impl Fn(rusqlite::Error) -> RecordError + Copy {
    move |source| RecordError::Database { action, source }
}

#[cfg(test)]
mod tests;
