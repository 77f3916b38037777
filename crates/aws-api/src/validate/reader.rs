//! Reads a value of a schema from any serde source, in one pass.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::Rules;
use super::constraint::{Subject, Violation, demands, of_members};
use crate::schema::{Kind, Member, Schema};

/// What one request may cost: a point for each value and for each member that a structure could
/// have. The body's size alone bounds nothing, because `{}` becomes a structure of up to some
/// kilobytes. PutLogEvents, the largest, has 10,000 events at 5 points.
const MAX_COST: usize = 100_000;

/// How many violations are reported.
const MAX_VIOLATIONS: usize = 10;

/// How much of a map's key a message repeats, in characters.
const MAX_KEY_SHOWN: usize = 128;

/// The largest timestamp taken, in seconds: the year 9999.
const MAX_SECONDS: f64 = 253_402_300_799.0;

const LIST: &str = "Start of list found where not expected";
const MAP: &str = "Start of structure or map found where not expected.";

/// What the readers of one request share.
pub struct State<'a> {
    rules: &'a Rules,
    path: Vec<Step>,
    cost: usize,
    pub violations: Vec<Violation>,
    /// Why the reading stopped: the text of a `SerializationException`.
    pub refusal: Option<String>,
}

/// A step of the path to a value.
enum Step {
    Member(&'static str),
    /// A list's member, counted from 1.
    Index(usize),
    Key(String),
}

impl<'a> State<'a> {
    pub fn new(rules: &'a Rules) -> Self {
        Self { rules, path: Vec::new(), cost: 0, violations: Vec::new(), refusal: None }
    }

    fn refuse<E: serde::de::Error>(&mut self, refusal: String) -> E {
        let error = E::custom(&refusal);
        self.refusal = Some(refusal);
        error
    }

    fn spend<E: serde::de::Error>(&mut self, schema: &Schema) -> Result<(), E> {
        self.cost += match schema.kind {
            Kind::Structure { members } => 1 + members.len(),
            _ => 1,
        };
        if self.cost > MAX_COST {
            return Err(self.refuse("The request holds too many values.".to_owned()));
        }
        Ok(())
    }

    fn violate(&mut self, value: &Value, subject: Subject, demand: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(Violation::new(self.path(), value, subject, demand));
        }
    }

    /// `containerDefinitions.1.member.name`
    fn path(&self) -> String {
        let steps: Vec<_> = self
            .path
            .iter()
            .map(|step| match step {
                Step::Member(name) => (*name).to_owned(),
                Step::Index(index) => format!("{index}.member"),
                Step::Key(key) => format!("{key}.member"),
            })
            .collect();
        steps.join(".")
    }

    /// Checks the value at the present path. A container's scalar members are reported at the
    /// container, as AWS does; other members have been checked when they were read.
    fn check(&mut self, schema: &'static Schema, value: &Value) {
        let rules = self.rules;
        for demand in demands(rules, schema, value) {
            self.violate(value, Subject::Member, demand);
        }
        match (&schema.kind, value) {
            (Kind::List { member, .. }, Value::Array(members)) if is_scalar(member) => {
                if let Some(demand) = first(members.iter().map(|v| demands(rules, member, v))) {
                    self.violate(value, Subject::Member, demand);
                }
            }
            (Kind::Map { key, value: member, .. }, Value::Object(members)) => {
                let keys = members.keys().map(|name| Value::from(name.as_str()));
                if let Some(demand) = first(keys.map(|name| demands(rules, key, &name))) {
                    self.violate(value, Subject::MapKeys, demand);
                }
                let values = members.values().filter(|_| is_scalar(member));
                if let Some(demand) = first(values.map(|v| demands(rules, member, v))) {
                    self.violate(value, Subject::MapValue, demand);
                }
            }
            _ => {}
        }
    }

    /// Checks a list's or map's member, which has just been read. The generated types have no
    /// place for a missing one.
    fn check_part(&mut self, schema: &'static Schema, value: Option<&Value>) {
        match value {
            None if matches!(schema.kind, Kind::Document) => {}
            None => self.violate(&Value::Null, Subject::Member, "not be null".to_owned()),
            Some(value) if !is_scalar(schema) => self.check(schema, value),
            Some(_) => {}
        }
    }
}

/// The demands on the first member that breaks any.
fn first(mut broken: impl Iterator<Item = Vec<String>>) -> Option<String> {
    broken.find(|demands| !demands.is_empty()).map(|demands| of_members(&demands))
}

fn is_scalar(schema: &Schema) -> bool {
    !matches!(schema.kind, Kind::Structure { .. } | Kind::List { .. } | Kind::Map { .. })
}

/// Reads one value. None is JSON's null, which is an absent member.
pub struct Reader<'s, 'a> {
    pub schema: &'static Schema,
    pub state: &'s mut State<'a>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Self::Value, D::Error> {
        self.state.spend(self.schema)?;
        source.deserialize_any(self)
    }
}

impl Reader<'_, '_> {
    /// A scalar where the schema wants something else.
    fn mismatch<E: serde::de::Error>(self, token: &str) -> E {
        let wanted = match self.schema.kind {
            Kind::String { .. } => "String",
            Kind::Integer { .. } => "Integer",
            Kind::Long { .. } => "Long",
            Kind::Double { .. } => "Double",
            Kind::Boolean => "Boolean",
            Kind::Timestamp => "Timestamp",
            Kind::Blob { .. } => "Blob",
            _ => self.schema.name,
        };
        self.state.refuse(format!("{token} cannot be converted to {wanted}"))
    }

    /// A number with a fraction, or beyond the integers. Integers truncate it, as AWS does.
    fn number<E: serde::de::Error>(self, number: f64) -> Result<Option<Value>, E> {
        let fits = |limit: f64| number >= -limit && number < limit;
        let value = match self.schema.kind {
            Kind::Integer { .. } if fits(2_147_483_648.0) => Value::from(number as i32),
            Kind::Long { .. } if fits(9_223_372_036_854_775_808.0) => Value::from(number as i64),
            Kind::Timestamp if number.abs() <= MAX_SECONDS => float(number),
            Kind::Double { .. } | Kind::Document => float(number),
            _ => return Err(self.mismatch("NUMBER_VALUE")),
        };
        Ok(Some(value))
    }
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

impl<'de> Visitor<'de> for Reader<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.schema.name)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Self::Value, E> {
        match self.schema.kind {
            Kind::Boolean | Kind::Document => Ok(Some(Value::Bool(value))),
            _ => Err(self.mismatch(if value { "TRUE_VALUE" } else { "FALSE_VALUE" })),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
        match self.schema.kind {
            Kind::Integer { .. } if i32::try_from(number).is_err() => Err(self.mismatch("NUMBER_VALUE")),
            Kind::Integer { .. } | Kind::Long { .. } | Kind::Document => Ok(Some(Value::from(number))),
            _ => self.number(number as f64),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            Err(_) => self.number(number as f64),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Self::Value, E> {
        self.number(number)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        match self.schema.kind {
            Kind::String { .. } | Kind::Document => Ok(Some(Value::from(text))),
            Kind::Blob { .. } if crate::blob::is_base64(text) => Ok(Some(Value::from(text))),
            _ => Err(self.mismatch("STRING_VALUE")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut source: A) -> Result<Self::Value, A::Error> {
        let Self { schema, state } = self;
        let member = match schema.kind {
            Kind::List { member, .. } => member,
            Kind::Document => schema,
            _ => return Err(state.refuse(LIST.to_owned())),
        };
        let mut members = Vec::new();
        loop {
            state.path.push(Step::Index(members.len() + 1));
            let next = source.next_element_seed(Reader { schema: member, state: &mut *state })?;
            if let Some(value) = &next {
                state.check_part(member, value.as_ref());
            }
            state.path.pop();
            match next {
                Some(value) => members.push(value.unwrap_or_default()),
                None => return Ok(Some(Value::Array(members))),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Self::Value, A::Error> {
        let Self { schema, state } = self;
        let member = match schema.kind {
            Kind::Structure { members } => return structure(members, state, source).map(Some),
            Kind::Map { value, .. } => value,
            Kind::Document => schema,
            _ => return Err(state.refuse(MAP.to_owned())),
        };
        let mut values = Map::new();
        while let Some(key) = source.next_key::<String>()? {
            state.path.push(Step::Key(key.chars().take(MAX_KEY_SHOWN).collect()));
            let value = source.next_value_seed(Reader { schema: member, state: &mut *state })?;
            state.check_part(member, value.as_ref());
            state.path.pop();
            values.insert(key, value.unwrap_or_default());
        }
        Ok(Some(Value::Object(values)))
    }
}

/// Reads a structure's members, ignoring those that the model does not name, as AWS does.
fn structure<'de, A: MapAccess<'de>>(
    members: &'static [Member],
    state: &mut State<'_>,
    mut source: A,
) -> Result<Value, A::Error> {
    let mut values = Map::new();
    while let Some(key) = source.next_key::<std::borrow::Cow<'de, str>>()? {
        let Some(member) = members.iter().find(|member| member.name == key) else {
            source.next_value::<IgnoredAny>()?;
            continue;
        };
        state.path.push(Step::Member(member.name));
        let reader = Reader { schema: member.schema, state: &mut *state };
        if let Some(value) = source.next_value_seed(reader)? {
            state.check(member.schema, &value);
            values.insert(member.name.to_owned(), value);
        }
        state.path.pop();
    }
    if state.rules.required {
        for member in members.iter().filter(|member| member.required) {
            if !values.contains_key(member.name) {
                state.path.push(Step::Member(member.name));
                state.violate(&Value::Null, Subject::Member, "not be null".to_owned());
                state.path.pop();
            }
        }
    }
    Ok(Value::Object(values))
}
