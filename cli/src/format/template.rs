//! The part of Go's templates that `--format` is used for: `{{.Field}}`, `{{.A.B}}`,
//! `{{json .Field}}`, `{{index .Map "key"}}`, `{{upper .F}}`, `{{lower .F}}`,
//! `{{len .F}}`, literals, and the words `json` and `table …`.

use serde_json::Value;

use super::inert::inert;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    #[error("template parsing error: no `}}}}` after {0:?}")]
    Unclosed(String),
    #[error(
        "template parsing error: {0:?} is not supported; there are {{{{.Field}}}}, {{{{json .Field}}}}, \
         {{{{index .Map \"key\"}}}}, {{{{upper}}}}, {{{{lower}}}} and {{{{len}}}}"
    )]
    Unsupported(String),
    #[error("template: no field {field:?} here; there are {known}")]
    NoField { field: String, known: String },
}

/// How a listing is to be printed.
#[derive(Debug, PartialEq)]
pub enum Format {
    /// The command's own table.
    Default,
    /// One JSON object a line.
    Json,
    /// A line for each item.
    Lines(Template),
    /// Lines under a heading, in columns where the template has tabs.
    Table(Template),
}

impl Format {
    pub fn parse(text: Option<&str>) -> Result<Self, TemplateError> {
        match text {
            None | Some("" | "table") => Ok(Self::Default),
            Some("json") => Ok(Self::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(columns) => Template::parse(columns).map(Self::Table),
                None => Template::parse(text).map(Self::Lines),
            },
        }
    }
}

#[derive(Debug, PartialEq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Value { path: Vec<String>, function: Function },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Show,
    Json,
    Upper,
    Lower,
    Length,
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            if start > 0 {
                pieces.push(Piece::Text(unescape(&rest[..start])));
            }
            let action = &rest[start + 2..];
            let end = action
                .find("}}")
                .ok_or_else(|| TemplateError::Unclosed(rest[start..].to_owned()))?;
            pieces.push(parse_action(&action[..end])?);
            rest = &action[end + 2..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(unescape(rest)));
        }
        Ok(Self { pieces })
    }

    /// The template filled from `item`.
    pub fn fill(&self, item: &Value) -> Result<String, TemplateError> {
        let mut line = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Value { path, function } => {
                    line.push_str(&apply(*function, look_up(item, path)?));
                }
            }
        }
        Ok(line)
    }

    /// The heading of a `table` template: each field's name, spaced out and in capitals.
    pub fn heading(&self) -> String {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Value { path, .. } => heading_of(path.last().map_or("", String::as_str)),
            })
            .collect()
    }
}

/// `CreatedAt` → `CREATED AT`, as docker titles its columns; a few it names otherwise.
fn heading_of(field: &str) -> String {
    match field {
        "ID" => return "ID".into(),
        "RunningFor" | "CreatedSince" => return "CREATED".into(),
        _ => {}
    }
    let mut heading = String::new();
    for c in field.chars() {
        if c.is_uppercase() && heading.chars().last().is_some_and(char::is_alphabetic) {
            heading.push(' ');
        }
        heading.extend(c.to_uppercase());
    }
    heading
}

fn parse_action(action: &str) -> Result<Piece, TemplateError> {
    let unsupported = || TemplateError::Unsupported(format!("{{{{{action}}}}}"));
    let action_text = action.trim_matches('-').trim();
    let words = split_words(action_text).ok_or_else(unsupported)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let value = |text: &str, function| {
        let path = parse_path(text).ok_or_else(unsupported)?;
        Ok(Piece::Value { path, function })
    };
    match words[..] {
        [literal] if literal.starts_with('"') => {
            Ok(Piece::Text(unescape(literal.trim_matches('"'))))
        }
        [path] => value(path, Function::Show),
        ["json", path] => value(path, Function::Json),
        ["upper", path] => value(path, Function::Upper),
        ["lower", path] => value(path, Function::Lower),
        ["len", path] => value(path, Function::Length),
        ["index", path, key] if key.starts_with('"') => {
            let mut path = parse_path(path).ok_or_else(unsupported)?;
            path.push(key.trim_matches('"').to_owned());
            Ok(Piece::Value { path, function: Function::Show })
        }
        [".Label", key] if key.starts_with('"') => {
            let path = vec!["Labels".to_owned(), key.trim_matches('"').to_owned()];
            Ok(Piece::Value { path, function: Function::Show })
        }
        _ => Err(unsupported()),
    }
}

/// Words apart at blanks; a quoted one keeps its quotes and blanks.
fn split_words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = if let Some(quoted) = rest.strip_prefix('"') {
            quoted.find('"')? + 2
        } else {
            rest.find(char::is_whitespace).unwrap_or(rest.len())
        };
        words.push(rest[..end].to_owned());
        rest = rest[end..].trim_start();
    }
    (!words.is_empty()).then_some(words)
}

fn parse_path(text: &str) -> Option<Vec<String>> {
    let path = text.strip_prefix('.')?;
    if path.is_empty() {
        return Some(Vec::new());
    }
    let is_name = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let parts: Vec<&str> = path.split('.').collect();
    parts.iter().all(|part| is_name(part)).then(|| parts.into_iter().map(str::to_owned).collect())
}

fn look_up<'a>(item: &'a Value, path: &[String]) -> Result<&'a Value, TemplateError> {
    let mut value = item;
    for (depth, part) in path.iter().enumerate() {
        let Value::Object(fields) = value else {
            // A map that is not there has no keys: empty, as in Go.
            return Ok(&Value::Null);
        };
        match fields.get(part) {
            Some(field) => value = field,
            None if depth > 0 => return Ok(&Value::Null),
            None => {
                let known: Vec<&str> = fields.keys().map(String::as_str).collect();
                return Err(TemplateError::NoField {
                    field: part.clone(),
                    known: known.join(", "),
                });
            }
        }
    }
    Ok(value)
}

fn apply(function: Function, value: &Value) -> String {
    match function {
        Function::Json => value.to_string(),
        Function::Show => show(value),
        Function::Upper => show(value).to_uppercase(),
        Function::Lower => show(value).to_lowercase(),
        Function::Length => match value {
            Value::Array(items) => items.len(),
            Value::Object(fields) => fields.len(),
            other => show(other).len(),
        }
        .to_string(),
    }
}

/// As Go prints it: strings bare, maps as `map[k:v]`, lists as `[a b]`.
fn show(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => inert(text).into_owned(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" "))
        }
        Value::Object(fields) => {
            let pairs: Vec<String> =
                fields.iter().map(|(k, v)| format!("{}:{}", inert(k), show(v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// `\t` and `\n` as typed in a shell's single quotes.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fill(template: &str) -> String {
        let item = json!({
            "ID": "abc", "Names": "happy\u{1b}", "Labels": {"a.b": "1"}, "State": {"Pid": 7},
            "Args": ["x", "y"],
        });
        Template::parse(template).and_then(|t| t.fill(&item)).expect(template)
    }

    #[test]
    fn fields_functions_and_literals() {
        let cases = [
            ("{{.ID}}", "abc"),
            ("{{ .ID }}: {{.State.Pid}}", "abc: 7"),
            ("{{.ID}}\\t{{upper .ID}}", "abc\tABC"),
            ("{{json .Labels}}", r#"{"a.b":"1"}"#),
            ("{{index .Labels \"a.b\"}}{{.Label \"none\"}}", "1"),
            ("{{.Names}}", "happy\\x1b"),
            ("{{.Args}} {{len .Args}}", "[x y] 2"),
            ("{{.State}}", "map[Pid:7]"),
            ("{{\"a b\"}}", "a b"),
        ];
        for (template, expected) in cases {
            assert_eq!(fill(template), expected, "{template}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert!(matches!(Template::parse("{{.ID"), Err(TemplateError::Unclosed(_))));
        for template in ["{{range .X}}", "{{}}", "{{.A | b}}", "{{.A.}}", "{{\"a}}"] {
            assert!(
                matches!(Template::parse(template), Err(TemplateError::Unsupported(_))),
                "{template}"
            );
        }
        let error = Template::parse("{{.Nope}}").expect("valid").fill(&json!({"ID": 1, "X": 2}));
        assert_eq!(
            error,
            Err(TemplateError::NoField { field: "Nope".into(), known: "ID, X".into() })
        );
    }

    #[test]
    fn tables_have_headings() {
        let Ok(Format::Table(template)) = Format::parse(Some("table {{.ID}}\\t{{.CreatedAt}}"))
        else {
            panic!("a table");
        };
        assert_eq!(template.heading(), "ID\tCREATED AT");
        assert_eq!(Format::parse(None), Ok(Format::Default));
        assert_eq!(Format::parse(Some("json")), Ok(Format::Json));
    }

    proptest! {
        #[test]
        fn no_template_panics(text in "[{}.a-z\" \\\\|]{0,40}") {
            if let Ok(template) = Template::parse(&text) {
                let _ = template.fill(&json!({"a": {"b": [1]}}));
                let _ = template.heading();
            }
        }
    }
}
