//! BatchCheckLayerAvailability: which layers the repository has. A pusher asks so as not to send
//! them: those that are there stay until its manifest comes.

use aws_api::Error;
use aws_api::ecr::values::{layer_availability, layer_failure_code};
use aws_api::ecr::{
    BatchCheckLayerAvailabilityRequest, BatchCheckLayerAvailabilityResponse, Layer, LayerFailure,
};

use super::target::Target;
use crate::api::Caller;
use crate::registry::{Digest, Registry, RegistryError};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: BatchCheckLayerAvailabilityRequest,
) -> Result<BatchCheckLayerAvailabilityResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let found = registry.repository(&target.namespace, &target.name).await;
    found.map_err(|error| target.error(error))?;
    let mut layers = Vec::new();
    let mut failures = Vec::new();
    for text in input.layer_digests {
        let Ok(digest) = text.parse::<Digest>() else {
            failures.push(LayerFailure {
                layer_digest: Some(text),
                failure_code: Some(layer_failure_code::INVALID_LAYER_DIGEST.to_owned()),
                failure_reason: Some(
                    "Invalid layer digest: it is 'sha256:' and 64 lower-case hexadecimal digits".to_owned(),
                ),
            });
            continue;
        };
        let mut layer = Layer { layer_digest: Some(text), ..Layer::default() };
        match registry.touch_blob(&target.namespace, &target.name, &digest).await {
            Ok(link) => {
                layer.layer_availability = Some(layer_availability::AVAILABLE.to_owned());
                layer.layer_size = Some(i64::try_from(link.bytes).unwrap_or(i64::MAX));
                layer.media_type = link.media_type;
            }
            Err(RegistryError::BlobUnknown(_)) => {
                layer.layer_availability = Some(layer_availability::UNAVAILABLE.to_owned());
            }
            Err(error) => return Err(target.error(error)),
        }
        layers.push(layer);
    }
    Ok(BatchCheckLayerAvailabilityResponse { layers: Some(layers), failures: Some(failures) })
}
