//! Unstructured patterns: terms that must, may or must not occur in the message.

use super::PatternError;
use super::cursor::Cursor;
use regex::Regex;

pub(super) struct Terms {
    required: Vec<Term>,
    optional: Vec<Term>,
    excluded: Vec<Term>,
}

enum Term {
    Text(String),
    Regex(Regex),
}

impl Term {
    fn occurs(&self, message: &str) -> bool {
        match self {
            Self::Text(text) => message.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(message),
        }
    }
}

pub(super) fn parse(pattern: &str) -> Result<Terms, PatternError> {
    let mut cursor = Cursor::new(pattern);
    let mut terms = Terms { required: Vec::new(), optional: Vec::new(), excluded: Vec::new() };
    loop {
        cursor.skip_space();
        let list = match cursor.peek() {
            None => return Ok(terms),
            Some('?') => {
                cursor.next();
                &mut terms.optional
            }
            Some('-') => {
                cursor.next();
                &mut terms.excluded
            }
            Some(_) => &mut terms.required,
        };
        list.push(term(&mut cursor)?);
    }
}

fn term(cursor: &mut Cursor<'_>) -> Result<Term, PatternError> {
    match cursor.peek() {
        Some('"') => {
            let text = cursor.quoted()?.literal();
            // The guide's `" "` matches everything, so outer space does not count.
            Ok(Term::Text(text.trim().to_owned()))
        }
        Some('%') => Ok(Term::Regex(cursor.regex()?)),
        _ => {
            let word = cursor.take_while(|c| !c.is_whitespace());
            if word.is_empty() || !word.chars().all(|c| c.is_alphanumeric() || c == '_') {
                return Err(PatternError::term(word));
            }
            Ok(Term::Text(word.to_owned()))
        }
    }
}

impl Terms {
    /// Optional terms count only alone: "If you combine `?` with other filter patterns, all question
    /// mark terms will be ignored".
    pub fn matches(&self, message: &str) -> bool {
        if self.required.is_empty() && self.excluded.is_empty() {
            return self.optional.iter().any(|term| term.occurs(message));
        }
        self.required.iter().all(|term| term.occurs(message))
            && !self.excluded.iter().any(|term| term.occurs(message))
    }
}
