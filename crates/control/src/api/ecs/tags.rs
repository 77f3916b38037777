//! Tags: checks and forms.
//!
//! Source: "Tag restrictions" in "Tagging your Amazon ECS resources", ECS developer guide.

use aws_api::Error;
use aws_api::ecs::Tag;
use model::cluster::Tags;

use super::errors::invalid;

const MAX_TAGS: usize = 50;
const MAX_KEY: usize = 128;
const MAX_VALUE: usize = 256;

/// The request's tags by key.
///
/// # Errors
/// InvalidParameterException for more than 50 tags, a key twice, a key or value that is too long or
/// has other characters than allowed, and the prefix `aws:`, which is AWS's own.
pub(super) fn checked(tags: Option<&[Tag]>) -> Result<Tags, Error> {
    let mut checked = Tags::new();
    for tag in tags.unwrap_or_default() {
        let key = tag.key.as_deref().unwrap_or_default();
        let value = tag.value.as_deref().unwrap_or_default();
        check_key(key)?;
        if value.chars().count() > MAX_VALUE || !value.chars().all(allowed) {
            return Err(invalid(format!(
                "The value of the tag '{key}' is invalid. It can have up to {MAX_VALUE} letters, numbers, spaces \
                 and _ . : / = + - @."
            )));
        }
        if checked.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(invalid(format!("Duplicate tag keys are not allowed. Duplicate key: {key}")));
        }
    }
    check_count(&checked)?;
    Ok(checked)
}

fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.chars().count() > MAX_KEY || !key.chars().all(allowed) {
        return Err(invalid(format!(
            "The tag key '{key}' is invalid. It must have 1 to {MAX_KEY} letters, numbers, spaces and _ . : / = + - @."
        )));
    }
    if key.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("aws:")) {
        return Err(invalid(format!("Tag keys can't start with the reserved prefix 'aws:'. Key: {key}")));
    }
    Ok(())
}

fn check_count(tags: &Tags) -> Result<(), Error> {
    // Tags of AWS's own, such as aws:ecs:clusterName, do not count.
    let own = tags.keys().filter(|key| !key.starts_with("aws:")).count();
    if own > MAX_TAGS {
        return Err(invalid(format!("The number of tags exceeds the limit of {MAX_TAGS} per resource.")));
    }
    Ok(())
}

fn allowed(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c)
}

/// Adds `more` to a resource's tags; keys that are there get the new value.
pub(super) fn add(tags: &mut Tags, more: &Tags) -> Result<(), Error> {
    let mut merged = tags.clone();
    merged.extend(more.clone());
    check_count(&merged)?;
    *tags = merged;
    Ok(())
}

pub(super) fn remove(tags: &mut Tags, keys: &[String]) -> Result<(), Error> {
    for key in keys {
        check_key(key)?;
    }
    tags.retain(|key, _| !keys.contains(key));
    Ok(())
}

pub(super) fn to_wire(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag { key: Some(key.clone()), value: Some(value.clone()) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(key: &str, value: &str) -> Tag {
        Tag { key: Some(key.to_owned()), value: Some(value.to_owned()) }
    }

    #[test]
    fn tags_are_bounded() {
        assert_eq!(checked(None).unwrap(), Tags::new());
        assert!(checked(Some(&[tag("team/a b", "Zürich = 1+1 @ x.y:z_-")])).is_ok());
        for (tags, want) in [
            (vec![tag("", "v")], "is invalid"),
            (vec![tag(&"k".repeat(129), "v")], "is invalid"),
            (vec![tag("k", &"v".repeat(257))], "is invalid"),
            (vec![tag("k", "a\nb")], "is invalid"),
            (vec![tag("k", "1"), tag("k", "2")], "Duplicate"),
            (vec![tag("aws:k", "v")], "reserved prefix"),
            (vec![tag("AWS:k", "v")], "reserved prefix"),
            ((0..51).map(|i| tag(&format!("k{i}"), "v")).collect(), "limit of 50"),
        ] {
            let error = checked(Some(&tags)).unwrap_err();
            assert_eq!(error.code, "InvalidParameterException");
            assert!(error.message.contains(want), "{}", error.message);
        }
    }

    #[test]
    fn a_resource_keeps_its_tags_when_too_many_are_added() {
        let mut tags: Tags = (0..50).map(|i| (format!("k{i}"), String::new())).collect();
        tags.insert("aws:ecs:clusterName".to_owned(), "web".to_owned());
        assert!(add(&mut tags, &Tags::from([("k0".to_owned(), "new".to_owned())])).is_ok());
        assert_eq!(tags["k0"], "new");
        assert!(add(&mut tags, &Tags::from([("one".to_owned(), "more".to_owned())])).is_err());
        assert_eq!(tags.len(), 51);
        assert!(remove(&mut tags, &["aws:ecs:clusterName".to_owned()]).is_err());
        remove(&mut tags, &["k0".to_owned(), "absent".to_owned()]).unwrap();
        assert_eq!(tags.len(), 50);
    }
}
