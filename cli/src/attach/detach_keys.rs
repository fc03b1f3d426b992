//! The keys that leave a container running: by default Ctrl-P Ctrl-Q.

/// A sequence of bytes, parsed from `ctrl-p,ctrl-q` or `a,b,ctrl-\`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid detach keys {0:?}: expected characters or ctrl-X, separated by commas")]
pub struct InvalidKeys(String);

impl DetachKeys {
    pub const DEFAULT: &str = "ctrl-p,ctrl-q";

    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        let invalid = || InvalidKeys(text.to_owned());
        let key = |key: &str| match (key.as_bytes(), key.strip_prefix("ctrl-")) {
            (&[byte], _) => Some(byte),
            (_, Some(name)) => match *name.as_bytes() {
                [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
                [symbol @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => Some(symbol - b'@'),
                _ => None,
            },
            _ => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.map(Self).ok_or_else(invalid)
    }
}

/// Finds the sequence in what is typed.
#[derive(Debug)]
pub struct Matcher {
    keys: DetachKeys,
    /// Keys of the sequence that were typed and are held back.
    matched: usize,
}

/// What a piece of input comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// To be passed on.
    Input(Vec<u8>),
    /// To be passed on, and then detach.
    Detach(Vec<u8>),
}

impl Matcher {
    pub fn new(keys: DetachKeys) -> Self {
        Self { keys, matched: 0 }
    }

    /// Takes input. Keys that begin the sequence are held back until the next one tells.
    pub fn push(&mut self, bytes: &[u8]) -> Typed {
        let keys = &self.keys.0;
        let mut input = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if keys[self.matched] == byte {
                self.matched += 1;
                if self.matched == keys.len() {
                    self.matched = 0;
                    return Typed::Detach(input);
                }
                continue;
            }
            input.extend_from_slice(&keys[..self.matched]);
            self.matched = 0;
            if keys[0] == byte && keys.len() > 1 {
                self.matched = 1;
            } else {
                input.push(byte);
            }
        }
        Typed::Input(input)
    }

    /// What is held back, at the end of input.
    pub fn finish(&mut self) -> Vec<u8> {
        self.keys.0[..std::mem::take(&mut self.matched)].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher() -> Matcher {
        Matcher::new(DetachKeys::parse(DetachKeys::DEFAULT).expect("valid"))
    }

    #[test]
    fn sequences_are_dockers() {
        assert_eq!(DetachKeys::parse("ctrl-p,ctrl-q"), Ok(DetachKeys(vec![16, 17])));
        assert_eq!(
            DetachKeys::parse("a,ctrl-@,ctrl-_,ctrl-\\"),
            Ok(DetachKeys(vec![97, 0, 31, 28]))
        );
        for bad in ["", ",", "ab", "ctrl-", "ctrl-A", "ctrl-1", "ä", "a,,b"] {
            assert_eq!(DetachKeys::parse(bad), Err(InvalidKeys(bad.into())), "{bad:?}");
        }
    }

    #[test]
    fn the_sequence_detaches_however_it_arrives() {
        assert_eq!(matcher().push(b"ls\x10\x11rest"), Typed::Detach(b"ls".to_vec()));
        let mut split = matcher();
        assert_eq!(split.push(b"a\x10"), Typed::Input(b"a".to_vec()));
        assert_eq!(split.push(b"\x11"), Typed::Detach(vec![]));
    }

    #[test]
    fn half_a_sequence_is_passed_on() {
        let mut matcher = matcher();
        assert_eq!(matcher.push(b"\x10"), Typed::Input(vec![]));
        assert_eq!(matcher.push(b"x"), Typed::Input(b"\x10x".to_vec()));
        assert_eq!(matcher.push(b"\x10\x10\x11"), Typed::Detach(b"\x10".to_vec()));
        assert_eq!(matcher.push(b"\x10"), Typed::Input(vec![]));
        assert_eq!(matcher.finish(), b"\x10");
        assert_eq!(matcher.finish(), b"");
    }

    proptest! {
        #[test]
        fn no_input_is_lost(bytes in prop::collection::vec(14_u8..19, 0..60), cut in 0_usize..60) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let mut matcher = matcher();
            let mut passed = Vec::new();
            for piece in [first, second] {
                match matcher.push(piece) {
                    Typed::Input(input) => passed.extend(input),
                    Typed::Detach(input) => {
                        passed.extend(input);
                        passed.extend([16, 17]);
                        prop_assert!(bytes.starts_with(&passed));
                        return Ok(());
                    }
                }
            }
            passed.extend(matcher.finish());
            prop_assert_eq!(passed, bytes);
        }
    }
}
