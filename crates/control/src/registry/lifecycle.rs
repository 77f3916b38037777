//! Lifecycle policies: the document, its validation, and which images it expires.
//!
//! Rules: ECR user guide, "Lifecycle policy properties" and "Lifecycle policy evaluation rules". The
//! words of the errors are those of the service's JSON schema validation.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// A policy that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// In order of priority.
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    priority: u32,
    selection: Selection,
    count: Count,
}

/// Which images a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Selection {
    /// Those that have, for each prefix, a tag that begins with it.
    Prefixes(Vec<String>),
    /// Those that have, for each pattern, a tag that matches it.
    Patterns(Vec<String>),
    Untagged,
    Any,
}

/// Which of those it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    /// All but the newest so many.
    MoreThan(u64),
    /// Those pushed at least so many days ago.
    DaysSincePushed(u64),
}

/// What a policy sees of an image.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Its tags; empty means untagged.
    pub tags: &'a BTreeSet<super::name::Tag>,
    /// Milliseconds since 1970, UTC.
    pub pushed_at: i64,
    /// Whether a manifest list in the repository refers to it: then it is not expired before that.
    pub referenced: bool,
}

/// An image that a policy expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The image's index in the slice that was evaluated.
    pub image: usize,
    /// The priority of the rule that expires it.
    pub rule_priority: u32,
}

/// The document's size in characters (ECR API reference, `lifecyclePolicyText`).
const MAX_DOCUMENT: usize = 30_720;
/// Rules in one policy (ECR service quotas, "Rules per lifecycle policy").
const MAX_RULES: usize = 50;

impl Policy {
    /// Reads and checks a policy document. The error is the sentence that ECR's
    /// `InvalidParameterException` has after "Lifecycle policy validation failure: ".
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_DOCUMENT {
            return Err(format!(
                "string is too long (length: {}, maximum allowed: {MAX_DOCUMENT})",
                text.len()
            ));
        }
        let unmapped = || "Could not map policyString into LifecyclePolicy.".to_owned();
        let document: Value = serde_json::from_str(text).map_err(|_| unmapped())?;
        let document = document.as_object().ok_or_else(unmapped)?;
        properties(document, &["rules"], &["rules"])?;
        let rules = document["rules"].as_array().ok_or_else(|| wrong_type(&document["rules"], "array"))?;
        if rules.is_empty() {
            return Err(
                "array is too short: must have at least 1 elements but instance has 0 elements".to_owned()
            );
        }
        if rules.len() > MAX_RULES {
            return Err(format!(
                "array is too long: must have at most {MAX_RULES} elements but instance has {} elements",
                rules.len()
            ));
        }
        let mut rules = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        rules.sort_by_key(|rule| rule.priority);
        check_together(&rules)?;
        Ok(Self { rules })
    }

    /// The images that the policy expires at `now` (milliseconds since 1970, UTC), by rule.
    ///
    /// Every rule looks at all images. An image that an earlier rule selects, expired by it or not,
    /// is not expired by a later one, but still counts there.
    pub fn evaluate(&self, images: &[Candidate<'_>], now: i64) -> Vec<Expiry> {
        let mut newest_first: Vec<usize> = (0..images.len()).collect();
        newest_first.sort_by_key(|&index| std::cmp::Reverse(images[index].pushed_at));
        let mut claimed = vec![false; images.len()];
        let mut expired = Vec::new();
        for rule in &self.rules {
            let selected: Vec<usize> = newest_first
                .iter()
                .copied()
                .filter(|&index| rule.selection.matches(images[index].tags))
                .collect();
            for (position, &index) in selected.iter().enumerate() {
                let image = &images[index];
                let due = match rule.count {
                    Count::MoreThan(keep) => position as u64 >= keep,
                    Count::DaysSincePushed(days) => {
                        let age = now.saturating_sub(image.pushed_at).max(0) as u64;
                        age / (24 * 3600 * 1000) >= days
                    }
                };
                if due && !claimed[index] && !image.referenced {
                    expired.push(Expiry { image: index, rule_priority: rule.priority });
                }
            }
            for index in selected {
                claimed[index] = true;
            }
        }
        expired
    }
}

impl Selection {
    fn matches(&self, tags: &BTreeSet<super::name::Tag>) -> bool {
        match self {
            Selection::Any => true,
            Selection::Untagged => tags.is_empty(),
            Selection::Prefixes(prefixes) => {
                prefixes.iter().all(|prefix| tags.iter().any(|tag| tag.as_str().starts_with(prefix)))
            }
            Selection::Patterns(patterns) => {
                patterns.iter().all(|pattern| tags.iter().any(|tag| wildcard_match(pattern, tag.as_str())))
            }
        }
    }
}

/// Whether `text` matches `pattern`, in which `*` stands for any characters, none included. Takes time
/// proportional to the product of the lengths at worst.
pub fn wildcard_match(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty(); // No wildcard: all of it has to match.
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn rule(value: &Value) -> Result<Rule, String> {
    let rule = object(value)?;
    properties(
        rule,
        &["action", "rulePriority", "selection"],
        &["action", "description", "rulePriority", "selection"],
    )?;
    if let Some(description) = rule.get("description")
        && !description.is_string()
    {
        return Err(wrong_type(description, "string"));
    }
    let action = object(&rule["action"])?;
    properties(action, &["type"], &["type"])?;
    // "transition" (to archive storage) is refused here too: there is no archive to move images to.
    one_of(&action["type"], &["expire"])?;
    let selection = object(&rule["selection"])?;
    properties(
        selection,
        &["countNumber", "countType", "tagStatus"],
        &["countNumber", "countType", "countUnit", "tagPatternList", "tagPrefixList", "tagStatus"],
    )?;
    Ok(Rule {
        priority: u32::try_from(positive(&rule["rulePriority"])?)
            .map_err(|_| "rulePriority is too large".to_owned())?,
        selection: tag_selection(selection)?,
        count: count(selection)?,
    })
}

fn tag_selection(selection: &Map<String, Value>) -> Result<Selection, String> {
    let status = one_of(&selection["tagStatus"], &["any", "tagged", "untagged"])?;
    let prefixes = strings(selection, "tagPrefixList")?;
    let patterns = strings(selection, "tagPatternList")?;
    match (status, prefixes, patterns) {
        ("any", None, None) => Ok(Selection::Any),
        ("untagged", None, None) => Ok(Selection::Untagged),
        ("tagged", Some(prefixes), None) => Ok(Selection::Prefixes(prefixes)),
        ("tagged", None, Some(patterns)) => {
            for pattern in &patterns {
                if pattern.matches('*').count() > 4 {
                    return Err(format!("tag pattern '{pattern}' has more than 4 wildcards"));
                }
            }
            Ok(Selection::Patterns(patterns))
        }
        ("tagged", None, None) => {
            Err("tagPrefixList or tagPatternList is required when tagStatus is TAGGED".to_owned())
        }
        ("tagged", Some(_), Some(_)) => {
            Err("only one of tagPrefixList and tagPatternList can be specified".to_owned())
        }
        _ => Err(format!(
            "tagPrefixList and tagPatternList can only be specified when tagStatus is TAGGED, not {}",
            status.to_uppercase()
        )),
    }
}

fn count(selection: &Map<String, Value>) -> Result<Count, String> {
    let number = positive(&selection["countNumber"])?;
    let unit = selection.get("countUnit");
    if let Some(unit) = unit {
        one_of(unit, &["days"])?;
    }
    match (selection["countType"].as_str(), unit) {
        (Some("imageCountMoreThan"), None) => Ok(Count::MoreThan(number)),
        (Some("sinceImagePushed"), Some(_)) => Ok(Count::DaysSincePushed(number)),
        // The schema has one alternative for each type; what fits neither says no more than this.
        _ => Err("instance failed to match exactly one schema (matched 0 out of 2)".to_owned()),
    }
}

/// What no single rule shows.
fn check_together(rules: &[Rule]) -> Result<(), String> {
    let mut selections: Vec<&Vec<String>> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        if index > 0 && rules[index - 1].priority == rule.priority {
            return Err(format!("rulePriority {} is used more than once", rule.priority));
        }
        match &rule.selection {
            Selection::Any if index + 1 < rules.len() => {
                return Err("a rule with tagStatus ANY must have the highest rulePriority".to_owned());
            }
            Selection::Untagged => {
                if rules[..index].iter().any(|other| other.selection == Selection::Untagged) {
                    return Err("only one rule can select untagged images".to_owned());
                }
            }
            Selection::Prefixes(list) | Selection::Patterns(list) => {
                if selections.contains(&list) {
                    return Err(format!("the tags {list:?} are selected by more than one rule"));
                }
                selections.push(list);
            }
            Selection::Any => {}
        }
    }
    Ok(())
}

fn object(value: &Value) -> Result<&Map<String, Value>, String> {
    value.as_object().ok_or_else(|| wrong_type(value, "object"))
}

fn wrong_type(value: &Value, allowed: &str) -> String {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    format!("instance type ({found}) does not match any allowed primitive type (allowed: [\"{allowed}\"])")
}

/// Checks the names of an object's properties. Both lists are sorted.
fn properties(object: &Map<String, Value>, required: &[&str], allowed: &[&str]) -> Result<(), String> {
    let list = |names: Vec<&str>| Value::from(names).to_string();
    let missing: Vec<&str> = required.iter().copied().filter(|name| !object.contains_key(*name)).collect();
    if !missing.is_empty() {
        return Err(format!("object has missing required properties ({})", list(missing)));
    }
    let unknown: Vec<&str> =
        object.keys().map(String::as_str).filter(|name| !allowed.contains(name)).collect();
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "object instance has properties which are not allowed by the schema: ({})",
            list(unknown)
        ))
    }
}

fn one_of<'a>(value: &'a Value, possible: &[&str]) -> Result<&'a str, String> {
    let text = value.as_str().ok_or_else(|| wrong_type(value, "string"))?;
    if possible.contains(&text) {
        Ok(text)
    } else {
        Err(format!(
            "instance value ({value}) not found in enum (possible values: {})",
            Value::from(possible.to_vec())
        ))
    }
}

fn positive(value: &Value) -> Result<u64, String> {
    match (value.as_u64(), value.as_i64()) {
        (Some(number), _) if number >= 1 => Ok(number),
        (Some(_), _) | (None, Some(_)) => {
            Err(format!("numeric instance is lower than the required minimum (minimum: 1, found: {value})"))
        }
        (None, None) => Err(wrong_type(value, "integer")),
    }
}

/// The list of non-empty strings of that name, sorted so that lists can be compared as sets.
fn strings(selection: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, String> {
    let Some(value) = selection.get(name) else {
        return Ok(None);
    };
    let list = value.as_array().ok_or_else(|| wrong_type(value, "array"))?;
    let mut strings = list
        .iter()
        .map(|item| {
            let text = item.as_str().ok_or_else(|| wrong_type(item, "string"))?;
            if text.is_empty() || text.len() > 128 {
                return Err(format!("a string of {name} has 1 to 128 characters"));
            }
            Ok(text.to_owned())
        })
        .collect::<Result<Vec<_>, _>>()?;
    if strings.is_empty() {
        return Ok(None);
    }
    strings.sort();
    strings.dedup();
    Ok(Some(strings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DAY: i64 = 24 * 3600 * 1000;

    fn policy(rules: Value) -> Policy {
        Policy::parse(&json!({ "rules": rules }).to_string()).unwrap()
    }

    fn tags(list: &[&str]) -> BTreeSet<super::super::name::Tag> {
        list.iter().map(|tag| tag.parse().unwrap()).collect()
    }

    /// The indices that expire, with their rule, when image n was pushed n days before day 100.
    fn expired(policy: &Policy, images: &[&[&str]]) -> Vec<(usize, u32)> {
        let tags: Vec<_> = images.iter().map(|list| tags(list)).collect();
        let candidates: Vec<_> = tags
            .iter()
            .enumerate()
            .map(|(age, tags)| Candidate { tags, pushed_at: (100 - age as i64) * DAY, referenced: false })
            .collect();
        let mut found: Vec<_> = policy
            .evaluate(&candidates, 100 * DAY)
            .into_iter()
            .map(|expiry| (expiry.image, expiry.rule_priority))
            .collect();
        found.sort_unstable();
        found
    }

    fn count_rule(priority: u32, prefix: &str, keep: u32) -> Value {
        json!({"rulePriority": priority, "selection": {"tagStatus": "tagged", "tagPrefixList": [prefix],
            "countType": "imageCountMoreThan", "countNumber": keep}, "action": {"type": "expire"}})
    }

    #[test]
    fn age_and_count_expire_the_older_ones() {
        let untagged = policy(json!([{"rulePriority": 1, "selection": {"tagStatus": "untagged",
            "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 2}, "action": {"type": "expire"}}]));
        assert_eq!(expired(&untagged, &[&[], &[], &[], &["a"], &[]]), [(2, 1), (4, 1)]);
        let any =
            policy(json!([{"rulePriority": 7, "description": "keep one", "selection": {"tagStatus": "any",
            "countType": "imageCountMoreThan", "countNumber": 1}, "action": {"type": "expire"}}]));
        assert_eq!(expired(&any, &[&["a"], &[], &["b"]]), [(1, 7), (2, 7)]);
    }

    // User guide, "Examples of lifecycle policies", "Filtering on multiple rules": A to C, newest last.
    #[test]
    fn an_image_belongs_to_the_first_rule_that_selects_it() {
        let rules = policy(json!([count_rule(1, "prod", 1), count_rule(2, "beta", 1)]));
        // Newest first: C [beta-3], B [beta-2, prod-2], A [beta-1, prod-1].
        let images: [&[&str]; 3] = [&["beta-3"], &["beta-2", "prod-2"], &["beta-1", "prod-1"]];
        // Rule 1 keeps B and expires A; rule 2 would expire B and A, but both belong to rule 1.
        assert_eq!(expired(&rules, &images), [(2, 1)]);
    }

    #[test]
    fn all_prefixes_or_patterns_have_to_match() {
        let both = policy(json!([{"rulePriority": 1, "selection": {"tagStatus": "tagged",
            "tagPatternList": ["*prod*", "v*.*"], "countType": "sinceImagePushed", "countUnit": "days",
            "countNumber": 1}, "action": {"type": "expire"}}]));
        assert_eq!(
            expired(&both, &[&["v1.0", "a-prod"], &["v1.0", "prod"], &["v1.0"], &["prod-v1.0"]]),
            [(1, 1)]
        );
        for (pattern, text, matches) in [
            ("a*b*c", "axxbxxc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*", "", true),
            ("*ab*ab*", "xabab", true),
            ("*ab*ab", "xab", false),
        ] {
            assert_eq!(wildcard_match(pattern, text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn a_manifest_lists_images_are_kept() {
        let any = policy(json!([{"rulePriority": 1, "selection": {"tagStatus": "untagged",
            "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 1}, "action": {"type": "expire"}}]));
        let none = BTreeSet::new();
        let child = Candidate { tags: &none, pushed_at: 0, referenced: true };
        assert!(any.evaluate(&[child], 100 * DAY).is_empty());
    }

    #[test]
    fn documents_are_validated() {
        let selection = json!({"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 1});
        let rule = |change: &dyn Fn(&mut Value)| {
            let mut rule = json!({"rulePriority": 1, "selection": selection, "action": {"type": "expire"}});
            change(&mut rule);
            json!({"rules": [rule]}).to_string()
        };
        assert!(Policy::parse(&rule(&|_| ())).is_ok());
        for (text, complaint) in [
            ("nonsense".to_owned(), "Could not map"),
            ("[]".to_owned(), "Could not map"),
            ("{}".to_owned(), r#"missing required properties (["rules"])"#),
            (json!({"rules": []}).to_string(), "too short"),
            (
                rule(&|r| r["action"]["type"] = json!("transition")),
                r#"not found in enum (possible values: ["expire"])"#,
            ),
            (rule(&|r| r["x"] = json!(1)), r#"not allowed by the schema: (["x"])"#),
            (rule(&|r| r["rulePriority"] = json!(0)), "minimum: 1, found: 0"),
            (rule(&|r| r["rulePriority"] = json!("1")), "instance type (string)"),
            (rule(&|r| r["selection"]["countNumber"] = json!(-3)), "found: -3"),
            (rule(&|r| r["selection"]["countUnit"] = json!("days")), "matched 0 out of 2"),
            (rule(&|r| r["selection"]["countType"] = json!("sinceImagePushed")), "matched 0 out of 2"),
            (rule(&|r| r["selection"]["tagStatus"] = json!("tagged")), "tagPrefixList or tagPatternList"),
            (rule(&|r| r["selection"]["tagPrefixList"] = json!(["a"])), "only be specified when"),
            (
                json!({"rules": [count_rule(1, "a", 1), count_rule(1, "b", 1)]}).to_string(),
                "used more than once",
            ),
            (
                json!({"rules": [count_rule(1, "a", 1), count_rule(2, "a", 1)]}).to_string(),
                "more than one rule",
            ),
        ] {
            let error = Policy::parse(&text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
