//! ListClusters.

use aws_api::Error;
use aws_api::ecs::{ListClustersRequest, ListClustersResponse};
use model::Arn;
use model::cluster::{Cluster, ClusterStatus};
use store::Range;

use super::errors::internal;
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
    let mut arns = Vec::new();
    let mut after = page.after.clone();
    // Inactive clusters are skipped, so a page may need several reads.
    loop {
        let mut range = Range::prefix(page.prefix()).limit(page.limit);
        if let Some(after) = &after {
            range = range.after(after);
        }
        let found = ecs.store.range_json::<Cluster>(range).await.map_err(internal)?;
        let count = found.entries.len();
        for (at, (key, cluster)) in found.entries.into_iter().enumerate() {
            if cluster.value.status == ClusterStatus::Active {
                arns.push(Arn::cluster(&caller.region, &caller.account, &cluster.value.name).to_string());
            }
            let more = found.more || at + 1 < count;
            if arns.len() == page.limit {
                let next_token = more.then(|| page.token(&key));
                return Ok(ListClustersResponse { cluster_arns: Some(arns), next_token });
            }
            after = Some(key);
        }
        if !found.more {
            return Ok(ListClustersResponse { cluster_arns: Some(arns), next_token: None });
        }
    }
}
