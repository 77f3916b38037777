//! The `application/vnd.amazon.eventstream` encoding.

/// One event of an operation's output stream.
pub trait Event: Sized {
    /// The `:event-type` header: the member's name in the stream's union.
    fn event_type(&self) -> &'static str;
    /// The JSON payload.
    fn payload(&self) -> Result<Vec<u8>, serde_json::Error>;
    /// Reads a payload; None if the type is unknown.
    fn from_payload(event_type: &str, payload: &[u8]) -> Result<Option<Self>, serde_json::Error>;
}
