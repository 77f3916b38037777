//! DescribeRepositories: the repositories of those names, or all in pages.

use aws_api::Error;
use aws_api::ecr::{DescribeRepositoriesRequest, DescribeRepositoriesResponse};
use std::collections::BTreeSet;

use super::error::server_error;
use super::page;
use super::repository::view;
use super::target::{Target, namespace};
use crate::api::Caller;
use crate::registry::{Registry, RepositoryName};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: DescribeRepositoriesRequest,
) -> Result<DescribeRepositoriesResponse, Error> {
    if let Some(names) = input.repository_names {
        let mut repositories = Vec::with_capacity(names.len());
        // Each once, however often it is named.
        for name in names.into_iter().collect::<BTreeSet<_>>() {
            let target = Target::new(caller, input.registry_id.as_deref(), &name)?;
            let record = registry.repository(&target.namespace, &target.name).await;
            let record = record.map_err(|error| target.error(error))?;
            repositories.push(view(registry, &target.namespace, &record));
        }
        return Ok(DescribeRepositoriesResponse { repositories: Some(repositories), next_token: None });
    }
    let namespace = namespace(caller);
    if input.registry_id.as_deref().is_some_and(|id| id != caller.account.as_str()) {
        return Ok(DescribeRepositoriesResponse { repositories: Some(Vec::new()), next_token: None });
    }
    let after: Option<RepositoryName> = page::after(input.next_token.as_deref(), |last| last.parse().ok())?;
    let found = registry.repositories(&namespace, after.as_ref(), page::size(input.max_results)).await;
    let (records, more) = found.map_err(server_error)?;
    let next_token = records.last().filter(|_| more).map(|last| page::token(last.name.as_str()));
    let repositories = records.iter().map(|record| view(registry, &namespace, record)).collect();
    Ok(DescribeRepositoriesResponse { repositories: Some(repositories), next_token })
}
