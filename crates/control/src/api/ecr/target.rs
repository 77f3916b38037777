//! The repository that a request is about.

use aws_api::Error;
use aws_api::ecr::error as ecr;
use model::arn::Arn;

use super::error::invalid_parameter;
use crate::api::Caller;
use crate::registry::name::NameError;
use crate::registry::{Namespace, RepositoryName};

/// The caller's registry: the account and region that it calls in.
pub fn namespace(caller: &Caller) -> Namespace {
    Namespace { account: caller.account.clone(), region: caller.region.clone() }
}

/// A repository that a request names, and the registry that it is in.
pub struct Target {
    pub namespace: Namespace,
    pub name: RepositoryName,
}

impl Target {
    /// The repository of that name; `registry_id` can only be the caller's own account.
    pub fn new(caller: &Caller, registry_id: Option<&str>, name: &str) -> Result<Self, Error> {
        if let Some(id) = registry_id
            && id != caller.account.as_str()
        {
            return Err(repository_not_found(name, id));
        }
        let name = name.parse().map_err(|error: NameError| invalid_parameter("repositoryName", error))?;
        Ok(Self { namespace: namespace(caller), name })
    }

    /// The repository of that ARN.
    pub fn of_arn(caller: &Caller, arn: &str) -> Result<Self, Error> {
        let invalid = || invalid_parameter("resourceArn", "Invalid ARN");
        let parsed = Arn::parse(arn).filter(|arn| arn.service == "ecr").ok_or_else(invalid)?;
        let name = parsed.resource.strip_prefix("repository/").ok_or_else(invalid)?;
        let name: RepositoryName = name.parse().map_err(|_| invalid())?;
        if parsed.account != caller.account || parsed.region != caller.region {
            return Err(repository_not_found(name.as_str(), parsed.account.as_str()));
        }
        Ok(Self { namespace: namespace(caller), name })
    }

    /// The registry's id: its account.
    pub fn registry_id(&self) -> String {
        self.namespace.account.to_string()
    }

    pub fn repository_name(&self) -> String {
        self.name.to_string()
    }
}

/// That there is no such repository in that registry.
pub fn repository_not_found(name: &str, registry_id: &str) -> Error {
    ecr::repository_not_found_exception(format!(
        "The repository with name '{name}' does not exist in the registry with id '{registry_id}'"
    ))
}
