//! Amazon ECS.

use std::sync::Arc;

use store::Store;
use tokio::sync::Notify;

use crate::clock::Clock;

/// What ECS handlers work with.
#[derive(Clone)]
pub struct Ecs {
    pub store: Store,
    pub clock: Clock,
    /// Wakes the reconciler after a commit.
    pub wake: Arc<Notify>,
    /// The network that exists from first start; other subnets come with the VPC API.
    pub default_subnet: model::network::Subnet,
    pub default_security_group: model::SecurityGroupId,
}
