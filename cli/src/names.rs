//! Container ids and names.

use std::{fs::File, io::Read};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "invalid container name ({0:?}): only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, 2 to 128 characters"
)]
pub struct InvalidName(pub String);

/// Checks `name` against Docker's grammar and takes off the leading slash that Docker
/// allows.
pub fn validate(name: &str) -> Result<&str, InvalidName> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let starts_well = bare.starts_with(|c: char| c.is_ascii_alphanumeric());
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if (2..=128).contains(&bare.len()) && starts_well && bare.chars().all(is_allowed) {
        Ok(bare)
    } else {
        Err(InvalidName(name.to_owned()))
    }
}

/// 64 random hexadecimal digits. The first twelve are not all decimal, so that a short id
/// cannot be mistaken for a number (Docker's rule: it becomes the host name).
pub fn new_id() -> std::io::Result<String> {
    loop {
        let mut bytes = [0; 32];
        random(&mut bytes)?;
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if id[..12].contains(|c: char| c.is_ascii_alphabetic()) {
            return Ok(id);
        }
    }
}

/// The twelve digits that listings show.
pub fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// A name such as `patient_roebling`; from the second attempt on with a digit.
pub fn generate(attempt: u32) -> std::io::Result<String> {
    let mut bytes = [0; 3];
    random(&mut bytes)?;
    let adjective = ADJECTIVES[usize::from(bytes[0]) % ADJECTIVES.len()];
    let engineer = ENGINEERS[usize::from(bytes[1]) % ENGINEERS.len()];
    let digit = if attempt > 0 { (bytes[2] % 10).to_string() } else { String::new() };
    Ok(format!("{adjective}_{engineer}{digit}"))
}

fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}

const ADJECTIVES: [&str; 64] = [
    "able", "agile", "ample", "apt", "bold", "brave", "brisk", "calm", "candid", "clear", "clever",
    "cosmic", "crisp", "curious", "deft", "eager", "earnest", "fair", "fleet", "fluent", "frank",
    "gentle", "glad", "golden", "grand", "hardy", "honest", "humble", "jolly", "keen", "kind",
    "lively", "loyal", "lucid", "merry", "mighty", "modest", "neat", "nimble", "noble", "patient",
    "placid", "plucky", "polite", "prompt", "proud", "quick", "quiet", "ready", "sage", "serene",
    "sharp", "silent", "sleek", "solid", "steady", "stout", "sturdy", "sunny", "tidy", "trusty",
    "vivid", "warm", "wise",
];

/// People who built bridges, tunnels, ships and engines, or the science below them.
const ENGINEERS: [&str; 64] = [
    "ammann",
    "arkwright",
    "bazalgette",
    "bessemer",
    "bouch",
    "brassey",
    "brindley",
    "brunel",
    "cayley",
    "clarke",
    "cochrane",
    "coulomb",
    "crompton",
    "darby",
    "davies",
    "dyer",
    "eads",
    "eiffel",
    "ericsson",
    "fairbairn",
    "fowler",
    "freyssinet",
    "froude",
    "fulton",
    "galileo",
    "gautier",
    "greathead",
    "harrison",
    "hodgkinson",
    "holtzapffel",
    "jessop",
    "johnson",
    "khan",
    "kranz",
    "lesseps",
    "leupold",
    "locke",
    "maillart",
    "maudslay",
    "menn",
    "mylne",
    "navier",
    "nervi",
    "newcomen",
    "otis",
    "parsons",
    "perronet",
    "rankine",
    "rennie",
    "roebling",
    "savery",
    "seguin",
    "shukhov",
    "smeaton",
    "sommeiller",
    "sopwith",
    "stephenson",
    "telford",
    "tesla",
    "trevithick",
    "triger",
    "vauban",
    "watt",
    "whittle",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_dockers() {
        for name in ["ab", "A.b-c_9", "/web", &"a".repeat(128)] {
            assert!(validate(name).is_ok(), "{name}");
        }
        assert_eq!(validate("/web"), Ok("web"));
        for name in
            ["", "/", "a", "-ab", ".ab", "a b", "a/b", "../x", "x\n", "ä1", &"a".repeat(129)]
        {
            assert_eq!(validate(name), Err(InvalidName(name.into())), "{name}");
        }
    }

    #[test]
    fn generated_names_and_ids_are_valid() {
        for attempt in 0..100 {
            let name = generate(attempt).expect("random bytes");
            assert_eq!(validate(&name), Ok(name.as_str()));
            let id = new_id().expect("random bytes");
            assert_eq!(id.len(), 64);
            assert!(short_id(&id).chars().any(|c| c.is_ascii_alphabetic()));
        }
    }

    #[test]
    fn word_lists_have_no_duplicates() {
        for list in [&ADJECTIVES, &ENGINEERS] {
            let unique: std::collections::BTreeSet<_> = list.iter().collect();
            assert_eq!(unique.len(), list.len());
        }
    }
}
