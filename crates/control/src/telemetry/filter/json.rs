//! JSON patterns: `{ $.a.b[0] = "x*" && ($.n >= 5 || $.s NOT EXISTS) }`.

use super::PatternError;
use super::compare::{Operator, Value};
use super::cursor::Cursor;
use serde_json::Value as Json;

/// Most wildcard selectors in one pattern (the guide: "up to three wildcard selectors in a filter
/// pattern with compound expressions").
const MAX_WILDCARDS: usize = 3;

pub(super) enum Expr {
    Any(Vec<Expr>),
    All(Vec<Expr>),
    Test { selector: Selector, test: Test },
}

pub(super) enum Test {
    Compare(Operator, Value),
    IsNull,
    IsBool(bool),
    NotExists,
}

/// A path from the document's root.
pub(super) struct Selector {
    source: String,
    steps: Vec<Step>,
}

enum Step {
    Key(String),
    Index(usize),
    /// Any element of an array or any field of an object.
    Every,
}

/// Parses a trimmed pattern that starts with `{` and ends with `}`.
pub(super) fn parse(pattern: &str) -> Result<Expr, PatternError> {
    let mut parser = Parser { cursor: Cursor::new(pattern), wildcards: 0 };
    parser.cursor.expect("{")?;
    let expr = parser.any()?;
    parser.cursor.skip_space();
    parser.cursor.expect("}")?;
    match parser.cursor.peek() {
        None => Ok(expr),
        Some(_) => Err(parser.cursor.unexpected("the end of the pattern")),
    }
}

struct Parser<'p> {
    cursor: Cursor<'p>,
    wildcards: usize,
}

impl Parser<'_> {
    fn any(&mut self) -> Result<Expr, PatternError> {
        let mut terms = vec![self.all()?];
        loop {
            self.cursor.skip_space();
            if !self.cursor.eat("||") {
                return Ok(single(terms, Expr::Any));
            }
            terms.push(self.all()?);
        }
    }

    fn all(&mut self) -> Result<Expr, PatternError> {
        let mut terms = vec![self.primary()?];
        loop {
            self.cursor.skip_space();
            if !self.cursor.eat("&&") {
                return Ok(single(terms, Expr::All));
            }
            terms.push(self.primary()?);
        }
    }

    fn primary(&mut self) -> Result<Expr, PatternError> {
        self.cursor.skip_space();
        if self.cursor.eat("(") {
            self.cursor.enter()?;
            let expr = self.any()?;
            self.cursor.skip_space();
            self.cursor.expect(")")?;
            self.cursor.leave();
            return Ok(expr);
        }
        let selector = self.selector()?;
        let test = self.test()?;
        Ok(Expr::Test { selector, test })
    }

    fn test(&mut self) -> Result<Test, PatternError> {
        let cursor = &mut self.cursor;
        cursor.skip_space();
        if let Some(operator) = cursor.operator() {
            cursor.skip_space();
            return Ok(Test::Compare(operator, cursor.value(operator, "(){}")?));
        }
        if cursor.eat_word("IS") {
            cursor.skip_space();
            let words =
                [("NULL", Test::IsNull), ("TRUE", Test::IsBool(true)), ("FALSE", Test::IsBool(false))];
            for (word, test) in words {
                if cursor.eat_word(word) {
                    return Ok(test);
                }
            }
            return Err(cursor.unexpected("NULL, TRUE or FALSE after IS"));
        }
        if cursor.eat_word("NOT") {
            cursor.skip_space();
            if cursor.eat_word("EXISTS") {
                return Ok(Test::NotExists);
            }
            return Err(cursor.unexpected("EXISTS after NOT"));
        }
        Err(cursor.unexpected("an operator"))
    }

    fn selector(&mut self) -> Result<Selector, PatternError> {
        let before = self.cursor.rest();
        self.cursor.expect("$")?;
        let mut steps = Vec::new();
        loop {
            if self.cursor.eat("[") {
                steps.push(self.bracket()?);
            } else if self.cursor.eat(".") {
                if self.cursor.eat("[") {
                    steps.push(self.bracket()?);
                } else if self.cursor.eat("*") {
                    steps.push(Step::Every);
                } else {
                    let name = self.cursor.take_while(|c| c.is_alphanumeric() || matches!(c, '-' | '_'));
                    if name.is_empty() {
                        return Err(self.cursor.unexpected("a property name"));
                    }
                    steps.push(Step::Key(name.to_owned()));
                }
            } else {
                break;
            }
        }
        if steps.is_empty() {
            return Err(self.cursor.unexpected("a property selector such as $.name"));
        }
        let wildcards = steps.iter().filter(|step| matches!(step, Step::Every)).count();
        self.wildcards += wildcards;
        if wildcards > 1 || self.wildcards > MAX_WILDCARDS {
            return Err(PatternError::new(format!(
                "more than 1 wildcard in a property selector, or {MAX_WILDCARDS} in the pattern"
            )));
        }
        let length = before.len() - self.cursor.rest().len();
        Ok(Selector { source: before[..length].to_owned(), steps })
    }

    /// What stands between brackets, after the opening one.
    fn bracket(&mut self) -> Result<Step, PatternError> {
        self.cursor.skip_space();
        let step = match self.cursor.peek() {
            Some('*') => {
                self.cursor.next();
                Step::Every
            }
            Some('"' | '\'') => Step::Key(self.cursor.quoted()?.literal()),
            _ => {
                let digits = self.cursor.take_while(|c| c.is_ascii_digit());
                let index = digits.parse().map_err(|_| self.cursor.unexpected("an array index"))?;
                Step::Index(index)
            }
        };
        self.cursor.skip_space();
        self.cursor.expect("]")?;
        Ok(step)
    }
}

fn single(mut terms: Vec<Expr>, several: fn(Vec<Expr>) -> Expr) -> Expr {
    match terms.pop() {
        Some(only) if terms.is_empty() => only,
        Some(last) => {
            terms.push(last);
            several(terms)
        }
        None => several(terms),
    }
}

impl Expr {
    pub fn matches(&self, document: &Json) -> bool {
        match self {
            Self::Any(terms) => terms.iter().any(|term| term.matches(document)),
            Self::All(terms) => terms.iter().all(|term| term.matches(document)),
            Self::Test { selector, test } => match test {
                Test::NotExists => !selector.any(document, &|_| true),
                Test::IsNull => selector.any(document, &Json::is_null),
                Test::IsBool(wanted) => selector.any(document, &|n| n.as_bool() == Some(*wanted)),
                Test::Compare(operator, value) => {
                    selector.any(document, &|node| value.compare_json(*operator, node))
                }
            },
        }
    }

    /// The values of all selectors that lead to a string, number or boolean.
    pub fn extract(&self, document: &Json) -> Vec<(String, String)> {
        let mut found = Vec::new();
        self.collect(document, &mut found);
        found
    }

    fn collect(&self, document: &Json, found: &mut Vec<(String, String)>) {
        match self {
            Self::Any(terms) | Self::All(terms) => {
                for term in terms {
                    term.collect(document, found);
                }
            }
            Self::Test { selector, .. } => {
                let value = selector.first(document).and_then(|node| match node {
                    Json::String(text) => Some(text.clone()),
                    Json::Number(_) | Json::Bool(_) => Some(node.to_string()),
                    _ => None,
                });
                if let Some(value) = value
                    && !found.iter().any(|(name, _)| *name == selector.source)
                {
                    found.push((selector.source.clone(), value));
                }
            }
        }
    }
}

impl Selector {
    /// Whether any node that the path leads to satisfies `wanted`. There is at most one wildcard, so
    /// the nodes visited are at most those of the document.
    fn any(&self, document: &Json, wanted: &dyn Fn(&Json) -> bool) -> bool {
        walk(&self.steps, document, wanted)
    }

    fn first<'d>(&self, document: &'d Json) -> Option<&'d Json> {
        self.steps.iter().try_fold(document, |node, step| match step {
            Step::Key(key) => node.get(key),
            Step::Index(index) => node.get(index),
            Step::Every => match node {
                Json::Array(items) => items.first(),
                Json::Object(fields) => fields.values().next(),
                _ => None,
            },
        })
    }
}

fn walk(steps: &[Step], node: &Json, wanted: &dyn Fn(&Json) -> bool) -> bool {
    let Some((step, rest)) = steps.split_first() else {
        return wanted(node);
    };
    match (step, node) {
        (Step::Key(key), Json::Object(fields)) => {
            fields.get(key).is_some_and(|next| walk(rest, next, wanted))
        }
        (Step::Index(index), Json::Array(items)) => {
            items.get(*index).is_some_and(|next| walk(rest, next, wanted))
        }
        (Step::Every, Json::Array(items)) => items.iter().any(|next| walk(rest, next, wanted)),
        (Step::Every, Json::Object(fields)) => fields.values().any(|next| walk(rest, next, wanted)),
        _ => false,
    }
}
