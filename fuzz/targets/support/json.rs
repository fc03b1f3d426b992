//! JSON that differs from a good document in a few places.

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use serde_json::{Value, json};

#[derive(Arbitrary, Debug)]
pub struct Changes(Vec<(u16, Change)>);

#[derive(Arbitrary, Debug)]
enum Change {
    Replace(Odd),
    Repeat(u8),
    Remove,
    Wrap(u8),
    /// Under a name that is there elsewhere.
    Add(u16, Odd),
}

#[derive(Arbitrary, Debug)]
enum Odd {
    Word(u8),
    Text(String),
    Long(u16),
    Number(i64),
    Large(u64),
    Float(f64),
    Null,
    True,
    Array,
    Object,
}

const WORDS: [&str; 20] = [
    "",
    "/",
    "..",
    "/../x",
    "a\0b",
    "/proc",
    "bind",
    "/proc/self",
    "\u{1b}[2J",
    "-1",
    "0",
    "none",
    "sha256:",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha512:00",
    "application/vnd.oci.image.index.v1+json",
    "user",
    "SCMP_ACT_ERRNO",
    "CAP_KILL",
    "2024-01-01T00:00:00Z",
];

impl Odd {
    fn value(&self) -> Value {
        match self {
            Odd::Word(word) => Value::from(WORDS[usize::from(*word) % WORDS.len()]),
            Odd::Text(text) => Value::from(text.as_str()),
            Odd::Long(length) => Value::from("x/".repeat(usize::from(*length))),
            Odd::Number(number) => Value::from(*number),
            Odd::Large(number) => Value::from(*number),
            Odd::Float(number) => Value::from(*number),
            Odd::Null => Value::Null,
            Odd::True => Value::from(true),
            Odd::Array => json!([]),
            Odd::Object => json!({}),
        }
    }
}

impl Changes {
    pub fn apply(&self, document: &mut Value) {
        for (place, change) in self.0.iter().take(6) {
            let mut all = Vec::new();
            places(document, String::new(), &mut all);
            let chosen = &all[usize::from(*place) % all.len()];
            let Some(found) = document.pointer_mut(chosen) else { continue };
            match change {
                Change::Replace(odd) => *found = odd.value(),
                Change::Repeat(count) => {
                    if let Value::Array(items) = found
                        && let Some(first) = items.first().cloned()
                    {
                        items.extend(std::iter::repeat_n(first, (*count).into()));
                    }
                }
                Change::Wrap(depth) => {
                    for _ in 0..*depth % 140 {
                        *found = json!([found.take()]);
                    }
                }
                Change::Add(name, odd) => {
                    let name = &all[usize::from(*name) % all.len()];
                    let name = name.rsplit('/').next().unwrap_or_default();
                    if let Value::Object(fields) = found {
                        fields.insert(name.to_owned(), odd.value());
                    }
                }
                Change::Remove => {
                    let Some((parent, name)) = chosen.rsplit_once('/') else { continue };
                    if let Some(Value::Object(fields)) = document.pointer_mut(parent) {
                        fields.remove(name);
                    }
                }
            }
        }
    }
}

/// Every place as a JSON pointer; names here need no escapes but those of odd additions,
/// which are then not found.
fn places(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                places(field, format!("{at}/{name}"), out);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate().take(8) {
                places(item, format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
    out.push(at);
}
