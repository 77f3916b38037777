//! CompleteLayerUpload: the layer is all there.

use aws_api::Error;
use aws_api::ecr::{CompleteLayerUploadRequest, CompleteLayerUploadResponse, error};

use super::error::invalid_parameter;
use super::target::Target;
use crate::api::Caller;
use crate::registry::name::NameError;
use crate::registry::{Digest, Registry, RegistryError};

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: CompleteLayerUploadRequest,
) -> Result<CompleteLayerUploadResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let id = input.upload_id.parse().map_err(|error: NameError| invalid_parameter("uploadId", error))?;
    let digest = input.layer_digests.first().map(String::as_str).unwrap_or_default();
    let digest: Digest =
        digest.parse().map_err(|error: NameError| invalid_parameter("layerDigests", error))?;
    let (namespace, name) = (&target.namespace, &target.name);
    let fail = |error| target.error(error);
    registry.repository(namespace, name).await.map_err(fail)?;
    let session = registry.upload(namespace, name, id).map_err(fail)?;
    if session.offset().await.map_err(fail)? == 0 {
        return Err(error::empty_upload_exception(format!("The upload with ID '{id}' has no layer parts")));
    }
    match registry.blob(namespace, name, &digest).await {
        Ok(_) => {
            registry.cancel_upload(&session).await.map_err(fail)?;
            return Err(error::layer_already_exists_exception(format!(
                "Layer with digest '{digest}' already exists in the repository with name '{name}' in the \
                 registry with id '{}'",
                namespace.account
            )));
        }
        Err(RegistryError::BlobUnknown(_)) => {}
        Err(error) => return Err(fail(error)),
    }
    registry.finish_upload(namespace, name, &session, digest).await.map_err(fail)?;
    Ok(CompleteLayerUploadResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        upload_id: Some(id.to_string()),
        layer_digest: Some(digest.to_string()),
    })
}
