//! DescribeClusters.

use aws_api::Error;
use aws_api::ecs::{DescribeClustersRequest, DescribeClustersResponse, Failure};
use model::Arn;
use model::cluster::Cluster;

use super::cluster_view::{self, Include};
use super::errors::invalid;
use super::{Caller, Ecs, identifier, records};

pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: DescribeClustersRequest,
) -> Result<DescribeClustersResponse, Error> {
    let mut names = input.clusters.unwrap_or_default();
    if names.len() > 100 {
        return Err(invalid("Clusters cannot have more than 100 elements."));
    }
    if names.is_empty() {
        names.push("default".to_owned());
    }
    let include = Include::parse(input.include.as_deref().unwrap_or_default());
    let scope = caller.scope();
    let (mut clusters, mut failures) = (Vec::new(), Vec::new());
    let mut seen = Vec::new();
    for name in &names {
        let name = identifier::cluster(caller, Some(name))?;
        if seen.contains(&name) {
            continue;
        }
        match records::load::<Cluster>(&ecs.store, &scope.cluster(&name)).await? {
            Some(cluster) => {
                let counts = cluster_view::count(ecs, &scope, &name).await?;
                clusters.push(cluster_view::view(caller, &cluster.value, counts, include)?);
            }
            None => failures.push(Failure {
                arn: Some(Arn::cluster(&caller.region, &caller.account, &name).to_string()),
                reason: Some("MISSING".to_owned()),
                detail: None,
            }),
        }
        seen.push(name);
    }
    Ok(DescribeClustersResponse { clusters: Some(clusters), failures: Some(failures) })
}
