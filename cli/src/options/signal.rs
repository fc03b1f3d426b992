//! Signals by name or number.

use nix::sys::signal::Signal;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid signal: {0:?}")]
pub struct InvalidSignal(pub String);

/// `SIGTERM`, `term`, `15`, `RTMIN+1`; 0 is none.
pub fn parse(text: &str) -> Result<i32, InvalidSignal> {
    let invalid = || InvalidSignal(text.to_owned());
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(invalid()) };
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = real_time(bare) {
        return Ok(number);
    }
    let name = match bare {
        "POLL" => "SIGIO".to_owned(),
        "CLD" => "SIGCHLD".to_owned(),
        "IOT" => "SIGABRT".to_owned(),
        bare => format!("SIG{bare}"),
    };
    name.parse::<Signal>().map(|signal| signal as i32).map_err(|_| invalid())
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`, as glibc numbers them (34..=64).
fn real_time(name: &str) -> Option<i32> {
    let offset = |text: &str| match text {
        "" => Some(0),
        text => text[1..].parse::<i32>().ok(),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        (rest.is_empty() || rest.starts_with('+')).then(|| offset(rest)).flatten()? + 34
    } else {
        let rest = name.strip_prefix("RTMAX")?;
        64 - (rest.is_empty() || rest.starts_with('-')).then(|| offset(rest)).flatten()?
    };
    (34..=64).contains(&number).then_some(number)
}

/// `SIGTERM` for 15; the number for those without a name.
pub fn name(number: i32) -> String {
    Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let cases = [
            ("SIGTERM", 15),
            ("term", 15),
            ("KILL", 9),
            ("9", 9),
            ("Sigwinch", 28),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("RTMAX-1", 63),
            ("IOT", 6),
        ];
        for (text, number) in cases {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIG", "FOO", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+é"]
        {
            assert_eq!(parse(text), Err(InvalidSignal(text.into())), "{text}");
        }
        assert_eq!(name(15), "SIGTERM");
        assert_eq!(name(40), "40");
    }
}
