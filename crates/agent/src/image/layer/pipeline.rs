//! One layer's way from the network to its directory, as a pipeline:
//!
//! ```text
//! download (async) ─▶ SHA-256 of the compressed bytes, decompression ─▶ SHA-256 of the archive (diff id), unpacking
//! ```
//!
//! The two stages after the download are two threads, or one when other layers keep all processors busy: then what the
//! first stage made is still in the processor's cache for the second one, and nobody waits for anybody.
//!
//! No byte touches the disk but as a file of the layer. Threads of its own, not tokio's blocking pool: a slow registry
//! holds a layer's threads for long, and two stages that wait for each other in one bounded pool can lock it up.

use std::io::{self, BufRead, Chain, Cursor, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as std_mpsc;

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};

use super::gzip::GzipReader;
use super::tar::TarError;
use super::unpack::{Limits, UnpackError, Unpacked, unpack};
use crate::image::digest::{Digest, Hasher};
use crate::image::disk::Staging;
use crate::image::error::PullErrorKind;

/// Chunks from the network that may wait; hyper's are at most some hundred KiB.
const NETWORK_CHUNKS: usize = 8;
/// Decompressed buffers that may wait, and their size in bytes.
const BUFFERS: usize = 4;
const BUFFER: usize = 256 << 10;
/// The largest window that a zstd frame may have, 2^26 = 64 MiB: it is memory that the image asks of the host. RFC 8878 asks
/// for 8 MiB; only `zstd --ultra -22` writes more than this.
const ZSTD_WINDOW_LOG_MAX: u32 = 26;

/// What a layer must turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Expected {
    /// Of the compressed bytes.
    pub(crate) digest: Digest,
    /// Compressed size in bytes.
    pub(crate) size: u64,
    /// Of the decompressed archive.
    pub(crate) diff_id: Digest,
}

/// Why there is no layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayerFailure {
    Failed(PullErrorKind),
    /// The feed ended before its end was said.
    Aborted,
}

impl From<PullErrorKind> for LayerFailure {
    fn from(kind: PullErrorKind) -> Self {
        Self::Failed(kind)
    }
}

enum Message {
    Data(Bytes),
    End,
}

/// Where the download puts its bytes. Dropping it without [`Feed::end`] aborts the layer.
pub(crate) struct Feed(mpsc::Sender<Message>);

/// The pipeline no longer takes bytes; [`Unpacker::finish`] says why.
#[derive(Debug)]
pub(crate) struct Closed;

impl Feed {
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), Closed> {
        self.0.send(Message::Data(bytes)).await.map_err(|_| Closed)
    }

    pub(crate) async fn end(self) -> Result<(), Closed> {
        self.0.send(Message::End).await.map_err(|_| Closed)
    }
}

/// A running pipeline.
pub(crate) struct Unpacker(oneshot::Receiver<Result<(Unpacked, Staging), LayerFailure>>);

impl Unpacker {
    /// Starts a pipeline that unpacks into `staging`'s `fs` directory. Whatever happens, nothing is left of the staging
    /// directory unless [`Self::finish`] gives it back.
    pub(crate) fn start(expected: Expected, staging: Staging, limits: Limits) -> io::Result<(Feed, Self)> {
        let (feed, network) = mpsc::channel(NETWORK_CHUNKS);
        let (done, result) = oneshot::channel();
        std::thread::Builder::new().name("layer-decode".to_owned()).spawn(move || {
            let outcome = run(expected, network, &staging, limits);
            // A receiver that is gone drops the staging directory here, on this thread.
            let _ = done.send(outcome.map(|unpacked| (unpacked, staging)));
        })?;
        Ok((Feed(feed), Self(result)))
    }

    /// The verified layer, or why there is none.
    pub(crate) async fn finish(self) -> Result<(Unpacked, Staging), LayerFailure> {
        self.0.await.unwrap_or_else(|_| {
            Err(PullErrorKind::Host("the unpacking thread ended early".to_owned()).into())
        })
    }
}

/// Pipelines that are running, on all stores of this process.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Counts a pipeline for as long as it lives.
struct Running;

impl Running {
    /// Also says whether the processors have enough to do with the others.
    fn begin() -> (Self, bool) {
        let others = RUNNING.fetch_add(1, Ordering::Relaxed);
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (Self, others >= processors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The stages, in as many threads as do the most for all layers together.
fn run(
    expected: Expected,
    network: mpsc::Receiver<Message>,
    staging: &Staging,
    limits: Limits,
) -> Result<Unpacked, LayerFailure> {
    let (_running, busy) = Running::begin();
    let (input, root) = (Compressed::new(network), staging.layer_root());
    let (decoded, unpacked) = if busy {
        run_in_one_thread(input, &root, limits)
    } else {
        run_in_two_threads(input, &root, limits)?
    };
    judge(expected, decoded, unpacked)
}

type Outcome = (Decoded, Result<(Unpacked, Digest), UnpackError>);

/// One stage after the other, block by block: each finds the block in this processor's cache.
fn run_in_one_thread(mut input: Compressed, root: &Path, limits: Limits) -> Outcome {
    let mut source = Inline { decoder: None, input: Some(&mut input), failure: None };
    let mut archive = Archive::new(&mut source);
    let unpacked = unpack(&mut archive, root, limits);
    let unpacked = unpacked.map(|unpacked| (unpacked, archive.hasher.finish()));
    let failure = source.failure.take();
    let decoded = read_on(input, failure, || is_final(&unpacked));
    (decoded, unpacked)
}

/// An error of format may come from corrupt content, and then a wrong digest is what to report: the first stage reads on
/// to know. Any other error is final.
fn is_final<T>(unpacked: &Result<T, UnpackError>) -> bool {
    matches!(unpacked, Err(error) if !matches!(error, UnpackError::Archive(_)))
}

/// The first stage on this thread, the second one on another.
fn run_in_two_threads(input: Compressed, root: &Path, limits: Limits) -> Result<Outcome, PullErrorKind> {
    let (to_unpack, from_decode) = std_mpsc::sync_channel(BUFFERS);
    let (give_back, given_back) = std_mpsc::channel();
    let hopeless = AtomicBool::new(false);
    let (decoded, unpacked) = std::thread::scope(|scope| {
        let second = std::thread::Builder::new().name("layer-unpack".to_owned()).spawn_scoped(scope, || {
            let mut archive = Archive::new(Blocks { blocks: from_decode, spare: give_back });
            let unpacked = unpack(&mut archive, root, limits);
            if is_final(&unpacked) {
                hopeless.store(true, Ordering::Release);
            }
            unpacked.map(|unpacked| (unpacked, archive.hasher.finish()))
        });
        let decoded = decode(input, &to_unpack, &given_back, &hopeless);
        drop(to_unpack);
        (decoded, second.map(|thread| thread.join()))
    });
    let unpacked = unpacked
        .map_err(|e| PullErrorKind::Host(format!("cannot start a thread: {e}")))?
        .map_err(|_| PullErrorKind::Host("the unpacking thread panicked".to_owned()))?;
    Ok((decoded, unpacked))
}

/// What the first stage saw.
struct Decoded {
    /// Digest and length of the compressed bytes; `None` when they did not come to their end.
    whole: Option<(Digest, u64)>,
    failure: Option<DecodeFailure>,
}

#[derive(Clone, Debug)]
enum DecodeFailure {
    Truncated,
    Corrupt(String),
}

impl From<io::Error> for DecodeFailure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Corrupt(format!("invalid compressed layer: {error}")),
        }
    }
}

fn judge(
    expected: Expected,
    decoded: Decoded,
    unpacked: Result<(Unpacked, Digest), UnpackError>,
) -> Result<Unpacked, LayerFailure> {
    let unpacked = match unpacked {
        Err(UnpackError::Hostile { path, why }) => return Err(PullErrorKind::Hostile { path, why }.into()),
        Err(UnpackError::TooLarge { what, limit }) => {
            return Err(PullErrorKind::TooLarge { what: what.to_owned(), limit }.into());
        }
        Err(UnpackError::DiskFull(path)) => return Err(PullErrorKind::DiskFull(path).into()),
        Err(UnpackError::Host { path, error }) => {
            let error = io::Error::from(error);
            return Err(PullErrorKind::Host(format!("cannot unpack {path:?}: {error}")).into());
        }
        Err(UnpackError::Archive(error)) => Err(error),
        Ok(unpacked) => Ok(unpacked),
    };
    let Some((digest, size)) = decoded.whole else { return Err(LayerFailure::Aborted) };
    if size != expected.size {
        let what = "layer".to_owned();
        return Err(PullErrorKind::SizeMismatch { what, expected: expected.size, actual: size }.into());
    }
    if digest != expected.digest {
        let what = "layer content".to_owned();
        return Err(PullErrorKind::DigestMismatch { what, expected: expected.digest, actual: digest }.into());
    }
    match decoded.failure {
        Some(DecodeFailure::Truncated) => {
            return Err(PullErrorKind::Truncated("compressed layer".to_owned()).into());
        }
        Some(DecodeFailure::Corrupt(why)) => return Err(PullErrorKind::Malformed(why).into()),
        None => {}
    }
    let (unpacked, diff_id) = unpacked.map_err(|error| match error {
        TarError::Truncated => PullErrorKind::Truncated("layer archive".to_owned()),
        TarError::Malformed(why) => PullErrorKind::Malformed(why),
        TarError::Io(error) => PullErrorKind::Host(error.to_string()),
    })?;
    if diff_id != expected.diff_id {
        let what = "unpacked layer (diff id)".to_owned();
        return Err(
            PullErrorKind::DigestMismatch { what, expected: expected.diff_id, actual: diff_id }.into()
        );
    }
    Ok(unpacked)
}

/// What `Read` does for a reader that has a buffer anyway.
fn read_buffered(reader: &mut impl BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let available = reader.fill_buf()?;
    let length = available.len().min(buffer.len());
    buffer[..length].copy_from_slice(&available[..length]);
    reader.consume(length);
    Ok(length)
}

/// The compressed bytes as a reader that takes their digest.
struct Compressed {
    network: mpsc::Receiver<Message>,
    current: Bytes,
    hasher: Hasher,
    received: u64,
    ended: bool,
}

impl Compressed {
    fn new(network: mpsc::Receiver<Message>) -> Self {
        Self { network, current: Bytes::new(), hasher: Hasher::new(), received: 0, ended: false }
    }
}

impl BufRead for Compressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.network.blocking_recv() {
                Some(Message::Data(bytes)) => {
                    self.hasher.update(&bytes);
                    self.received += bytes.len() as u64;
                    self.current = bytes;
                }
                Some(Message::End) => self.ended = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Compressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}

type Prefixed<'a> = Chain<Cursor<Vec<u8>>, &'a mut Compressed>;

/// The compression is told by the content, as in containerd and Docker: media types are often wrong about it.
enum Decoder<'a> {
    Gzip(Box<GzipReader<Prefixed<'a>>>),
    Zstd(zstd::stream::read::Decoder<'static, Prefixed<'a>>),
    Plain(Prefixed<'a>),
}

impl<'a> Decoder<'a> {
    fn new(input: &'a mut Compressed) -> io::Result<Self> {
        let mut start = Vec::new();
        input.take(4).read_to_end(&mut start)?;
        let magic: [u8; 4] = std::array::from_fn(|index| start.get(index).copied().unwrap_or(0));
        let input = Read::chain(Cursor::new(start), input);
        Ok(match magic {
            [0x1f, 0x8b, 0x08, _] => Self::Gzip(Box::new(GzipReader::new(input))),
            // A frame, or a skippable one (0x50 to 0x5f) before it.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Self::Zstd(decoder)
            }
            _ => Self::Plain(input),
        })
    }

    /// Fills `buffer` with the next [`BUFFER`] bytes, or fewer at the end, where it stays empty.
    fn block(&mut self, mut buffer: Vec<u8>) -> io::Result<Vec<u8>> {
        buffer.resize(BUFFER, 0);
        let mut filled = 0;
        while filled < BUFFER {
            match self.read(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
            Self::Plain(input) => input.read(buffer),
        }
    }
}

/// What the first stage hands to the second one.
enum Block {
    Data(Vec<u8>),
    End,
}

/// Decompresses all of `input`. When the second stage takes no more, the rest is read for its digest alone, or, when
/// `hopeless`, not at all.
fn decode(
    mut input: Compressed,
    output: &std_mpsc::SyncSender<Block>,
    spare: &std_mpsc::Receiver<Vec<u8>>,
    hopeless: &AtomicBool,
) -> Decoded {
    let failure = decode_blocks(&mut input, output, spare).err().map(DecodeFailure::from);
    read_on(input, failure, || hopeless.load(Ordering::Acquire))
}

/// Reads the rest of `input` for its digest, unless that is `hopeless`.
fn read_on(mut input: Compressed, failure: Option<DecodeFailure>, hopeless: impl Fn() -> bool) -> Decoded {
    while !hopeless() {
        match input.fill_buf() {
            Ok([]) => {
                return Decoded { whole: Some((input.hasher.finish(), input.received)), failure };
            }
            Ok(rest) => {
                let length = rest.len();
                input.consume(length);
            }
            Err(_) => break,
        }
    }
    Decoded { whole: None, failure }
}

fn decode_blocks(
    input: &mut Compressed,
    output: &std_mpsc::SyncSender<Block>,
    spare: &std_mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut decoder = Decoder::new(input)?;
    loop {
        let buffer = decoder.block(spare.try_recv().unwrap_or_default())?;
        let ended = buffer.is_empty();
        let block = if ended { Block::End } else { Block::Data(buffer) };
        if output.send(block).is_err() || ended {
            return Ok(());
        }
    }
}

/// Where the decompressed archive comes from.
trait Source {
    /// The next block, or none at the end. `used` is the one before it, to be used again.
    fn next(&mut self, used: Vec<u8>) -> io::Result<Vec<u8>>;
}

/// From the first stage's thread.
struct Blocks {
    blocks: std_mpsc::Receiver<Block>,
    spare: std_mpsc::Sender<Vec<u8>>,
}

impl Source for Blocks {
    fn next(&mut self, used: Vec<u8>) -> io::Result<Vec<u8>> {
        if used.capacity() > 0 {
            // The first stage may have ended by now, and need no more buffers.
            let _ = self.spare.send(used);
        }
        match self.blocks.recv() {
            Ok(Block::Data(block)) => Ok(block),
            Ok(Block::End) => Ok(Vec::new()),
            // The first stage failed, and says why itself.
            Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The first stage itself, on the same thread.
struct Inline<'a> {
    /// Made with the first block, from `input`.
    decoder: Option<Decoder<'a>>,
    input: Option<&'a mut Compressed>,
    failure: Option<DecodeFailure>,
}

impl Inline<'_> {
    fn decode(&mut self, used: Vec<u8>) -> io::Result<Vec<u8>> {
        if let Some(input) = self.input.take() {
            self.decoder = Some(Decoder::new(input)?);
        }
        match &mut self.decoder {
            Some(decoder) => decoder.block(used),
            None => Ok(Vec::new()),
        }
    }
}

impl Source for Inline<'_> {
    fn next(&mut self, used: Vec<u8>) -> io::Result<Vec<u8>> {
        self.decode(used).map_err(|error| {
            self.decoder = None;
            self.failure = Some(error.into());
            // As when it comes from another thread.
            io::ErrorKind::UnexpectedEof.into()
        })
    }
}

impl<S: Source> Source for &mut S {
    fn next(&mut self, used: Vec<u8>) -> io::Result<Vec<u8>> {
        (**self).next(used)
    }
}

/// The decompressed archive as a reader that takes its digest.
struct Archive<S> {
    source: S,
    current: Vec<u8>,
    position: usize,
    hasher: Hasher,
    ended: bool,
}

impl<S> Archive<S> {
    fn new(source: S) -> Self {
        Self { source, current: Vec::new(), position: 0, hasher: Hasher::new(), ended: false }
    }
}

impl<S: Source> BufRead for Archive<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len() && !self.ended {
            let used = std::mem::take(&mut self.current);
            self.position = 0;
            self.current = self.source.next(used)?;
            self.hasher.update(&self.current);
            self.ended = self.current.is_empty();
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position = (self.position + amount).min(self.current.len());
    }
}

impl<S: Source> Read for Archive<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, buffer)
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
