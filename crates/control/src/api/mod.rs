//! The AWS services: `<service>/<operation>.rs`, one file per operation. Wire types stop here.

pub mod answer;
pub mod ecr;
pub mod ecs;
pub mod logs;
pub mod sts;

pub use answer::Answer;

use model::{AccountId, Region};

use crate::keys::Scope;

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
