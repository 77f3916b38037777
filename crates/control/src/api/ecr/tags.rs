//! Resource tags.

use aws_api::Error;
use aws_api::ecr::{Tag, error};

/// The most tags of a resource (AWS General Reference, "Tag naming limits and requirements").
pub const MAX_TAGS: usize = 50;

/// Checks tags that a client gives; keys once each, none of AWS's own.
pub fn check(tags: &[Tag]) -> Result<(), Error> {
    if tags.len() > MAX_TAGS {
        return Err(error::too_many_tags_exception(format!("A repository can have at most {MAX_TAGS} tags")));
    }
    let invalid = |message: String| Err(error::invalid_tag_parameter_exception(message));
    for (index, tag) in tags.iter().enumerate() {
        let length = tag.key.chars().count();
        if !(1..=128).contains(&length) {
            return invalid("A tag key has 1 to 128 characters".to_owned());
        }
        if tag.key.to_ascii_lowercase().starts_with("aws:") {
            return invalid(format!("The tag key '{}' is reserved: it begins with 'aws:'", tag.key));
        }
        if tag.value.chars().count() > 256 {
            return invalid(format!("The value of tag '{}' has more than 256 characters", tag.key));
        }
        if !tag.key.chars().chain(tag.value.chars()).all(is_allowed) {
            return invalid(format!("The tag '{}' has characters that tags cannot have", tag.key));
        }
        if tags[..index].iter().any(|other| other.key == tag.key) {
            return invalid(format!("The tag key '{}' is given more than once", tag.key));
        }
    }
    Ok(())
}

fn is_allowed(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c)
}
