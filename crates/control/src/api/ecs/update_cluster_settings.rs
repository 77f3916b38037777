//! UpdateClusterSettings.

use aws_api::Error;
use aws_api::ecs::{UpdateClusterRequest, UpdateClusterSettingsRequest, UpdateClusterSettingsResponse};

use super::{Caller, Ecs, update_cluster};

/// UpdateCluster of earlier days, with nothing but settings.
pub async fn handle(
    ecs: &Ecs,
    caller: &Caller,
    input: UpdateClusterSettingsRequest,
) -> Result<UpdateClusterSettingsResponse, Error> {
    let input = UpdateClusterRequest {
        cluster: input.cluster,
        settings: Some(input.settings),
        configuration: None,
        service_connect_defaults: None,
    };
    let updated = update_cluster::handle(ecs, caller, input).await?;
    Ok(UpdateClusterSettingsResponse { cluster: updated.cluster })
}
