//! The Query protocol: form parameters in, XML out.
//!
//! Outputs hold structures, lists and scalars only: the generator refuses a Query service with maps,
//! timestamps or blobs in a served output, which XML writes differently.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::error::common;
use crate::schema::{Kind, Schema};
use crate::{Error, Fault, Service};

/// How many parameters a request may have.
const MAX_PARAMETERS: usize = 1_000;

/// A request's parameters, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters(Vec<(String, String)>);

/// Whether a URI's query names an action.
pub(crate) fn names_action(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|part| part.starts_with("Action=")))
}

impl Parameters {
    /// Those of the URI's query and of a form body.
    pub(crate) fn parse(query: Option<&str>, body: &[u8]) -> Result<Self, Error> {
        let mut parameters = Vec::new();
        for source in [query.unwrap_or_default().as_bytes(), body] {
            let parsed: Vec<(String, String)> = serde_urlencoded::from_bytes(source)
                .map_err(|_| common::serialization("The request's parameters are malformed."))?;
            parameters.extend(parsed);
        }
        if parameters.len() > MAX_PARAMETERS {
            let message = format!("A request has at most {MAX_PARAMETERS} parameters.");
            return Err(common::serialization(message));
        }
        Ok(Self(parameters))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The parameters as a JSON value of a structure's schema.
    pub(crate) fn value(&self, schema: &'static Schema) -> Value {
        structure(self, schema, "").unwrap_or_else(|| Value::Object(Map::new()))
    }

    fn any_below(&self, prefix: &str) -> bool {
        self.0.iter().any(|(key, _)| {
            key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

fn structure(parameters: &Parameters, schema: &'static Schema, prefix: &str) -> Option<Value> {
    let Kind::Structure { members } = schema.kind else {
        return None;
    };
    let mut values = Map::new();
    for member in members {
        let path = join(prefix, member.name);
        // Also ends the descent into a schema that contains itself.
        if parameters.any_below(&path)
            && let Some(value) = read(parameters, member.schema, &path)
        {
            values.insert(member.name.to_owned(), value);
        }
    }
    Some(Value::Object(values))
}

fn read(parameters: &Parameters, schema: &'static Schema, path: &str) -> Option<Value> {
    match schema.kind {
        Kind::Structure { .. } => structure(parameters, schema, path),
        Kind::List { member, .. } => {
            let mut members = Vec::new();
            // As many as there can be; a gap ends the list.
            for index in 1..=MAX_PARAMETERS {
                let path = format!("{path}.member.{index}");
                if !parameters.any_below(&path) {
                    break;
                }
                members.push(read(parameters, member, &path).unwrap_or_default());
            }
            Some(Value::Array(members))
        }
        Kind::Map { value: member, .. } => {
            let mut values = Map::new();
            for index in 1..=MAX_PARAMETERS {
                let path = format!("{path}.entry.{index}");
                let Some(key) = parameters.get(&format!("{path}.key")) else {
                    break;
                };
                let value = read(parameters, member, &format!("{path}.value"));
                values.insert(key.to_owned(), value.unwrap_or_default());
            }
            Some(Value::Object(values))
        }
        _ => parameters.get(path).map(|text| scalar(schema, text)),
    }
}

/// A scalar's text as the JSON of its type; as a string where it is none, for validation to refuse.
fn scalar(schema: &Schema, text: &str) -> Value {
    let parsed = match schema.kind {
        Kind::Integer { .. } | Kind::Long { .. } => text.parse::<i64>().ok().map(Value::from),
        Kind::Double { .. } => text.parse::<f64>().ok().map(Value::from),
        Kind::Boolean => text.parse::<bool>().ok().map(Value::from),
        Kind::Timestamp => chrono::DateTime::parse_from_rfc3339(text)
            .ok()
            .map(|time| Value::from(time.timestamp_millis() as f64 / 1000.0)),
        _ => None,
    };
    parsed.unwrap_or_else(|| Value::from(text))
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// The body of a success.
pub(crate) fn response(service: Service, operation: &str, output: &Value, request_id: &str) -> String {
    let mut xml = String::new();
    let namespace = service.info().xml_namespace.unwrap_or_default();
    xml.push_str(&format!("<{operation}Response xmlns=\"{}\">", Escaped(namespace)));
    element(&mut xml, &format!("{operation}Result"), output);
    xml.push_str("<ResponseMetadata>");
    element(&mut xml, "RequestId", &Value::from(request_id));
    xml.push_str(&format!("</ResponseMetadata></{operation}Response>"));
    xml
}

/// The body of an error.
pub(crate) fn error(code: &str, error: &Error, request_id: &str) -> String {
    let fault = match error.fault {
        Fault::Sender => "Sender",
        Fault::Receiver => "Receiver",
    };
    let mut xml = String::from("<ErrorResponse><Error>");
    element(&mut xml, "Type", &Value::from(fault));
    element(&mut xml, "Code", &Value::from(code));
    element(&mut xml, "Message", &Value::from(error.message.as_str()));
    xml.push_str("</Error>");
    element(&mut xml, "RequestId", &Value::from(request_id));
    xml.push_str("</ErrorResponse>");
    xml
}

fn element(xml: &mut String, name: &str, value: &Value) {
    // Writing to a string does not fail.
    let _ = write!(xml, "<{name}>");
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (name, value) in members {
                element(xml, name, value);
            }
        }
        Value::Array(members) => {
            for value in members {
                element(xml, "member", value);
            }
        }
        Value::String(text) => {
            let _ = write!(xml, "{}", Escaped(text));
        }
        other => {
            let _ = write!(xml, "{other}");
        }
    }
    let _ = write!(xml, "</{name}>");
}

/// A text as XML 1.0 character data; characters that XML cannot hold become U+FFFD.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&apos;")?,
                '\r' => f.write_str("&#13;")?,
                '\t' | '\n' => f.write_char(letter)?,
                '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}')?,
                _ => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}
