//! DescribeCapacityProviders.

use aws_api::Error;
use aws_api::ecs::{
    CapacityProvider, DescribeCapacityProvidersRequest, DescribeCapacityProvidersResponse, Failure,
};
use model::Arn;

use super::capacity_strategy::PROVIDERS;
use super::errors::invalid;
use super::page::Page;
use super::{Caller, Ecs, identifier, records};

/// Describes FARGATE and FARGATE_SPOT, or those of the two that are asked for or that a cluster has.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: DescribeCapacityProvidersRequest,
) -> Result<DescribeCapacityProvidersResponse, Error> {
    let page = Page::parse(
        String::new(),
        &["DescribeCapacityProviders", input.cluster.as_deref().unwrap_or_default()],
        input.next_token.as_deref(),
        input.max_results,
        1..=10,
    )?;
    let mut known: Vec<String> = PROVIDERS.map(str::to_owned).to_vec();
    if let Some(cluster) = input.cluster.as_deref() {
        let name = identifier::cluster(caller, Some(cluster))?;
        let associated = records::active_cluster(ecs, caller, &name).await?.value.capacity_providers;
        known.retain(|provider| associated.contains(provider));
    }
    let mut failures = Vec::new();
    if let Some(asked) = input.capacity_providers.filter(|asked| !asked.is_empty()) {
        if asked.len() > 100 {
            return Err(invalid("Capacity providers cannot have more than 100 elements."));
        }
        let mut found = Vec::new();
        for name in &asked {
            match known.iter().find(|provider| *provider == name || arn(caller, provider) == *name) {
                Some(provider) if found.contains(provider) => {}
                Some(provider) => found.push(provider.clone()),
                None => failures.push(Failure {
                    arn: Some(if name.starts_with("arn:") { name.clone() } else { arn(caller, name) }),
                    reason: Some("MISSING".to_owned()),
                    detail: None,
                }),
            }
        }
        known = found;
        known.sort();
    }
    let rest: Vec<&String> =
        known.iter().filter(|name| page.after.as_ref().is_none_or(|a| *name > a)).collect();
    let shown = &rest[..rest.len().min(page.limit)];
    let next_token = match shown.last() {
        Some(last) if shown.len() < rest.len() => Some(page.token(last)),
        _ => None,
    };
    let providers = shown.iter().map(|name| CapacityProvider {
        capacity_provider_arn: Some(arn(caller, name)),
        name: Some((*name).clone()),
        status: Some("ACTIVE".to_owned()),
        tags: Some(Vec::new()),
        r#type: Some((*name).clone()),
        ..CapacityProvider::default()
    });
    Ok(DescribeCapacityProvidersResponse {
        capacity_providers: Some(providers.collect()),
        failures: Some(failures),
        next_token,
    })
}

fn arn(caller: &Caller, name: &str) -> String {
    Arn::new("ecs", &caller.region, &caller.account, format!("capacity-provider/{name}")).to_string()
}
