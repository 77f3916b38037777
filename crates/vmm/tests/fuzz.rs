//! The fuzzer's targets (`fuzz/`) under stable Rust: each with its kept corpus, with damaged pieces
//! of that, and with inputs that are random altogether (`PROPTEST_CASES` of them).

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[path = "../fuzz/src/lib.rs"]
mod targets;

const MAX_LENGTH: usize = 1024;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn random() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..MAX_LENGTH)
}

/// The beginning of one input and the end of another, with some bytes changed.
fn damaged(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(corpus);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let cut = any::<prop::sample::Index>;
    (piece.clone(), cut(), piece, cut(), changes).prop_map(|(first, end, second, start, changes)| {
        let mut input = first[..end.index(first.len() + 1)].to_vec();
        input.extend(&second[start.index(second.len() + 1)..]);
        input.truncate(2 * MAX_LENGTH);
        for (at, byte) in changes {
            if !input.is_empty() {
                let at = at.index(input.len());
                input[at] = byte;
            }
        }
        input
    })
}

fn survives(name: &str) {
    let (_, target) = targets::TARGETS.into_iter().find(|(other, _)| *other == name).unwrap();
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "the corpus is kept beside the targets");
    for input in &corpus {
        target(input);
    }
    let config = Config { failure_persistence: None, ..Config::default() };
    let input = prop_oneof![random(), damaged(corpus)];
    TestRunner::new(config)
        .run(&input, |input| {
            target(&input);
            Ok(())
        })
        .unwrap();
}

#[test]
fn block() {
    survives("block");
}

#[test]
fn net() {
    survives("net");
}

#[test]
fn vsock() {
    survives("vsock");
}

#[test]
fn balloon() {
    survives("balloon");
}

#[test]
fn entropy() {
    survives("entropy");
}

#[test]
fn transport() {
    survives("transport");
}

#[test]
fn snapshot() {
    survives("snapshot");
}
