//! PutImageScanningConfiguration: a setting that is kept and shown; nothing is scanned.

use aws_api::Error;
use aws_api::ecr::{
    ImageScanningConfiguration, PutImageScanningConfigurationRequest, PutImageScanningConfigurationResponse,
};

use super::target::Target;
use crate::api::Caller;
use crate::registry::Registry;

/// # Errors
/// What the client did wrong, in the service's words.
pub async fn handle(
    registry: &Registry,
    caller: &Caller,
    input: PutImageScanningConfigurationRequest,
) -> Result<PutImageScanningConfigurationResponse, Error> {
    let target = Target::new(caller, input.registry_id.as_deref(), &input.repository_name)?;
    let scan_on_push = input.image_scanning_configuration.scan_on_push.unwrap_or(false);
    let updated = registry
        .update_repository(&target.namespace, &target.name, |record| {
            record.scan_on_push = scan_on_push;
            Ok(())
        })
        .await;
    updated.map_err(|error| target.error(error))?;
    Ok(PutImageScanningConfigurationResponse {
        registry_id: Some(target.registry_id()),
        repository_name: Some(target.repository_name()),
        image_scanning_configuration: Some(ImageScanningConfiguration { scan_on_push: Some(scan_on_push) }),
    })
}
