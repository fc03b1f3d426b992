//! What happened to containers and images, told to whoever asks now or later.
//!
//! There is no daemon that could tell it: whichever process did it appends a line to a log in
//! the root directory ([`log`]), and `caisson events` reads and follows that.

pub mod filter;
pub mod log;

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    format::units::{self, UnixNanos},
    records::Container,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Container,
    Image,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
        }
    }
}

/// One event; also the format of the log's lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub time: UnixNanos,
    pub kind: Kind,
    /// In Docker's words: `start`, `die`, `pull`.
    pub action: String,
    /// Of the container; of the image its name or id.
    pub id: String,
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    pub fn of_container(container: &Container, action: &str) -> Self {
        let config = container.config.as_ref();
        let mut attributes = config.map(|config| config.labels.clone()).unwrap_or_default();
        let image = config.map(|config| config.image.clone()).unwrap_or_default();
        attributes.insert("image".to_owned(), image);
        attributes.insert("name".to_owned(), container.name.clone());
        let (action, id) = (action.to_owned(), container.id.clone());
        Self { time: units::now(), kind: Kind::Container, action, id, attributes }
    }

    pub fn of_image(name: &str, action: &str) -> Self {
        let attributes = [("name".to_owned(), name.to_owned())].into();
        let (action, id) = (action.to_owned(), name.to_owned());
        Self { time: units::now(), kind: Kind::Image, action, id, attributes }
    }

    pub fn with(mut self, attribute: &str, value: impl ToString) -> Self {
        self.attributes.insert(attribute.to_owned(), value.to_string());
        self
    }

    /// Appends it to the log below `root`. What happened has happened, told or not: a log that
    /// cannot be written is a warning.
    pub fn tell(&self, root: &Path) {
        if let Err(error) = log::append(root, self) {
            tracing::warn!(error = &error as &dyn std::error::Error, "log an event");
        }
    }

    /// As Docker's clients know it; the first three fields are those of old ones.
    pub fn to_json(&self) -> Value {
        let from = match self.kind {
            Kind::Container => self.attributes.get("image"),
            Kind::Image => None,
        };
        json!({
            "status": self.action,
            "id": self.id,
            "from": from,
            "Type": self.kind.as_str(),
            "Action": self.action,
            "Actor": { "ID": self.id, "Attributes": self.attributes },
            "scope": "local",
            "time": self.time / 1_000_000_000,
            "timeNano": self.time,
        })
    }

    /// `2026-01-02T13:23:37.000000000Z container start c0ffee… (image=busybox, name=web)`.
    pub fn to_line(&self) -> String {
        let attributes: Vec<String> =
            self.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        // Of a fixed width, as Docker's lines have it.
        let nanos = self.time.rem_euclid(1_000_000_000);
        let seconds = units::rfc3339(Some(self.time.saturating_sub(nanos)));
        let time = format!("{}.{nanos:09}Z", seconds.trim_end_matches('Z'));
        let (kind, action) = (self.kind.as_str(), &self.action);
        format!("{time} {kind} {action} {} ({})", self.id, attributes.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ContainerConfig, records::State};

    #[test]
    fn events_have_dockers_shape() {
        let config = ContainerConfig {
            image: "busybox".into(),
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ..ContainerConfig::default()
        };
        let container = Container::sample("c0ffee".into(), "web", State::Exited, Some(config));
        let mut event = Event::of_container(&container, "die").with("exitCode", 3);
        event.time = 1_500_000_000;
        assert_eq!(
            event.to_line(),
            "1970-01-01T00:00:01.500000000Z container die c0ffee (a=1, exitCode=3, image=busybox, \
             name=web)"
        );
        let json = event.to_json();
        assert_eq!(json["Actor"]["Attributes"]["exitCode"], "3");
        assert_eq!((&json["time"], &json["timeNano"]), (&json!(1), &json!(1_500_000_000)));
        assert_eq!(json["from"], "busybox");
    }
}
