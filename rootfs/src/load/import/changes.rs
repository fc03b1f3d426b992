//! `--change`: the Dockerfile instructions that set how an image runs.

use std::collections::BTreeMap;

use serde::Serialize;
use thiserror::Error;

/// The `config` object of an image configuration, in Docker's spelling.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RunConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, Empty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Empty {}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    #[error(
        "\"{}\" is not an instruction that --change takes (CMD, ENTRYPOINT, ENV, EXPOSE, \
         LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR)",
        .0.escape_debug()
    )]
    Unknown(String),
    #[error("the change \"{}\" is malformed: {reason}", .change.escape_debug())]
    Malformed { change: String, reason: &'static str },
}

/// Applies one instruction.
pub(super) fn apply(change: &str, config: &mut RunConfig) -> Result<(), ChangeError> {
    let malformed =
        |reason| ChangeError::Malformed { change: change.chars().take(300).collect(), reason };
    let trimmed = change.trim();
    let (word, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
    let rest = rest.trim();
    if rest.is_empty() && !word.is_empty() {
        return Err(malformed("it has no value"));
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = Some(command(rest).ok_or(malformed("not a JSON array of strings"))?),
        "ENTRYPOINT" => {
            config.entrypoint =
                Some(command(rest).ok_or(malformed("not a JSON array of strings"))?);
        }
        "ENV" => {
            for (key, value) in pairs(rest).ok_or(malformed("expected KEY=VALUE"))? {
                let prefix = format!("{key}=");
                config.env.retain(|known| !known.starts_with(&prefix));
                config.env.push(format!("{key}={value}"));
            }
        }
        "LABEL" => {
            config.labels.extend(pairs(rest).ok_or(malformed("expected KEY=VALUE"))?);
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let port = port_key(port).ok_or(malformed("expected PORT[/tcp|/udp|/sctp]"))?;
                config.exposed_ports.insert(port, Empty {});
            }
        }
        "VOLUME" => {
            let paths = match command_json(rest) {
                Some(paths) => paths.ok_or(malformed("not a JSON array of strings"))?,
                None => rest.split_whitespace().map(str::to_owned).collect(),
            };
            config.volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
        }
        "USER" => config.user = Some(rest.to_owned()),
        "WORKDIR" if rest.starts_with('/') => config.working_dir = Some(rest.to_owned()),
        "WORKDIR" => return Err(malformed("expected an absolute path")),
        "STOPSIGNAL" => config.stop_signal = Some(rest.to_owned()),
        _ => return Err(ChangeError::Unknown(word.chars().take(60).collect())),
    }
    Ok(())
}

/// A JSON array, or a line for the shell.
fn command(rest: &str) -> Option<Vec<String>> {
    match command_json(rest) {
        Some(words) => words,
        None => Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.to_owned()]),
    }
}

/// `None` if it does not look like JSON, `Some(None)` if it is broken.
fn command_json(rest: &str) -> Option<Option<Vec<String>>> {
    rest.starts_with('[').then(|| serde_json::from_str(rest).ok())
}

/// `K=V K2="v 2"`, or the old `K the rest`.
fn pairs(rest: &str) -> Option<Vec<(String, String)>> {
    let words = split_quoted(rest)?;
    if !words.first()?.contains('=') {
        let (key, value) = rest.split_once(char::is_whitespace)?;
        return Some(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    words
        .into_iter()
        .map(|word| {
            let (key, value) = word.split_once('=')?;
            (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Words as a shell would split them, without expansion.
fn split_quoted(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), char) if char == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next()?),
            (None, char) if char.is_whitespace() => words.extend(word.take()),
            (_, char) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

fn port_key(text: &str) -> Option<String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    port.parse::<u16>().ok().filter(|port| *port > 0)?;
    matches!(protocol, "tcp" | "udp" | "sctp").then(|| format!("{port}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> serde_json::Value {
        let mut config = RunConfig::default();
        for change in changes {
            apply(change, &mut config).unwrap_or_else(|error| panic!("{error}"));
        }
        serde_json::to_value(config).unwrap()
    }

    #[test]
    fn instructions_set_the_configuration() {
        let config = applied(&[
            r#"CMD ["sh", "-c", "echo hi"]"#,
            "entrypoint /entry here",
            "ENV A=1 B=\"two words\"",
            "ENV A=changed",
            "ENV OLD the old form",
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/data"]"#,
            "VOLUME /more",
            "LABEL a=b 'c d'=e",
            "USER 1000:1000",
            "WORKDIR /work",
            "STOPSIGNAL SIGINT",
        ]);
        assert_eq!(
            config,
            serde_json::json!({
                "Cmd": ["sh", "-c", "echo hi"],
                "Entrypoint": ["/bin/sh", "-c", "/entry here"],
                "Env": ["B=two words", "A=changed", "OLD=the old form"],
                "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
                "Volumes": { "/data": {}, "/more": {} },
                "Labels": { "a": "b", "c d": "e" },
                "User": "1000:1000",
                "WorkingDir": "/work",
                "StopSignal": "SIGINT",
            })
        );
    }

    #[test]
    fn malformed_and_unknown_instructions_are_refused() {
        for bad in [
            "",
            "RUN ls",
            "CMD",
            "CMD [\"a\"",
            "CMD [1]",
            "ENV A",
            "ENV =x",
            "ENV A=\"open",
            "EXPOSE x",
            "EXPOSE 0",
            "EXPOSE 80/icmp",
            "WORKDIR relative",
            "VOLUME [1]",
        ] {
            assert!(apply(bad, &mut RunConfig::default()).is_err(), "{bad:?} was accepted");
        }
    }
}
