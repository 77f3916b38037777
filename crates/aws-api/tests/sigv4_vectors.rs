//! The verifier against the requests that AWS publishes with their signatures.

use aws_api::sigv4::{SecretKey, Verifier};
use aws_api::{Error, Timestamp};
use bytes::Bytes;
use http::Request;
use http::request::Parts;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Vectors {
    keys: BTreeMap<String, String>,
    requests: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    #[serde(default = "get")]
    method: String,
    uri: String,
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: String,
    authorization: Option<String>,
}

fn get() -> String {
    "GET".to_owned()
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("vectors/sigv4.json")).unwrap()
}

fn parts(vector: &Vector) -> Parts {
    let mut request = Request::builder().method(vector.method.as_str()).uri(&vector.uri);
    for (name, value) in &vector.headers {
        request = request.header(name, value);
    }
    if let Some(authorization) = &vector.authorization {
        request = request.header("authorization", authorization);
    }
    request.body(()).unwrap().into_parts().0
}

/// 2015-08-30T12:36:00Z and 2013-05-24T00:00:00Z.
fn now(vector: &Vector) -> Timestamp {
    let seconds = if vector.name.starts_with("s3") { 1_369_353_600 } else { 1_440_938_160 };
    Timestamp::from_millis(seconds * 1000)
}

fn verify(vectors: &Vectors, vector: &Vector) -> Result<(), Error> {
    let body = Bytes::from(vector.body.clone());
    let lookup = |id: &str| vectors.keys.get(id).map(|key| SecretKey::from(key.as_str()));
    Verifier::default().verify(&parts(vector), &body, now(vector), lookup).map(|_| ())
}

#[test]
fn published_signatures_verify() {
    let vectors = vectors();
    for vector in &vectors.requests {
        assert_eq!(verify(&vectors, vector), Ok(()), "{}", vector.name);
    }
}

#[test]
fn any_change_is_noticed() {
    let vectors = vectors();
    for vector in &vectors.requests {
        let refused = |change: &dyn Fn(&mut Vector)| {
            let mut changed = self::vectors();
            let index = vectors.requests.iter().position(|v| v.name == vector.name).unwrap();
            change(&mut changed.requests[index]);
            let error = verify(&vectors, &changed.requests[index]).unwrap_err();
            assert_eq!(error.code, "InvalidSignatureException", "{}: {error}", vector.name);
        };
        refused(&|v| v.method = "DELETE".to_owned());
        refused(&|v| v.uri = v.uri.replacen('/', "/other", 1));
        refused(&|v| v.headers[0].1.push('x'));
        if vector.authorization.is_some() {
            refused(&|v| v.body.push('x'));
            refused(&|v| v.uri.push_str(if v.uri.contains('?') { "&a=b" } else { "?a=b" }));
        }
    }
}
