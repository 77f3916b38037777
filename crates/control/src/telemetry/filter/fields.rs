//! Space-delimited patterns: `[ip, user, ..., status = 4*, bytes > 1000]`.

use super::PatternError;
use super::compare::{Operator, Value};
use super::cursor::Cursor;

pub(super) struct Fields {
    /// Before the ellipsis, or all of them when there is none.
    head: Vec<Field>,
    /// After the ellipsis; `None` when there is none.
    tail: Option<Vec<Field>>,
}

struct Field {
    name: String,
    condition: Option<Condition>,
}

enum Condition {
    Any(Vec<Condition>),
    All(Vec<Condition>),
    Compare(Operator, Value),
}

/// Parses a trimmed pattern that starts with `[` and ends with `]`.
pub(super) fn parse(pattern: &str) -> Result<Fields, PatternError> {
    let mut cursor = Cursor::new(pattern);
    cursor.expect("[")?;
    let mut fields = Fields { head: Vec::new(), tail: None };
    loop {
        cursor.skip_space();
        if cursor.eat("...") {
            if fields.tail.is_some() {
                return Err(PatternError::new("more than one ellipsis"));
            }
            fields.tail = Some(Vec::new());
        } else {
            let field = field(&mut cursor)?;
            fields.tail.as_mut().unwrap_or(&mut fields.head).push(field);
        }
        cursor.skip_space();
        if cursor.eat("]") {
            break;
        }
        cursor.expect(",")?;
    }
    match cursor.peek() {
        None => Ok(fields),
        Some(_) => Err(cursor.unexpected("the end of the pattern")),
    }
}

/// A name, alone or in a condition on itself: `status = 404 || status = 410`.
fn field(cursor: &mut Cursor<'_>) -> Result<Field, PatternError> {
    let mut name = None;
    let condition = any(cursor, &mut name)?;
    Ok(Field { name: name.unwrap_or_default(), condition })
}

fn any(cursor: &mut Cursor<'_>, name: &mut Option<String>) -> Result<Option<Condition>, PatternError> {
    let first = all(cursor, name)?;
    cursor.skip_space();
    if !cursor.rest().starts_with("||") {
        return Ok(first);
    }
    let mut terms: Vec<_> = first.into_iter().collect();
    loop {
        cursor.skip_space();
        if !cursor.eat("||") {
            return Ok(Some(Condition::Any(terms)));
        }
        terms.extend(all(cursor, name)?);
    }
}

fn all(cursor: &mut Cursor<'_>, name: &mut Option<String>) -> Result<Option<Condition>, PatternError> {
    let first = primary(cursor, name)?;
    cursor.skip_space();
    if !cursor.rest().starts_with("&&") {
        return Ok(first);
    }
    let mut terms: Vec<_> = first.into_iter().collect();
    loop {
        cursor.skip_space();
        if !cursor.eat("&&") {
            return Ok(Some(Condition::All(terms)));
        }
        terms.extend(primary(cursor, name)?);
    }
}

fn primary(cursor: &mut Cursor<'_>, name: &mut Option<String>) -> Result<Option<Condition>, PatternError> {
    cursor.skip_space();
    if cursor.eat("(") {
        cursor.enter()?;
        let condition = any(cursor, name)?;
        cursor.skip_space();
        cursor.expect(")")?;
        cursor.leave();
        return Ok(condition);
    }
    let here = cursor.take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    if here.is_empty() {
        return Err(cursor.unexpected("a field name"));
    }
    match name {
        None => *name = Some(here.to_owned()),
        Some(name) if name == here => {}
        Some(name) => {
            return Err(PatternError::new(format!(
                "a condition of the field '{name}' names the field '{here}'"
            )));
        }
    }
    cursor.skip_space();
    let Some(operator) = cursor.operator() else {
        return Ok(None);
    };
    cursor.skip_space();
    let value = cursor.value(operator, ",()[]")?;
    Ok(Some(Condition::Compare(operator, value)))
}

impl Condition {
    fn holds(&self, field: &str) -> bool {
        match self {
            Self::Any(terms) => terms.iter().any(|term| term.holds(field)),
            Self::All(terms) => terms.iter().all(|term| term.holds(field)),
            Self::Compare(operator, value) => value.compare_field(*operator, field),
        }
    }
}

impl Field {
    fn holds(&self, text: &str) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.holds(text))
    }
}

impl Fields {
    pub fn matches(&self, message: &str) -> bool {
        self.bind(message).is_some_and(|bound| bound.iter().all(|(field, text)| field.holds(text)))
    }

    pub fn extract(&self, message: &str) -> Option<Vec<(String, String)>> {
        let bound = self.bind(message)?;
        bound.iter().all(|(field, text)| field.holds(text)).then(|| {
            bound.iter().map(|(field, text)| (format!("${}", field.name), (*text).to_owned())).collect()
        })
    }

    /// Gives each named field its text, or `None` when the event has too few.
    ///
    /// Without an ellipsis the last field takes what is left of the event: the guide's
    /// `[w1=ERROR, w2]` returns an event of eight words whose first is ERROR.
    fn bind<'f, 'm>(&'f self, message: &'m str) -> Option<Vec<(&'f Field, &'m str)>> {
        match &self.tail {
            None => {
                let last = self.head.len().checked_sub(1)?;
                let mut words = Words::new(message);
                let mut bound = Vec::with_capacity(self.head.len());
                for field in &self.head[..last] {
                    bound.push((field, words.next()?));
                }
                let rest = words.rest();
                let word = words.next()?;
                let text = if words.rest().is_empty() { word } else { rest };
                bound.push((&self.head[last], text));
                Some(bound)
            }
            Some(tail) => {
                let words: Vec<&str> = Words::new(message).collect();
                let after = words.len().checked_sub(tail.len())?;
                if after < self.head.len() {
                    return None;
                }
                let front = self.head.iter().zip(words.iter().copied());
                let back = tail.iter().zip(words[after..].iter().copied());
                Some(front.chain(back).collect())
            }
        }
    }
}

/// The words of an event. "Characters between brackets and double quotation marks are considered
/// single fields", and come without them.
struct Words<'m> {
    rest: &'m str,
    /// Closing characters that do not occur in `rest` any more: a message full of unclosed brackets
    /// is searched for a closing one once, not once a bracket.
    absent: Vec<char>,
}

impl<'m> Words<'m> {
    fn new(message: &'m str) -> Self {
        Self { rest: message.trim(), absent: Vec::new() }
    }

    fn rest(&self) -> &'m str {
        self.rest
    }
}

impl<'m> Iterator for Words<'m> {
    type Item = &'m str;

    fn next(&mut self) -> Option<&'m str> {
        let first = self.rest.chars().next()?;
        let close = match first {
            '"' => Some('"'),
            '[' => Some(']'),
            _ => None,
        };
        if let Some(close) = close.filter(|close| !self.absent.contains(close)) {
            // Both opening characters are one byte long.
            if let Some((inner, rest)) = self.rest[1..].split_once(close) {
                self.rest = rest.trim_start();
                return Some(inner);
            }
            self.absent.push(close);
        }
        let (word, rest) = self.rest.split_once(char::is_whitespace).unwrap_or((self.rest, ""));
        self.rest = rest.trim_start();
        Some(word)
    }
}
