//! Who a process runs as: the plan's `user[:group]`, looked up in the container's
//! `/etc/passwd` and `/etc/group` by Docker's rules.
//!
//! Both files are the image's, so hostile: they are read up to a limit, only if they are
//! regular files, and a line that is no entry is skipped as if it were not there.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
};

use caisson_agent_protocol::{ErrorKind, plan::UserPlan};

use crate::error::{At, Kind, OsError};

const MAX_FILE_BYTES: u64 = 4 << 20;
/// Docker's bound of uids and gids given as numbers.
const MAX_ID: i64 = (1 << 31) - 1;
/// The kernel's NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("unable to find user {name}: no matching entries in passwd file")]
    NoUser { name: String },
    #[error("unable to find group {name}: no matching entries in group file")]
    NoGroup { name: String },
    #[error("uids and gids must be in range 0-{MAX_ID}, not {id}")]
    OutOfRange { id: i64 },
    #[error("{path} is no regular file of at most {MAX_FILE_BYTES} bytes")]
    BadFile { path: &'static str },
    #[error("{count} groups are more than the {MAX_GROUPS} a process can have")]
    TooManyGroups { count: usize },
    #[error(transparent)]
    Os(#[from] OsError),
}

impl Kind for UserError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Os(error) => error.kind(),
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// The numbers that a [`UserPlan`] comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
    pub umask: u32,
    /// For `HOME`, where the environment has none.
    pub home: String,
}

/// Looks `plan` up below the current root directory.
pub fn look_up(plan: &UserPlan) -> Result<Identity, UserError> {
    let passwd = read("/etc/passwd")?;
    let identity = match plan {
        UserPlan::Ids { uid, gid, additional_gids, umask } => Identity {
            uid: *uid,
            gid: *gid,
            groups: additional_gids.clone(),
            umask: umask.unwrap_or(DEFAULT_UMASK),
            home: home_of(&passwd, *uid),
        },
        UserPlan::Name { user, additional_groups } => {
            by_name(user, additional_groups, &passwd, &read("/etc/group")?)?
        }
    };
    match identity.groups.len() {
        count if count > MAX_GROUPS => Err(UserError::TooManyGroups { count }),
        _ => Ok(identity),
    }
}

/// The first name of each uid in the `/etc/passwd` below the current root directory.
pub fn names() -> Result<HashMap<u32, String>, UserError> {
    let passwd = read("/etc/passwd")?;
    let mut names = HashMap::new();
    for entry in passwd_entries(&passwd) {
        names.entry(entry.uid).or_insert_with(|| entry.name.to_owned());
    }
    Ok(names)
}

const DEFAULT_UMASK: u32 = 0o022;

fn read(path: &'static str) -> Result<String, UserError> {
    let mut options = File::options();
    // Without O_NONBLOCK a FIFO in the image would hold the agent's child forever.
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = match options.open(path) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(String::new());
        }
        opened => opened.at(|| format!("open {path}"))?,
    };
    let kind = file.metadata().at(|| format!("examine {path}"))?.file_type();
    if kind.is_fifo() || !kind.is_file() {
        return Err(UserError::BadFile { path });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).at(|| format!("read {path}"))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(UserError::BadFile { path });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn passwd_entries(file: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    file.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn group_entries(file: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    file.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
    })
}

fn home_of(passwd: &str, uid: u32) -> String {
    let entry = passwd_entries(passwd).find(|entry| entry.uid == uid);
    home_or_root(entry.as_ref())
}

fn home_or_root(entry: Option<&PasswdEntry<'_>>) -> String {
    entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned()
}

/// `text` as the number that it may be instead of a name.
fn number(text: &str) -> Option<i64> {
    text.parse().ok()
}

fn in_range(id: i64) -> Result<u32, UserError> {
    match u32::try_from(id) {
        Ok(number) if id <= MAX_ID => Ok(number),
        _ => Err(UserError::OutOfRange { id }),
    }
}

fn by_name(
    spec: &str,
    additional: &[String],
    passwd: &str,
    group: &str,
) -> Result<Identity, UserError> {
    let (user, group_name) = spec.split_once(':').unwrap_or((spec, ""));
    // An empty name is uid 0, as in an image that states no user.
    let wanted = if user.is_empty() { Some(0) } else { number(user) };
    let entry = passwd_entries(passwd).find(|entry| {
        (!user.is_empty() && entry.name == user) || wanted == Some(i64::from(entry.uid))
    });
    let uid = match (&entry, wanted) {
        (Some(entry), _) => entry.uid,
        (None, Some(id)) => in_range(id)?,
        (None, None) => return Err(UserError::NoUser { name: user.to_owned() }),
    };
    let mut groups = Vec::new();
    let gid = if group_name.is_empty() {
        let gid = entry.as_ref().map_or(0, |entry| entry.gid);
        groups.push(gid);
        groups.extend(entry.as_ref().into_iter().flat_map(|entry| groups_of(entry.name, group)));
        gid
    } else {
        let gid = group_id(group_name, group)?;
        groups.push(gid);
        gid
    };
    for name in additional {
        groups.push(group_id(name, group)?);
    }
    let mut seen = std::collections::HashSet::new();
    groups.retain(|gid| seen.insert(*gid));
    Ok(Identity { uid, gid, groups, umask: DEFAULT_UMASK, home: home_or_root(entry.as_ref()) })
}

fn groups_of<'a>(user: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    group_entries(group)
        .filter(move |entry| entry.members.split(',').any(|member| member.trim() == user))
        .map(|entry| entry.gid)
}

fn group_id(name: &str, group: &str) -> Result<u32, UserError> {
    let wanted = number(name);
    let entry = group_entries(group)
        .find(|entry| entry.name == name || wanted == Some(i64::from(entry.gid)));
    match (entry, wanted) {
        (Some(entry), _) => Ok(entry.gid),
        (None, Some(id)) => in_range(id),
        (None, None) => Err(UserError::NoGroup { name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # no entry\n\
        broken\n\
        also:broken:x:y\n\
        www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
        app:x:1000:1001::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\n\
        www-data:x:33:\n\
        app:x:1001:\n\
        audio:x:29:app,www-data\n\
        video:x:44:app\n";

    fn look(spec: &str) -> Result<Identity, UserError> {
        by_name(spec, &[], PASSWD, GROUP)
    }

    #[test]
    fn no_user_is_root() {
        let root = look("").unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
        assert_eq!(root.groups, [0]);
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let app = look("app").unwrap();
        assert_eq!((app.uid, app.gid), (1000, 1001));
        assert_eq!(app.groups, [1001, 29, 44]);
        assert_eq!(app.home, "/home/app");
    }

    #[test]
    fn a_number_with_an_entry_is_that_user() {
        assert_eq!(look("1000").unwrap(), look("app").unwrap());
    }

    #[test]
    fn a_number_without_an_entry_is_taken_as_it_is() {
        let user = look("4711").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4711, 0, "/"));
    }

    #[test]
    fn a_group_replaces_the_users_own() {
        let app = look("app:video").unwrap();
        assert_eq!((app.uid, app.gid, app.groups), (1000, 44, vec![44]));
        assert_eq!(look("4711:4712").unwrap().gid, 4712);
    }

    #[test]
    fn unknown_names_are_errors_in_dockers_words() {
        assert_eq!(
            look("foo").unwrap_err().to_string(),
            "unable to find user foo: no matching entries in passwd file"
        );
        assert_eq!(
            look("app:foo").unwrap_err().to_string(),
            "unable to find group foo: no matching entries in group file"
        );
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for spec in ["-1", "2147483648", "4294967296", "0:-5", "0:4294967295"] {
            let error = look(spec).unwrap_err();
            assert!(matches!(error, UserError::OutOfRange { .. }), "{spec}: {error}");
        }
    }

    #[test]
    fn additional_groups_are_looked_up_and_not_repeated() {
        let more = ["audio", "44", "555"].map(String::from);
        let app = by_name("app", &more, PASSWD, GROUP).unwrap();
        assert_eq!(app.groups, [1001, 29, 44, 555]);
    }

    #[test]
    fn a_name_wins_over_an_earlier_number_only_by_order() {
        let passwd = "1000:x:5:5::/:\nother:x:1000:6::/:\n";
        assert_eq!(by_name("1000", &[], passwd, "").unwrap().uid, 5);
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(spec in ".{0,40}", passwd in "(.{0,60}\n){0,20}", group in "(.{0,60}\n){0,20}") {
            if let Ok(identity) = by_name(&spec, &[], &passwd, &group) {
                prop_assert!(!identity.home.is_empty());
            }
        }
    }
}
