//! The verifier against requests that AWS's own Rust signer signs, and our signer against the
//! verifier.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_api::Timestamp;
use aws_api::sigv4::{self, Credentials, SecretKey, Verified, Verifier};
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation,
    SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::Request;
use proptest::prelude::*;

const KEY_ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const SIGNED_AT: u64 = 1_767_225_600;

#[derive(Clone, Debug)]
struct Case {
    method: &'static str,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    token: Option<String>,
    presigned: bool,
    checksum: bool,
    service: &'static str,
}

/// A character of a request target, raw or percent-encoded. Only UTF-8: the oracle replaces other
/// bytes of a query before it signs them.
fn target_part() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[A-Za-z0-9._~!$&'()*,;:@-]",
        2 => "[A-Za-z0-9._~-]",
        2 => (0..128_u8).prop_map(|byte| format!("%{byte:02X}")),
        1 => (0..128_u8).prop_map(|byte| format!("%{byte:02x}")),
        1 => Just("%C3%A9".to_owned()),
    ]
}

fn path() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        5 => prop::collection::vec(target_part(), 1..5).prop_map(|parts| parts.concat()),
        1 => Just(String::new()),
        1 => Just(".".to_owned()),
        1 => Just("..".to_owned()),
    ];
    prop::collection::vec(segment, 0..5).prop_map(|segments| format!("/{}", segments.join("/")))
}

fn query() -> impl Strategy<Value = String> {
    // Without raw `&`, which separates parameters.
    let text =
        || prop::collection::vec(target_part(), 0..4).prop_map(|parts| parts.concat().replace('&', ""));
    let pair = prop_oneof![
        5 => ("[a-c]", text()).prop_map(|(name, value)| format!("{name}={value}")),
        2 => (text(), text()).prop_map(|(name, value)| format!("x{name}={value}")),
        1 => "[a-c]".prop_map(|name| name),
    ];
    prop::collection::vec(pair, 0..5).prop_map(|pairs| pairs.join("&"))
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let name =
        prop_oneof![Just("x-amz-target".to_owned()), Just("content-type".to_owned()), "[Xx]-[A-Ca-c]{1,2}",];
    let value = r#"( |[!-~]){0,12}"#;
    prop::collection::vec((name, value), 0..6)
}

fn case() -> impl Strategy<Value = Case> {
    let method = prop_oneof![Just("GET"), Just("POST"), Just("PUT"), Just("DELETE")];
    let service = prop_oneof![Just("ecs"), Just("logs"), Just("sts"), Just("s3")];
    let body = prop::collection::vec(any::<u8>(), 0..64);
    let token = prop::option::of("[A-Za-z0-9+/=]{8,40}");
    let request = (method, path(), query(), headers(), body);
    (request, token, any::<bool>(), any::<bool>(), service).prop_map(
        |((method, path, query, headers, body), token, presigned, checksum, service)| {
            // S3 takes the path as it is; clients encode it canonically.
            let path = if service == "s3" { "/bucket/a%20key/x~y".to_owned() } else { path };
            Case { method, path, query, headers, body, token, presigned, checksum, service }
        },
    )
}

/// Signs with the oracle.
fn signed(case: &Case) -> Request<Bytes> {
    let query = if case.query.is_empty() { String::new() } else { format!("?{}", case.query) };
    let uri = format!("http://ecs.test:4566{}{query}", case.path);
    let mut builder = Request::builder().method(case.method).uri(&uri);
    for (name, value) in &case.headers {
        builder = builder.header(name, value);
    }
    let mut request = builder.body(Bytes::from(case.body.clone())).unwrap();

    let credentials =
        aws_credential_types::Credentials::new(KEY_ID, SECRET, case.token.clone(), None, "test");
    let identity = credentials.into();
    let mut settings = SigningSettings::default();
    if case.presigned {
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(Duration::from_secs(900));
    }
    if case.checksum {
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    }
    if case.service == "s3" {
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    }
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region("eu-central-1")
        .name(case.service)
        .time(UNIX_EPOCH + Duration::from_secs(SIGNED_AT))
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let body = if case.presigned && case.service == "s3" {
        SignableBody::UnsignedPayload
    } else {
        SignableBody::Bytes(&case.body)
    };
    let headers = request
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect::<Vec<_>>();
    let signable = SignableRequest::new(case.method, &uri, headers.into_iter(), body).unwrap();
    let (instructions, _) = sign(signable, &parameters).unwrap().into_parts();
    instructions.apply_to_request_http1x(&mut request);
    request
}

/// What arrives at a server: the target without scheme and host, the host as a header.
fn received(request: Request<Bytes>) -> Request<Bytes> {
    let (mut parts, body) = request.into_parts();
    let host = parts.uri.authority().unwrap().as_str().parse().unwrap();
    parts.headers.insert("host", host);
    parts.uri = parts.uri.path_and_query().unwrap().as_str().parse().unwrap();
    Request::from_parts(parts, body)
}

fn verify(request: &Request<Bytes>, time: SystemTime) -> Result<Verified, aws_api::Error> {
    let (parts, body) = request.clone().into_parts();
    let lookup = |id: &str| (id == KEY_ID).then(|| SecretKey::from(SECRET));
    Verifier::default().verify(&parts, &body, Timestamp::from(time), lookup)
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_oracle_signs_verifies(case in case()) {
        let request = received(signed(&case));
        let verified = verify(&request, at(SIGNED_AT + 10));
        let verified = verified.map_err(|error| TestCaseError::fail(format!("{error} {request:?}")))?;
        prop_assert_eq!(verified.region, "eu-central-1");
        prop_assert_eq!(verified.service, case.service);
        prop_assert_eq!(verified.session_token.map(|token| token.into_inner()), case.token);
    }

    #[test]
    fn what_we_sign_verifies(case in case()) {
        let query = if case.query.is_empty() { String::new() } else { format!("?{}", case.query) };
        let uri = format!("http://ecs.test:4566{}{query}", case.path);
        let mut builder = Request::builder().method(case.method).uri(uri);
        for (name, value) in &case.headers {
            builder = builder.header(name, value);
        }
        let mut request = builder.body(Bytes::from(case.body)).unwrap();
        let credentials = Credentials {
            access_key_id: KEY_ID.to_owned(),
            secret_key: SecretKey::from(SECRET),
            session_token: case.token.map(Into::into),
        };
        let time = at(SIGNED_AT);
        sigv4::sign(&mut request, &credentials, "eu-central-1", case.service, time.into()).unwrap();
        prop_assert!(verify(&received(request), time).is_ok());
    }

    #[test]
    fn a_changed_request_does_not_verify(case in case(), which in 0..5_usize) {
        let mut request = received(signed(&case));
        match which {
            0 => *request.method_mut() = "PATCH".parse().unwrap(),
            1 => {
                let target = request.uri().to_string();
                let mark = if target.contains('?') { '&' } else { '?' };
                *request.uri_mut() = format!("{target}{mark}more=1").parse().unwrap();
            }
            2 => {
                let query = request.uri().query().map(|query| format!("?{query}"));
                let target = format!("{}/z{}", request.uri().path(), query.unwrap_or_default());
                *request.uri_mut() = target.parse().unwrap();
            }
            3 => {
                request.headers_mut().insert("host", "other.test".parse().unwrap());
            }
            _ => {
                let mut body = request.body().to_vec();
                body.push(b'x');
                *request.body_mut() = body.into();
                prop_assume!(!(case.presigned && case.service == "s3"));
            }
        }
        let error = verify(&request, at(SIGNED_AT)).unwrap_err();
        prop_assert_eq!(error.code, "InvalidSignatureException");
    }
}

fn plain(presigned: bool) -> Request<Bytes> {
    received(signed(&Case {
        method: "POST",
        path: "/".to_owned(),
        query: String::new(),
        headers: vec![("x-amz-target".to_owned(), "A.B".to_owned())],
        body: b"{}".to_vec(),
        token: None,
        presigned,
        checksum: false,
        service: "ecs",
    }))
}

#[test]
fn times_outside_the_window_are_refused() {
    for (presigned, seconds, expected) in [
        (false, SIGNED_AT + 300, None),
        (
            false,
            SIGNED_AT + 301,
            Some(
                "Signature expired: 20260101T000000Z is now earlier than 20260101T000001Z \
                 (20260101T000501Z - 5 min.)",
            ),
        ),
        (false, SIGNED_AT - 300, None),
        (
            false,
            SIGNED_AT - 301,
            Some(
                "Signature not yet current: 20260101T000000Z is still later than \
                 20251231T235959Z (20251231T235459Z + 5 min.)",
            ),
        ),
        (true, SIGNED_AT + 900, None),
        (
            true,
            SIGNED_AT + 901,
            Some("Signature expired: 20260101T001500Z is now earlier than 20260101T001501Z"),
        ),
    ] {
        let outcome = verify(&plain(presigned), at(seconds)).map(|_| ());
        match expected {
            None => assert_eq!(outcome, Ok(())),
            Some(message) => {
                let error = outcome.unwrap_err();
                assert_eq!(
                    (error.code.as_str(), error.message.as_str()),
                    ("InvalidSignatureException", message)
                );
            }
        }
    }
}

#[test]
fn bad_signatures_are_refused_in_aws_words() {
    fn authorization(change: impl Fn(&str) -> String) -> Request<Bytes> {
        let mut request = plain(false);
        let header = request.headers()["authorization"].to_str().unwrap().to_owned();
        request.headers_mut().insert("authorization", change(&header).parse().unwrap());
        request
    }
    let mut unsigned = plain(false);
    unsigned.headers_mut().remove("authorization");
    let mut undated = plain(false);
    undated.headers_mut().remove("x-amz-date");
    let mut both = plain(true);
    both.headers_mut().insert("authorization", "AWS4-HMAC-SHA256 x=y".parse().unwrap());
    let mut twice = plain(false);
    let copy = twice.headers()["authorization"].clone();
    twice.headers_mut().append("authorization", copy);
    let mut token = plain(false);
    token.headers_mut().insert("x-amz-security-token", "stolen".parse().unwrap());

    for (request, code, message) in [
        (unsigned, "MissingAuthenticationTokenException", "Missing Authentication Token"),
        (
            undated,
            "IncompleteSignatureException",
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.",
        ),
        (both, "IncompleteSignatureException", "Only one auth mechanism allowed"),
        (twice, "IncompleteSignatureException", "'authorization' occurs more than once."),
        (
            token,
            "InvalidSignatureException",
            "'x-amz-security-token' must be a 'SignedHeader' in the AWS Authorization.",
        ),
        (
            authorization(|_| "Basic dXNlcjpwYXNz".to_owned()),
            "IncompleteSignatureException",
            "'dXNlcjpwYXNz' not a valid key=value pair",
        ),
        (
            authorization(|_| "Bearer".to_owned()),
            "IncompleteSignatureException",
            "Authorization header requires 'Credential' parameter. Authorization header requires \
             'Signature' parameter. Authorization header requires 'SignedHeaders' parameter.",
        ),
        (
            authorization(|header| header.replace(KEY_ID, "AKIDUNKNOWN")),
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        (
            authorization(|header| header.replace("SignedHeaders=host;", "SignedHeaders=")),
            "InvalidSignatureException",
            "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
        ),
        (
            authorization(|header| header.replace("x-amz-date;x-amz-target", "x-amz-date")),
            "InvalidSignatureException",
            "'x-amz-target' must be a 'SignedHeader' in the AWS Authorization.",
        ),
        (
            authorization(|header| header.replace("20260101/", "20260102/")),
            "InvalidSignatureException",
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from \
             HTTP: '20260102' != '20260101', from '20260101T000000Z'.",
        ),
        (
            authorization(|header| header.replace("aws4_request", "aws4")),
            "InvalidSignatureException",
            "Credential should be scoped with a valid terminator: 'aws4_request', not 'aws4'.",
        ),
        (
            authorization(|header| header.replace("/ecs/", "/")),
            "IncompleteSignatureException",
            "Credential must have exactly 5 slash-delimited elements",
        ),
        (
            authorization(|header| header.replace("/ecs/", "/sts/")),
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided.",
        ),
        (
            authorization(|header| header[..header.len() - 2].to_owned()),
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided.",
        ),
    ] {
        let error = verify(&request, at(SIGNED_AT)).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.starts_with(message), "{error}");
    }
}

#[test]
fn presigned_validity_is_at_most_seven_days() {
    for (expires, ok) in [("604800", true), ("604801", false), ("0", false), ("-1", false)] {
        let mut request = plain(true);
        let target = request.uri().to_string().replace("Expires=900", &format!("Expires={expires}"));
        *request.uri_mut() = target.parse().unwrap();
        let error = verify(&request, at(SIGNED_AT)).unwrap_err();
        // The changed query no longer matches its signature, but is read first.
        let code = if ok { "InvalidSignatureException" } else { "IncompleteSignatureException" };
        assert_eq!(error.code, code, "{expires}: {error}");
    }
}

#[test]
fn a_signature_is_good_for_its_scope_only() {
    let verified = verify(&plain(false), at(SIGNED_AT)).unwrap();
    assert!(verified.check_scope(aws_api::Service::Ecs, "eu-central-1").is_ok());
    for (service, region, message) in [
        (aws_api::Service::Ecr, "eu-central-1", "Credential should be scoped to correct service"),
        (aws_api::Service::Ecs, "us-east-1", "Credential should be scoped to a valid region"),
    ] {
        let error = verified.check_scope(service, region).unwrap_err();
        assert!(error.message.starts_with(message), "{error}");
    }
}
