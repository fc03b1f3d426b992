//! The line with which a program on the host asks for a port in the guest:
//! `CONNECT <port>\n`.

/// Longest line accepted, the newline included.
pub(super) const MAX_LINE_BYTES: usize = 32;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum ConnectLine {
    /// The newline is still to come.
    Incomplete,
    Complete {
        port: u32,
        /// Of the line, with its newline; what follows belongs to the stream.
        bytes: usize,
    },
    Invalid,
}

/// Parses the first bytes of a stream, of which there are at most [`MAX_LINE_BYTES`].
pub(super) fn parse(start: &[u8]) -> ConnectLine {
    const COMMAND: &[u8] = b"CONNECT ";
    let Some(end) = start.iter().position(|byte| *byte == b'\n') else {
        let compared = start.len().min(COMMAND.len());
        let hopeless = start[..compared] != COMMAND[..compared] || start.len() >= MAX_LINE_BYTES;
        return if hopeless { ConnectLine::Invalid } else { ConnectLine::Incomplete };
    };
    let port = start[..end]
        .strip_prefix(COMMAND)
        .filter(|digits| digits.iter().all(u8::is_ascii_digit))
        .and_then(|digits| str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok());
    match port {
        Some(port) => ConnectLine::Complete { port, bytes: end + 1 },
        None => ConnectLine::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_names_the_port() {
        assert_eq!(parse(b"CONNECT 65536\n"), ConnectLine::Complete { port: 65536, bytes: 14 });
        let rest = parse(b"CONNECT 1\nCONNECT 2\n");
        assert_eq!(rest, ConnectLine::Complete { port: 1, bytes: 10 });
        assert_eq!(
            parse(b"CONNECT 4294967295\n"),
            ConnectLine::Complete { port: u32::MAX, bytes: 19 }
        );
    }

    #[test]
    fn an_unfinished_line_is_waited_for() {
        for start in ["", "C", "CONNECT", "CONNECT ", "CONNECT 12"] {
            assert_eq!(parse(start.as_bytes()), ConnectLine::Incomplete, "{start:?}");
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "\n",
            "CONNECT \n",
            "CONNECT\n",
            "CONNECT +1\n",
            "CONNECT -1\n",
            "CONNECT 1 \n",
            "CONNECT 1\r\n",
            "CONNECT 4294967296\n",
            "connect 1\n",
            "GET / HTTP",
            "CONNECT 000000000000000000000000",
        ] {
            assert_eq!(parse(line.as_bytes()), ConnectLine::Invalid, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_port_is_understood(port: u32) {
            let line = format!("CONNECT {port}\n");
            let expected = ConnectLine::Complete { port, bytes: line.len() };
            prop_assert_eq!(parse(line.as_bytes()), expected);
        }

        #[test]
        fn any_bytes_are_parsed(start in prop::collection::vec(any::<u8>(), 0..=MAX_LINE_BYTES)) {
            parse(&start);
        }
    }
}
