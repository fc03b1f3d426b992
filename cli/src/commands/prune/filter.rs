//! What `--filter` selects.

use std::collections::BTreeMap;

use super::PruneError;
use crate::format::{moment, units::UnixNanos};

/// One `--filter`. All of them must hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// Made before this time.
    Until(UnixNanos),
    Label {
        key: String,
        value: Option<String>,
        /// `label=`; without: `label!=`.
        present: bool,
    },
}

impl Filter {
    /// `None` if there is no filter of this name.
    pub(super) fn parse(text: &str, now: UnixNanos) -> Result<Option<Self>, PruneError> {
        let Some((name, value)) = text.split_once('=') else { return Ok(None) };
        Ok(match name {
            "until" => {
                let invalid = |source| PruneError::InvalidTime { text: text.to_owned(), source };
                Some(Self::Until(moment::parse(value, now).map_err(invalid)?))
            }
            "label" | "label!" => {
                let (key, value) = match value.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (value, None),
                };
                Some(Self::Label { key: key.to_owned(), value, present: name == "label" })
            }
            _ => None,
        })
    }

    /// As [`Filter::parse`], where there are no others than `known`.
    pub(super) fn known(
        text: &str,
        now: UnixNanos,
        known: &'static str,
    ) -> Result<Self, PruneError> {
        Self::parse(text, now)?.ok_or_else(|| unknown(text, known))
    }

    /// Of what was made at this time and has these labels.
    pub(super) fn selects(&self, created: UnixNanos, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Until(time) => created < *time,
            Self::Label { key, value, present } => {
                let found = labels.get(key.as_str());
                let has =
                    found.is_some_and(|found| value.as_ref().is_none_or(|wanted| wanted == found));
                has == *present
            }
        }
    }
}

pub(super) fn unknown(text: &str, known: &'static str) -> PruneError {
    PruneError::UnknownFilter { text: text.to_owned(), known }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: UnixNanos = 1_000_000_000;

    #[test]
    fn filters_select() {
        let labels = [("kind".to_owned(), "a".to_owned())].into();
        let selects = |text: &str| {
            let filter = Filter::parse(text, 200 * SECOND).expect(text);
            filter.expect(text).selects(100 * SECOND, &labels)
        };
        for text in ["label=kind", "label=kind=a", "label!=kind=b", "label!=x", "until=50s"] {
            assert!(selects(text), "{text}");
        }
        for text in ["label=x", "label=kind=b", "label!=kind", "until=150s"] {
            assert!(!selects(text), "{text}");
        }
        for text in ["label", "size=1"] {
            assert_eq!(Filter::parse(text, 0).expect(text), None, "{text}");
        }
        assert!(Filter::parse("until=soon", 0).is_err());
    }
}
