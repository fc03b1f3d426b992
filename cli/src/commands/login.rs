//! `login`: credentials for a registry, verified and kept.

use std::{
    io::{self, BufRead, IsTerminal, Read, Write},
    process::ExitCode,
};

use caisson_rootfs::registry::{CredentialStore, Credentials, Kept, registry_name};
use clap::Args;

use super::{print_line, registry::RegistryFlags};
use crate::{
    attach::tty::RawMode,
    failure::{CommandResult, Failure, INTERRUPTED},
    globals::Globals,
};

/// More is no password.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;

#[derive(Args, Clone, Debug)]
pub struct LoginArgs {
    /// Password
    #[arg(short, long, value_name = "string")]
    pub password: Option<String>,

    /// Take the password from stdin
    #[arg(long)]
    pub password_stdin: bool,

    /// Username
    #[arg(short, long, value_name = "string")]
    pub username: Option<String>,

    #[command(flatten)]
    pub registry: RegistryFlags,

    #[arg(value_name = "SERVER", hide = true)]
    pub server: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum LoginError {
    #[error("--password and --password-stdin are mutually exclusive")]
    TwoPasswords,
    #[error("Must provide --username with --password-stdin")]
    NoUser,
    #[error(
        "Cannot perform an interactive login from a non TTY device; use --username with --password-stdin"
    )]
    NoTerminal,
    #[error("{0} required")]
    Empty(&'static str),
    #[error("read the password")]
    Read(#[source] io::Error),
}

pub(super) fn login(_: &Globals, args: &LoginArgs) -> CommandResult {
    if args.password_stdin && args.password.is_some() {
        return Err(LoginError::TwoPasswords.into());
    }
    if args.password_stdin && args.username.as_deref().unwrap_or_default().is_empty() {
        return Err(LoginError::NoUser.into());
    }
    let domain = registry_name(args.server.as_deref().unwrap_or("docker.io"))?;
    let client = args.registry.client(&domain)?;
    let store = CredentialStore::from_environment();
    let nothing_given = args.username.is_none() && args.password.is_none();
    if nothing_given && let Some(known) = store.find(&domain)? {
        print_line("Authenticating with existing credentials...")?;
        if client.verify(&domain, &known).is_ok() {
            return succeeded();
        }
        eprintln!("The existing credentials are refused; log in anew.");
    }
    let credentials = given(args)?;
    client.verify(&domain, &credentials)?;
    if let Kept::File(path) = store.store(&domain, &credentials)? {
        eprintln!(
            "WARNING! Your credentials are stored unencrypted in '{}'; a credential helper \
             (`credsStore` in that file) keeps them safer.",
            path.display()
        );
    }
    succeeded()
}

fn succeeded() -> CommandResult {
    print_line("Login Succeeded")?;
    Ok(ExitCode::SUCCESS)
}

fn given(args: &LoginArgs) -> Result<Credentials, Failure> {
    if args.password.is_some() {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    let password = match &args.password {
        Some(password) => Some(password.clone()),
        None if args.password_stdin => Some(password_from(io::stdin().lock())?),
        None => None,
    };
    if (args.username.is_none() || password.is_none()) && !io::stdin().is_terminal() {
        return Err(LoginError::NoTerminal.into());
    }
    let user = match &args.username {
        Some(user) => user.clone(),
        None => {
            prompt("Username: ")?;
            let mut line = String::new();
            io::stdin().read_line(&mut line)?;
            line.trim().to_owned()
        }
    };
    if user.is_empty() {
        return Err(LoginError::Empty("username").into());
    }
    let password = match password {
        Some(password) => password,
        None => hidden("Password: ")?,
    };
    if password.is_empty() {
        return Err(LoginError::Empty("password").into());
    }
    Ok(Credentials::Password { user, password })
}

/// To the end, without the newline that `echo` adds.
fn password_from(input: impl Read) -> Result<String, LoginError> {
    let mut text = String::new();
    input.take(MAX_PASSWORD_BYTES).read_to_string(&mut text).map_err(LoginError::Read)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

fn prompt(text: &str) -> io::Result<()> {
    let mut stderr = io::stderr();
    stderr.write_all(text.as_bytes())?;
    stderr.flush()
}

/// A line that is not shown. The terminal is raw meanwhile, so that Ctrl-C comes as a byte
/// and the terminal is put back before it ends the command.
fn hidden(text: &str) -> Result<String, Failure> {
    prompt(text)?;
    let raw = RawMode::enter()?;
    let typed = typed_line(io::stdin().lock());
    drop(raw);
    eprintln!();
    match typed.map_err(LoginError::Read)? {
        Some(line) => Ok(String::from_utf8_lossy(&line).into_owned()),
        None => Err(Failure::quiet(INTERRUPTED)),
    }
}

/// `None` for Ctrl-C.
fn typed_line(input: impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line: Vec<u8> = Vec::new();
    for byte in input.bytes().take(MAX_PASSWORD_BYTES as usize) {
        match byte? {
            b'\r' | b'\n' | 4 => break,
            3 => return Ok(None),
            8 | 0x7f => {
                // A character of several bytes goes as one.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            0x15 => line.clear(),
            byte => line.push(byte),
        }
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_line_can_be_corrected_and_given_up() {
        let typed = |keys: &[u8]| typed_line(keys).unwrap();
        assert_eq!(typed(b"secret\rmore").as_deref(), Some(&b"secret"[..]));
        assert_eq!(typed("xy\u{e4}\x7f\x7fz\r".as_bytes()).as_deref(), Some(&b"xz"[..]));
        assert_eq!(typed(b"wrong\x15right\n").as_deref(), Some(&b"right"[..]));
        assert_eq!(typed(b"sec\x03ret\r"), None);
        assert_eq!(typed(b"\x7f\x7f\r").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_piped_password_has_no_newline_at_its_end() {
        for (given, expected) in [("pw\n", "pw"), ("pw\r\n", "pw"), ("a\nb", "a\nb"), ("", "")] {
            assert_eq!(password_from(given.as_bytes()).unwrap(), expected);
        }
    }
}
