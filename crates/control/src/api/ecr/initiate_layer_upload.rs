//! InitiateLayerUpload: begins the upload of a layer in parts.

use aws_api::Error;
use aws_api::ecr::{InitiateLayerUploadRequest, InitiateLayerUploadResponse};

use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// What ECR tells clients to send at once.
const PART_BYTES: i64 = 10 << 20;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: InitiateLayerUploadRequest,
) -> Result<InitiateLayerUploadResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let fail = |error| target.error(error);
    // Unlike a push, the API does not make the repository.
    registry.repository(&target.namespace, &target.name).await.map_err(fail)?;
    let session = registry.begin_upload(&target.namespace, &target.name).await.map_err(fail)?;
    Ok(InitiateLayerUploadResponse { upload_id: Some(session.id().to_string()), part_size: Some(PART_BYTES) })
}
