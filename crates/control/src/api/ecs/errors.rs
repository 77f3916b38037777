//! ECS's errors, in its own words.

use aws_api::Error;
use aws_api::ecs::error as shape;

pub(super) fn client(message: impl Into<String>) -> Error {
    shape::client_exception(message)
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    shape::invalid_parameter_exception(message)
}

pub(super) fn cluster_not_found() -> Error {
    shape::cluster_not_found_exception("Cluster not found.")
}

pub(super) fn cluster_inactive() -> Error {
    shape::cluster_not_found_exception("The referenced cluster was inactive.")
}

pub(super) fn task_not_found() -> Error {
    invalid("The referenced task was not found.")
}

/// DescribeTaskDefinition's and DeregisterTaskDefinition's word for "no such revision".
pub(super) fn definition_not_found() -> Error {
    client("Unable to describe task definition.")
}

/// A fault of ours: logged here, where it is handled, and told to the caller without details, except
/// for a full disk, which only the operator can end.
pub(super) fn internal(source: store::Error) -> Error {
    let full = matches!(source, store::Error::NoSpace { .. });
    report(&source);
    shape::server_exception(if full {
        "Coracle has no space left for its state; free some on the file system of its state directory."
    } else {
        "Service Unavailable. Please try again later."
    })
}

/// A record that does not say what this program wrote there.
pub(super) fn corrupt(what: &'static str, source: &serde_json::Error) -> Error {
    tracing::error!(what, category = ?source.classify(), "a stored record cannot be read");
    shape::server_exception("Service Unavailable. Please try again later.")
}

/// The caller and others changed the same record again and again.
pub(super) fn contention() -> Error {
    shape::server_exception("Too many concurrent changes of this resource. Please try again.")
}

fn report(error: &dyn std::error::Error) {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    tracing::error!(error = text, "the state store failed");
}
