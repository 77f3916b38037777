//! GetDownloadUrlForLayer: a URL at which the layer can be got for an hour without logging in.

use aws_api::Error;
use aws_api::ecr::{GetDownloadUrlForLayerRequest, GetDownloadUrlForLayerResponse};

use super::error::invalid_parameter;
use super::target::Target;
use crate::api::Caller;
use crate::registry::name::NameError;
use crate::registry::{Digest, Registry};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: GetDownloadUrlForLayerRequest,
) -> Result<GetDownloadUrlForLayerResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let digest: Digest =
        input.layer_digest.parse().map_err(|error: NameError| invalid_parameter("layerDigest", error))?;
    let (namespace, name) = (&target.namespace, &target.name);
    let fail = |error| target.error(error);
    registry.repository(namespace, name).await.map_err(fail)?;
    registry.blob(namespace, name, &digest).await.map_err(fail)?;
    Ok(GetDownloadUrlForLayerResponse {
        download_url: Some(registry.download_url(namespace, name, &digest)),
        layer_digest: Some(digest.to_string()),
    })
}
