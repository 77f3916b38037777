//! UploadLayerPart: the next part of a layer.

use aws_api::Error;
use aws_api::ecr::{UploadLayerPartRequest, UploadLayerPartResponse};
use futures_util::stream;

use super::error::invalid_parameter;
use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;
use crate::registry::name::NameError;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: UploadLayerPartRequest,
) -> Result<UploadLayerPartResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let id = input.upload_id.parse().map_err(|error: NameError| invalid_parameter("uploadId", error))?;
    let first = u64::try_from(input.part_first_byte).unwrap_or_default();
    let part = input.layer_part_blob.0;
    let length =
        input.part_last_byte.checked_sub(input.part_first_byte).and_then(|length| length.checked_add(1));
    if length != i64::try_from(part.len()).ok() || part.is_empty() {
        return Err(invalid_parameter(
            "layerPartBlob",
            "the part has the bytes from partFirstByte to partLastByte",
        ));
    }
    let fail = |error| target.error(error);
    let (namespace, name) = (&target.namespace, &target.name);
    registry.repository(namespace, name).await.map_err(fail)?;
    let session = registry.upload(namespace, name, id).map_err(fail)?;
    let body = stream::iter([Ok::<_, std::convert::Infallible>(part)]);
    let appended = registry.append_upload(&session, Some(first), None, body).await;
    let received = appended.map_err(|error| target.error(error).with_field("uploadId", id.to_string()))?;
    Ok(UploadLayerPartResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        upload_id: Some(id.to_string()),
        last_byte_received: i64::try_from(received).ok().map(|received| received - 1),
    })
}
