use std::io::Write;

use super::*;

const LIMITS: Limits = Limits { bytes: 1 << 30, entries: 10_000, free_bytes: 0 };

fn archive(path: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    // Longer than a block, and not the same throughout.
    let data: Vec<u8> = (0..3 * BUFFER as u64).map(|n| ((n * n) >> 7) as u8).collect();
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append(&header, &data[..]).unwrap();
    tar.into_inner().unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Of both ways, which must not differ.
fn outcome(blob: &[u8], expected: Expected, ends: bool) -> Result<u64, LayerFailure> {
    let mut outcomes = [false, true].map(|one_thread| {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let (feed, network) = mpsc::channel(NETWORK_CHUNKS);
        let blob = blob.to_vec();
        let feeding = std::thread::spawn(move || {
            for chunk in blob.chunks(100_000) {
                if feed.blocking_send(Message::Data(Bytes::copy_from_slice(chunk))).is_err() {
                    return;
                }
            }
            if ends {
                let _ = feed.blocking_send(Message::End);
            }
        });
        let input = Compressed::new(network);
        let (decoded, unpacked) = if one_thread {
            run_in_one_thread(input, directory.path(), LIMITS)
        } else {
            run_in_two_threads(input, directory.path(), LIMITS).unwrap()
        };
        feeding.join().unwrap();
        judge(expected, decoded, unpacked).map(|unpacked| unpacked.bytes)
    });
    let [two, one] = &mut outcomes;
    assert_eq!(one, two);
    std::mem::replace(one, Ok(0))
}

#[test]
fn one_thread_and_two_come_to_the_same() {
    let plain = archive("file");
    let blob = gzip(&plain);
    let expected =
        Expected { digest: Digest::of(&blob), size: blob.len() as u64, diff_id: Digest::of(&plain) };
    let of = |blob: &[u8]| Expected { digest: Digest::of(blob), size: blob.len() as u64, ..expected };
    let failure = |result| match result {
        Err(LayerFailure::Failed(kind)) => kind,
        other => panic!("{other:?}"),
    };

    assert_eq!(outcome(&blob, expected, true), Ok(3 * BUFFER as u64));
    assert_eq!(outcome(&plain, of(&plain), true), Ok(3 * BUFFER as u64));
    assert_eq!(outcome(&blob, expected, false), Err(LayerFailure::Aborted));
    assert_eq!(outcome(&blob[..blob.len() / 2], expected, false), Err(LayerFailure::Aborted));

    let other = Expected { diff_id: Digest::of(b""), ..expected };
    assert!(matches!(failure(outcome(&blob, other, true)), PullErrorKind::DigestMismatch { .. }));
    // Corrupt bytes are told by the digest, not by what the decompressor makes of them.
    let mut corrupt = blob.clone();
    corrupt[blob.len() / 2..][..64].fill(0xff);
    assert!(matches!(failure(outcome(&corrupt, expected, true)), PullErrorKind::DigestMismatch { .. }));
    assert!(matches!(
        failure(outcome(&corrupt, of(&corrupt), true)),
        PullErrorKind::Malformed(_) | PullErrorKind::Truncated(_) | PullErrorKind::DigestMismatch { .. }
    ));
    let half = &blob[..blob.len() / 2];
    assert!(matches!(failure(outcome(half, of(half), true)), PullErrorKind::Truncated(_)));
    let short = gzip(&plain[..plain.len() / 2]);
    assert!(matches!(failure(outcome(&short, of(&short), true)), PullErrorKind::Truncated(_)));
    let hostile = gzip(&archive("../out"));
    assert!(matches!(failure(outcome(&hostile, of(&hostile), true)), PullErrorKind::Hostile { .. }));
    let none = gzip(b"");
    let empty = Expected { diff_id: Digest::of(b""), ..of(&none) };
    assert_eq!(outcome(&none, empty, true), Ok(0));
}
