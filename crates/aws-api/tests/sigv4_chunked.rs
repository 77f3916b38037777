//! Chunked bodies, with the example of the S3 API reference and with bodies chunked here.

use aws_api::sigv4::{SecretKey, Verified, Verifier};
use aws_api::{Error, Timestamp};
use bytes::Bytes;
use http::Request;

const SEED: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
const CHUNKS: [(usize, &str); 3] = [
    (65_536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
    (1_024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
    (0, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
];

fn lookup(id: &str) -> Option<SecretKey> {
    let key = SecretKey::from("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
    (id == "AKIAIOSFODNN7EXAMPLE").then_some(key)
}

/// 2013-05-24T00:00:00Z
const NOW: Timestamp = Timestamp::from_millis(1_369_353_600_000);

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html>
fn verify(body: Bytes) -> Result<Verified, Error> {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
         SignedHeaders=content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
         x-amz-decoded-content-length;x-amz-storage-class, Signature={SEED}"
    );
    let parts = Request::put("/examplebucket/chunkObject.txt")
        .header("host", "s3.amazonaws.com")
        .header("x-amz-date", "20130524T000000Z")
        .header("x-amz-storage-class", "REDUCED_REDUNDANCY")
        .header("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
        .header("content-encoding", "aws-chunked")
        .header("x-amz-decoded-content-length", "66560")
        .header("content-length", "66824")
        .header("authorization", authorization)
        .body(())
        .unwrap()
        .into_parts()
        .0;
    Verifier::default().verify(&parts, &body, NOW, lookup)
}

fn body(chunks: &[(usize, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (size, signature) in chunks {
        body.extend(format!("{size:x};chunk-signature={signature}\r\n").bytes());
        body.extend(std::iter::repeat_n(b'a', *size));
        body.extend(b"\r\n");
    }
    body
}

#[test]
fn the_published_example_verifies() {
    let body = body(&CHUNKS);
    assert_eq!(body.len(), 66_824);
    let verified = verify(body.into()).unwrap();
    assert_eq!(verified.body, Bytes::from(vec![b'a'; 66_560]));
}

#[test]
fn a_changed_chunk_is_noticed() {
    let mut changed = body(&CHUNKS);
    changed[66_000] = b'b';
    assert_eq!(verify(changed.into()).unwrap_err().code, "InvalidSignatureException");
    let swapped = [CHUNKS[1], CHUNKS[0], CHUNKS[2]];
    assert_eq!(verify(body(&swapped).into()).unwrap_err().code, "InvalidSignatureException");
}

#[test]
fn a_cut_body_is_noticed() {
    let whole = body(&CHUNKS);
    for length in (0..whole.len()).step_by(997) {
        let error = verify(Bytes::copy_from_slice(&whole[..length])).unwrap_err();
        assert_eq!(error.code, "IncompleteBody", "after {length} bytes");
    }
    let without_last = body(&CHUNKS[..2]);
    assert_eq!(verify(without_last.into()).unwrap_err().code, "IncompleteBody");
    let mut longer = whole;
    longer.extend(b"more");
    assert_eq!(verify(longer.into()).unwrap_err().code, "IncompleteBody");
}

const TRAILER_SEED: &str = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e";
const TRAILER_CHUNKS: [(usize, &str); 2] = [
    (65_536, "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
    (1_024, "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
];
const TRAILER_END: &str = "0;chunk-signature=\
    2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n\
    x-amz-checksum-crc32c:sOO8/Q==\r\n\
    x-amz-trailer-signature:\
    d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n";

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html>
fn verify_with_trailers(end: &str) -> Result<Verified, Error> {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
         SignedHeaders=content-encoding;host;x-amz-content-sha256;x-amz-date;\
         x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer, Signature={TRAILER_SEED}"
    );
    let parts = Request::put("/examplebucket/chunkObject.txt")
        .header("host", "s3.amazonaws.com")
        .header("x-amz-date", "20130524T000000Z")
        .header("x-amz-storage-class", "REDUCED_REDUNDANCY")
        .header("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")
        .header("content-encoding", "aws-chunked")
        .header("x-amz-decoded-content-length", "66560")
        .header("x-amz-trailer", "x-amz-checksum-crc32c")
        .header("authorization", authorization)
        .body(())
        .unwrap()
        .into_parts()
        .0;
    let mut body = body(&TRAILER_CHUNKS);
    body.extend(end.bytes());
    Verifier::default().verify(&parts, &body.into(), NOW, lookup)
}

#[test]
fn the_published_example_with_trailers_verifies() {
    let verified = verify_with_trailers(TRAILER_END).unwrap();
    assert_eq!(verified.body.len(), 66_560);
    let changed = TRAILER_END.replace("sOO8", "tOO8");
    assert_eq!(verify_with_trailers(&changed).unwrap_err().code, "InvalidSignatureException");
    let unsigned = TRAILER_END.replace("trailer-signature", "other");
    assert_eq!(verify_with_trailers(&unsigned).unwrap_err().code, "IncompleteBody");
}
