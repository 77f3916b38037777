//! The AWS services: `<service>/<operation>.rs`, one file per operation. Wire types stop here.

pub mod answer;
pub mod ecr;
pub mod ecs;
pub mod logs;
pub mod sts;

pub use answer::Answer;

use aws_api::{Routed, Service};
use model::{AccountId, Region};

use crate::keys::Scope;
use crate::registry::Registry;

/// What the services' handlers work with.
#[derive(Clone)]
pub struct Services {
    pub ecs: ecs::Ecs,
    pub logs: logs::Logs,
    pub registry: Registry,
}

/// Serves one authenticated request.
///
/// # Errors
/// What the client did wrong, or what failed here, as the service says it.
pub async fn dispatch(
    services: &Services,
    caller: &Caller,
    routed: &Routed,
    body: &[u8],
) -> Result<Answer, aws_api::Error> {
    match routed.service {
        Service::Ecr => ecr::dispatch(&services.registry, caller, routed, body).await,
        Service::Ecs => ecs::dispatch(&services.ecs, caller, routed, body).await,
        Service::Logs => logs::dispatch(&services.logs, caller, routed, body).await,
        Service::Sts => sts::dispatch(caller, routed, body).await,
    }
}

/// Who calls, authenticated.
#[derive(Clone, Debug)]
pub struct Caller {
    pub account: AccountId,
    pub region: Region,
    /// Such as `arn:aws:iam::123456789012:root`.
    pub principal_arn: String,
    pub request_id: String,
}

impl Caller {
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope { account: self.account.clone(), region: self.region.clone() }
    }
}
