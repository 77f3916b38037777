//! What a service's model says of it as a whole.

use crate::validate::Rules;
use crate::{OperationInfo, Protocol, Service};

/// A service's names and tables.
#[derive(Debug)]
pub struct ServiceInfo {
    /// Our module's and botocore's name, such as `ecr`.
    pub name: &'static str,
    /// The first label of its host name, such as `api.ecr`.
    pub endpoint_prefix: &'static str,
    /// Its name in a signature's credential scope.
    pub signing_name: &'static str,
    /// The part of `X-Amz-Target` before the dot, in the JSON protocols.
    pub target_prefix: Option<&'static str>,
    /// The API version, a date.
    pub api_version: &'static str,
    /// The namespace of its XML answers, in the Query protocol.
    pub xml_namespace: Option<&'static str>,
    /// The protocol it speaks.
    pub protocol: Protocol,
    /// The largest request body that is read, in bytes.
    pub max_body: usize,
    /// All operations, in name order.
    pub operations: &'static [OperationInfo],
    /// How it reports a request that breaks its model.
    pub validation: Rules,
}

impl Service {
    /// The largest body that any service reads, in bytes: a server's limit before routing.
    pub const MAX_BODY: usize = 32 << 20;

    /// Every operation of the service, served or not, in name order.
    pub fn operations(self) -> &'static [OperationInfo] {
        self.info().operations
    }

    /// The operation of that name, served or not.
    pub fn operation(self, name: &str) -> Option<&'static OperationInfo> {
        let operations = self.operations();
        let index = operations.binary_search_by(|operation| operation.name.cmp(name)).ok()?;
        operations.get(index)
    }
}
