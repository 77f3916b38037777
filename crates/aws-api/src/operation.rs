//! What an operation is.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Schema, Service};

/// A served operation, implemented by the unit structs in each service's `operation` module.
pub trait Operation: Copy + Debug + Send + Sync + 'static {
    /// The service it belongs to.
    const SERVICE: Service;
    /// Its name on the wire, such as `RunTask`.
    const NAME: &'static str;
    /// What the model demands of the input.
    const INPUT_SCHEMA: &'static Schema;
    /// The request's body.
    type Input: Serialize + DeserializeOwned + Clone + Debug + Default + PartialEq + Send + Sync;
    /// The response's body.
    type Output: Serialize + DeserializeOwned + Clone + Debug + Default + PartialEq + Send + Sync;
}

/// One row of a service's table of all operations.
#[derive(Debug)]
pub struct OperationInfo {
    /// The name on the wire.
    pub name: &'static str,
    /// The input's schema, only for a served operation.
    pub input: Option<&'static Schema>,
}

impl OperationInfo {
    /// Whether Coracle serves the operation. Others exist at AWS only.
    pub const fn served(&self) -> bool {
        self.input.is_some()
    }
}
