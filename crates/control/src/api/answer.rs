//! From a routed request to its handler and back.

use axum::response::Response;
use bytes::Bytes;

/// The answer to an operation.
pub enum Answer {
    /// An encoded body.
    Whole(http::Response<Bytes>),
    /// A body that goes on, such as an event stream.
    Stream(Response),
}

/// Serves a routed request: finds the operation by name, decodes and validates its input, has
/// `<module>::handle(deps, caller, input)` handle it, and encodes the output.
///
/// ```ignore
/// pub async fn dispatch(ecs: &Ecs, caller: &Caller, routed: &Routed, body: &[u8]) -> Result<Answer, aws_api::Error> {
///     serve!(aws_api::ecs::operation, ecs, caller, routed, body, {
///         RunTask => run_task,
///         StopTask => stop_task,
///     })
/// }
/// ```
macro_rules! serve {
    ($operations:path, $deps:expr, $caller:expr, $routed:expr, $body:expr,
     { $($operation:ident => $module:ident),* $(,)? }) => {{
        use $operations as operations;
        match $routed.operation.name {
            $(<operations::$operation as aws_api::Operation>::NAME => {
                let input = $routed.decode::<operations::$operation>($body)?;
                let output = $module::handle($deps, $caller, input).await?;
                Ok($crate::api::Answer::Whole($routed.encode_ok(&output, &$caller.request_id)))
            })*
            name => Err(aws_api::error::common::unsupported_operation($routed.service, name)),
        }
    }};
}
pub(crate) use serve;
