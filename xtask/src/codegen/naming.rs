//! From the models' names to Rust's.

use proc_macro2::{Ident, Span};
use quote::format_ident;

/// Splits names into words; `words` are spellings kept whole (`MiB`, `IPv6`).
pub struct Names<'a> {
    pub words: &'a [String],
}

impl Names<'_> {
    /// `sizeInMiB` → `size_in_mib`.
    pub fn snake(&self, name: &str) -> String {
        self.split(name).join("_").to_lowercase()
    }

    /// `awslogs-firelens` → `AWSLOGS_FIRELENS`; a leading digit gets an underscore before it.
    pub fn screaming(&self, name: &str) -> String {
        let name = self.split(name).join("_").to_uppercase();
        if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
    }

    /// A field, module or function name; keywords become raw identifiers.
    pub fn snake_ident(&self, name: &str) -> Ident {
        let name = self.snake(name);
        syn::parse_str(&name).unwrap_or_else(|_| Ident::new_raw(&name, Span::call_site()))
    }

    pub fn screaming_ident(&self, name: &str) -> Ident {
        format_ident!("{}", self.screaming(name))
    }

    /// A type's name: the shape's own, with a capital first.
    pub fn type_ident(&self, name: &str) -> Ident {
        let mut letters = name.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        format_ident!("{}", first.into_iter().chain(letters).collect::<String>())
    }

    fn split(&self, name: &str) -> Vec<String> {
        let mut parts: Vec<String> = Vec::new();
        let mut rest = name;
        let mut previous = None;
        while let Some(letter) = rest.chars().next() {
            if let Some(word) = self.words.iter().find(|w| rest.starts_with(w.as_str())) {
                parts.push(word.clone());
                rest = &rest[word.len()..];
                previous = None;
                // What follows a kept word starts the next one, unless it is a plural's `s`.
                if rest == "s" {
                    return joined(parts, "s");
                }
                parts.push(String::new());
                continue;
            }
            let following = rest[letter.len_utf8()..].chars().next();
            if !letter.is_ascii_alphanumeric() {
                parts.push(String::new());
            } else {
                if starts_word(previous, letter, following) {
                    parts.push(String::new());
                }
                match parts.last_mut() {
                    Some(part) => part.push(letter),
                    None => parts.push(letter.to_string()),
                }
            }
            previous = Some(letter);
            rest = &rest[letter.len_utf8()..];
        }
        parts.retain(|part| !part.is_empty());
        parts
    }
}

fn joined(mut parts: Vec<String>, tail: &str) -> Vec<String> {
    if let Some(part) = parts.last_mut() {
        part.push_str(tail);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// A capital starts a word after a small letter or digit, or when a small letter follows it.
fn starts_word(previous: Option<char>, letter: char, following: Option<char>) -> bool {
    let Some(previous) = previous else {
        return true;
    };
    letter.is_ascii_uppercase()
        && (previous.is_ascii_lowercase()
            || previous.is_ascii_digit()
            || (previous.is_ascii_uppercase() && following.is_some_and(|c| c.is_ascii_lowercase())))
}

#[cfg(test)]
mod tests {
    use super::Names;

    #[test]
    fn splits_names() {
        let words = ["MiB".to_owned(), "IPv6".to_owned()];
        let names = Names { words: &words };
        for (name, expected) in [
            ("sizeInMiB", "size_in_mib"),
            ("logGroupName", "log_group_name"),
            ("MFACode", "mfa_code"),
            ("roleARN", "role_arn"),
            ("IPv6Address", "ipv6_address"),
            ("assignIPv6Addresses", "assign_ipv6_addresses"),
            ("awslogs-firelens", "awslogs_firelens"),
            ("X86_64", "x86_64"),
            ("sha256sum", "sha256sum"),
        ] {
            assert_eq!(names.snake(name), expected);
        }
        assert_eq!(names.snake_ident("type").to_string(), "r#type");
        assert_eq!(names.type_ident("tagKeyType").to_string(), "TagKeyType");
        assert_eq!(names.screaming("1 day"), "_1_DAY");
    }
}
