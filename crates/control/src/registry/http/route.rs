//! The paths of the distribution API.

use percent_encoding::percent_decode_str;

use super::super::name::{Digest, NameError, Reference, RepositoryName, UploadId};
use super::error::{ApiError, Code};

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`
    Ping,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/tags/list`
    Tags(RepositoryName),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(RepositoryName, Digest),
    /// `/v2/<name>/manifests/<reference>`
    Manifest(RepositoryName, Reference),
    /// `/v2/<name>/blobs/<digest>`
    Blob(RepositoryName, Digest),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(RepositoryName),
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload(RepositoryName, UploadId),
}

impl Route {
    /// Reads a path that begins with `/v2`, still percent-encoded. A name has slashes of its own and may
    /// contain any of the words, so a path is read from its end.
    pub fn parse(path: &str) -> Result<Self, ApiError> {
        let rest = path.strip_prefix("/v2").unwrap_or(path);
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        if rest.is_empty() {
            return Ok(Self::Ping);
        }
        let segments = rest.split('/').map(decode).collect::<Result<Vec<_>, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match segments.as_slice() {
            ["_catalog"] => Ok(Self::Catalog),
            [name @ .., "tags", "list"] => Ok(Self::Tags(repository(name)?)),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Ok(Self::Uploads(repository(name)?))
            }
            [name @ .., "blobs", "uploads", id] => {
                let id =
                    id.parse().map_err(|error: NameError| ApiError::new(Code::BlobUploadUnknown, error))?;
                Ok(Self::Upload(repository(name)?, id))
            }
            [name @ .., "blobs", wanted] => Ok(Self::Blob(repository(name)?, digest(wanted)?)),
            [name @ .., "referrers", subject] => Ok(Self::Referrers(repository(name)?, digest(subject)?)),
            [name @ .., "manifests", reference] => {
                let name = repository(name)?;
                let reference = reference.parse().map_err(|error: NameError| match error {
                    NameError::Tag => ApiError::new(Code::TagInvalid, error),
                    other => ApiError::new(Code::DigestInvalid, other),
                })?;
                Ok(Self::Manifest(name, reference))
            }
            _ => Err(ApiError::new(Code::NotFound, "there is nothing at this path")),
        }
    }
}

/// Some clients encode a digest's colon. A slash that was encoded was not meant as one.
fn decode(segment: &str) -> Result<String, ApiError> {
    let invalid = || ApiError::new(Code::NameInvalid, NameError::Repository);
    let decoded = percent_decode_str(segment).decode_utf8().map_err(|_| invalid())?;
    if decoded.contains('/') { Err(invalid()) } else { Ok(decoded.into_owned()) }
}

fn repository(segments: &[&str]) -> Result<RepositoryName, ApiError> {
    segments.join("/").parse().map_err(|error: NameError| ApiError::new(Code::NameInvalid, error))
}

fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(|error: NameError| ApiError::new(Code::DigestInvalid, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = Digest::of(b"x");
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        let parse = |path: &str| Route::parse(path).map_err(|error| error.code());
        assert_eq!(parse("/v2"), Ok(Route::Ping));
        assert_eq!(parse("/v2/"), Ok(Route::Ping));
        assert_eq!(parse("/v2/_catalog"), Ok(Route::Catalog));
        assert_eq!(
            parse("/v2/a/blobs/tags/list"),
            Err(Code::NameInvalid).or(Ok(Route::Tags(name("a/blobs"))))
        );
        assert_eq!(
            parse(&format!("/v2/blobs/uploads/blobs/{digest}")),
            Ok(Route::Blob(name("blobs/uploads"), digest))
        );
        assert_eq!(
            parse(&format!("/v2/app/blobs/sha256%3A{}", digest.hex())),
            Ok(Route::Blob(name("app"), digest))
        );
        assert_eq!(parse("/v2/team/app/blobs/uploads/"), Ok(Route::Uploads(name("team/app"))));
        assert_eq!(
            parse("/v2/team/app/manifests/v1"),
            Ok(Route::Manifest(name("team/app"), Reference::Tag("v1".parse().unwrap())))
        );
        for (path, code) in [
            ("/v2/../../etc/manifests/x", Code::NameInvalid),
            ("/v2/%2e%2e/manifests/x", Code::NameInvalid),
            ("/v2/ab%2fcd/manifests/x", Code::NameInvalid),
            ("/v2/App/tags/list", Code::NameInvalid),
            ("/v2//tags/list", Code::NameInvalid),
            ("/v2/tags/list", Code::NameInvalid),
            ("/v2/app/blobs/sha256:../../../etc/passwd", Code::NotFound),
            ("/v2/app/blobs/..%2f..%2fetc", Code::NameInvalid),
            ("/v2/app/blobs/sha512:00", Code::DigestInvalid),
            ("/v2/app/blobs/uploads/..", Code::BlobUploadUnknown),
            ("/v2/app/manifests/%00", Code::TagInvalid),
            ("/v2/app", Code::NotFound),
        ] {
            assert_eq!(parse(path), Err(code), "{path}");
        }
    }
}
