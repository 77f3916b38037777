//! Checks a request against its model.

/// How a service reports a request that breaks its model, and which constraints it checks.
#[derive(Debug)]
pub struct Rules {
    /// The error code.
    pub code: &'static str,
    /// The form of the message.
    pub wording: Wording,
    /// Lengths of strings, blobs, lists and maps are checked.
    pub length: bool,
    /// Numbers' ranges are checked.
    pub range: bool,
    /// Patterns are checked.
    pub pattern: bool,
    /// Enumerations are checked.
    pub values: bool,
    /// Required members must be there.
    pub required: bool,
}

/// The form of a validation message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wording {
    /// `1 validation error detected: Value 'x' at 'member' failed to satisfy constraint: …`
    Coral,
    /// `Invalid parameter at 'member' failed to satisfy constraint: '…'`
    Ecr,
}
