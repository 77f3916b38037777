//! The client's side of the OCI distribution spec: manifests, blobs, and the authentication around them.
//!
//! On reqwest itself rather than on `oci-client`: that crate follows redirects and token realms wherever they lead, gives
//! no way to resume a blob, and reads manifests without a bound. Everything a registry answers is hostile here: see
//! [`net`] for where it may send us, [`auth`] for who gets to see credentials.

mod auth;
mod client;
mod net;

pub(crate) use auth::TokenKey;
pub(crate) use client::{Registry, Remote, RequestError};

use model::Secret;

/// Who pulls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: Secret,
    },
}

/// Where a reference's host really lives. Trusted: it comes from the host's own configuration, not from a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryEndpoint {
    /// Scheme, host and port, such as `http://127.0.0.1:4566`; plain HTTP is taken as it is.
    pub base_url: String,
    /// Put before the repository's path, with a `/` between; empty for none.
    pub repository_prefix: String,
}
