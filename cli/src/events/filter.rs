//! `--filter` of `events`: several of one key are alternatives, all keys must agree.

use super::{Event, Kind};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid filter {0:?}: there are container=, event=, image=, label=, scope= and type=")]
pub struct InvalidFilter(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Container,
    Event,
    Image,
    Label,
    Scope,
    Type,
}

#[derive(Debug, Default)]
pub struct Filters(Vec<(Key, String)>);

impl Filters {
    pub fn parse(texts: &[String]) -> Result<Self, InvalidFilter> {
        let parse = |text: &String| {
            let invalid = || InvalidFilter(text.clone());
            let (key, value) = text.split_once('=').ok_or_else(invalid)?;
            let key = match key {
                "container" => Key::Container,
                "event" => Key::Event,
                "image" => Key::Image,
                "label" => Key::Label,
                "scope" => Key::Scope,
                "type" => Key::Type,
                _ => return Err(invalid()),
            };
            Ok((key, value.to_owned()))
        };
        texts.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    pub fn select(&self, event: &Event) -> bool {
        self.0.iter().all(|(key, _)| {
            self.0.iter().any(|(other, value)| other == key && matches(event, *key, value))
        })
    }
}

fn matches(event: &Event, key: Key, value: &str) -> bool {
    let attribute = |name: &str| event.attributes.get(name).map(String::as_str);
    let of = |kind: Kind| event.kind == kind;
    match key {
        Key::Container => {
            let is_id = value.len() >= 2 && event.id.starts_with(value);
            of(Kind::Container) && (is_id || attribute("name") == Some(value))
        }
        Key::Event => event.action == value,
        // With or without its tag, as Docker has it.
        Key::Image => {
            let name = match event.kind {
                Kind::Container => attribute("image"),
                Kind::Image => Some(event.id.as_str()),
            };
            name.is_some_and(|name| {
                let rest = name.strip_prefix(value);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']))
            })
        }
        Key::Label => match value.split_once('=') {
            Some((key, value)) => attribute(key) == Some(value),
            None => attribute(value).is_some(),
        },
        Key::Scope => value == "local",
        Key::Type => event.kind.as_str() == value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(texts: &[&str], event: &Event) -> bool {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        Filters::parse(&texts).unwrap().select(event)
    }

    #[test]
    fn values_of_a_key_are_alternatives_and_keys_must_agree() {
        let mut event = Event::of_image("busybox:latest", "tag").with("a", "1");
        for texts in [
            &[][..],
            &["type=image"],
            &["type=image", "type=container", "event=tag"],
            &["image=busybox"],
            &["image=busybox:latest", "label=a=1", "label=b"],
            &["scope=local"],
        ] {
            assert!(selects(texts, &event), "{texts:?}");
        }
        for texts in [
            &["type=container"][..],
            &["type=image", "event=pull"],
            &["image=busy"],
            &["label=a=2"],
            &["container=busybox:latest"],
        ] {
            assert!(!selects(texts, &event), "{texts:?}");
        }
        event.kind = Kind::Container;
        event.attributes.insert("name".into(), "web".into());
        assert!(selects(&["container=web"], &event) && selects(&["container=busy"], &event));
    }

    #[test]
    fn what_is_no_filter_is_named() {
        for text in ["since=1", "container", ""] {
            let error = Filters::parse(&[text.to_owned()]).unwrap_err();
            assert_eq!(error, InvalidFilter(text.to_owned()));
        }
    }
}
