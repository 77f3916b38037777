//! ListClusters.

use aws_api::Error;
use aws_api::ecs::{ListClustersRequest, ListClustersResponse};
use model::Arn;
use model::cluster::{Cluster, ClusterStatus};

use super::page::Page;
use super::{Caller, Ecs};

pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: ListClustersRequest,
) -> Result<ListClustersResponse, Error> {
    let page = Page::parse(
        caller.scope().clusters(),
        &["ListClusters"],
        input.next_token.as_deref(),
        input.max_results,
        1..=100,
    )?;
    let (arns, next_token) = page
        .fill::<Cluster>(&ecs.store, false, |_, cluster| {
            let active = cluster.status == ClusterStatus::Active;
            active.then(|| Arn::cluster(&caller.region, &caller.account, &cluster.name).to_string())
        })
        .await?;
    Ok(ListClustersResponse { cluster_arns: Some(arns), next_token })
}
