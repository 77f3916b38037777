//! Names and ARNs as callers write them.

use aws_api::Error;
use model::{Arn, ClusterName, TaskId};

use super::Caller;
use super::errors::invalid;

/// The cluster that a request names by name or ARN; without one it is `default`.
pub(super) fn cluster(caller: &Caller, text: Option<&str>) -> Result<ClusterName, Error> {
    let text = text.filter(|t| !t.is_empty()).unwrap_or("default");
    let name = if text.starts_with("arn:") {
        let arn = own_arn(caller, text)?;
        let name = arn.resource.strip_prefix("cluster/").ok_or_else(separators)?;
        name.to_owned()
    } else {
        text.to_owned()
    };
    if name.contains(['/', ':']) {
        return Err(separators());
    }
    ClusterName::parse(name)
        .map_err(|_| invalid("Invalid identifier: Cluster name contains invalid characters."))
}

/// The id in a task's id or ARN. `None` when it has an id's length and cannot be one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaskRef {
    pub text: String,
    pub id: Option<TaskId>,
}

pub(super) fn task(caller: &Caller, cluster: &ClusterName, text: &str) -> Result<TaskRef, Error> {
    let id = if text.starts_with("arn:") {
        let arn = own_arn(caller, text)?;
        let rest = arn.resource.strip_prefix("task/").ok_or_else(separators)?.to_owned();
        match rest.split_once('/') {
            // The short ARN format of before 2018 has no cluster.
            None => rest,
            Some((of, id)) if of == cluster.as_str() => id.to_owned(),
            Some((of, _)) => {
                return Err(invalid(format!(
                    "Invalid identifier: Identifier is for cluster {of}. Your cluster is {cluster}"
                )));
            }
        }
    } else {
        text.to_owned()
    };
    if id.contains(['/', ':']) {
        return Err(separators());
    }
    if !matches!(id.len(), 32 | 36) {
        return Err(invalid("taskId length should be one of [32,36]"));
    }
    Ok(TaskRef { id: TaskId::parse(id.clone()).ok(), text: id })
}

/// A task definition as requests name it: `family`, `family:revision` or an ARN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DefinitionRef {
    pub family: String,
    pub revision: Option<u32>,
}

/// `None` when no task definition can have that name.
pub(super) fn definition(caller: &Caller, text: &str) -> Result<Option<DefinitionRef>, Error> {
    let name = if text.starts_with("arn:") {
        let arn = own_arn(caller, text)?;
        match arn.resource.strip_prefix("task-definition/") {
            Some(name) => name.to_owned(),
            None => return Err(separators()),
        }
    } else {
        text.to_owned()
    };
    let (family, revision) = match name.split_once(':') {
        None => (name.as_str(), None),
        Some((family, number)) => (family, Some(revision(number)?)),
    };
    Ok(is_name(family).then(|| DefinitionRef { family: family.to_owned(), revision }))
}

fn revision(number: &str) -> Result<u32, Error> {
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let parsed = number.parse::<u32>().ok().filter(|_| digits);
    parsed.ok_or_else(|| invalid(format!("Invalid revision number. Number: {number}")))
}

/// Whether `name` may name a family, a container or a volume: up to 255 letters, digits, hyphens and
/// underscores.
pub(super) fn is_name(name: &str) -> bool {
    ClusterName::parse(name).is_ok()
}

/// An ARN of ECS in the caller's account and region.
pub(super) fn own_arn(caller: &Caller, text: &str) -> Result<Arn, Error> {
    let arn = Arn::parse(text).filter(|arn| arn.service == "ecs").ok_or_else(separators)?;
    if arn.account != caller.account {
        return Err(invalid("AccountIDs mismatch"));
    }
    if arn.region != caller.region {
        return Err(invalid(format!(
            "Invalid identifier: Identifier is for {}. Your region is {}",
            arn.region, caller.region
        )));
    }
    Ok(arn)
}

fn separators() -> Error {
    invalid("Invalid identifier: Unexpected number of separators")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ecs::tests::caller;

    fn message(error: &Error) -> String {
        format!("{}: {}", error.code, error.message)
    }

    #[test]
    fn clusters_are_named_by_name_or_own_arn() {
        let caller = caller();
        let arn = "arn:aws:ecs:eu-central-1:123456789012:cluster/web";
        for (text, name) in
            [(None, "default"), (Some(""), "default"), (Some("web"), "web"), (Some(arn), "web")]
        {
            assert_eq!(cluster(&caller, text).unwrap().as_str(), name);
        }
        for (text, want) in [
            ("arn:aws:ecs:eu-central-1:999999999999:cluster/web", "AccountIDs mismatch"),
            ("arn:aws:ecs:us-east-1:123456789012:cluster/web", "Your region is eu-central-1"),
            ("arn:aws:ecs:eu-central-1:123456789012:task/web", "Unexpected number of separators"),
            ("arn:aws:s3:eu-central-1:123456789012:cluster/web", "Unexpected number of separators"),
            ("a/../b", "Unexpected number of separators"),
            ("with space", "invalid characters"),
        ] {
            let error = cluster(&caller, Some(text)).unwrap_err();
            assert_eq!(error.code, "InvalidParameterException", "{text}");
            assert!(error.message.contains(want), "{text}: {}", message(&error));
        }
    }

    #[test]
    fn tasks_are_named_by_id_or_arn_of_the_same_cluster() {
        let caller = caller();
        let web = ClusterName::parse("web").unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        let arn = |cluster: &str| format!("arn:aws:ecs:eu-central-1:123456789012:task/{cluster}{id}");
        for text in [id.to_owned(), arn("web/"), arn("")] {
            assert_eq!(task(&caller, &web, &text).unwrap().id.unwrap().as_str(), id);
        }
        let other = task(&caller, &web, &arn("prod/")).unwrap_err();
        assert_eq!(other.message, "Invalid identifier: Identifier is for cluster prod. Your cluster is web");
        assert_eq!(
            task(&caller, &web, "None").unwrap_err().message,
            "taskId length should be one of [32,36]"
        );
        // Well-formed to AWS, and never one of ours: reported as missing, not as an error.
        assert_eq!(task(&caller, &web, &"Z".repeat(32)).unwrap().id, None);
    }

    #[test]
    fn definitions_are_named_by_family_revision_or_arn() {
        let caller = caller();
        let web = |revision| Some(DefinitionRef { family: "web".to_owned(), revision });
        for (text, want) in [
            ("web", web(None)),
            ("web:3", web(Some(3))),
            ("arn:aws:ecs:eu-central-1:123456789012:task-definition/web:3", web(Some(3))),
            ("we b", None),
            ("../web", None),
        ] {
            assert_eq!(definition(&caller, text).unwrap(), want, "{text}");
        }
        for text in ["web:", "web:x", "web:-1", "web:+1", "web:99999999999", "web:1:2"] {
            let error = definition(&caller, text).unwrap_err();
            assert!(error.message.starts_with("Invalid revision number. Number: "), "{text}");
        }
    }
}
