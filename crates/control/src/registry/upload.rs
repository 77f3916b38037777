//! Upload sessions: blobs on their way in.
//!
//! A session is a directory `<root>/uploads/<id>` with `session.json` (whose it is) and `data` (what
//! has arrived). The length of `data` is the session's offset, so a session survives a kill at any
//! moment. The running SHA-256 is kept in memory only and computed again from the file when it is
//! not there.
//!
//! Bytes are hashed and written on a blocking thread that owns the session's lock until it is done:
//! a client that disconnects cannot leave a write behind that lands after the next chunk.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use ring::digest;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::blob::{BlobFiles, sync_directory};
use super::error::RegistryError;
use super::name::{Digest, Namespace, RepositoryName, UploadId};

/// How long a request waits for another request's last bytes to reach the file.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long a client may send nothing in the middle of a body.
const BODY_IDLE: Duration = Duration::from_secs(60);
/// How long nobody has written to a session that makes room for a new one.
const ABANDONED: Duration = Duration::from_secs(600);
/// Chunks between the network and the disk; hyper's are at most some hundred KiB.
const CHUNKS_IN_FLIGHT: usize = 8;

/// The limits on uploads.
#[derive(Debug, Clone, Copy)]
pub struct UploadLimits {
    /// The longest blob, in bytes.
    pub max_blob_bytes: u64,
    /// The most sessions that one account may have at once.
    pub max_per_account: usize,
    /// How long a session lives after its last change.
    pub lifetime: Duration,
}

/// What `session.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Owner {
    namespace: Namespace,
    repository: RepositoryName,
}

/// An upload session.
#[derive(Debug)]
pub struct Session {
    id: UploadId,
    owner: Owner,
    directory: PathBuf,
    state: Arc<tokio::sync::Mutex<State>>,
}

/// What changes in a session, under its lock.
struct State {
    /// Bytes in `data`.
    offset: u64,
    /// The SHA-256 of those bytes, if it is known without reading the file.
    hash: Option<digest::Context>,
    /// Finished or cancelled: the directory is gone.
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("offset", &self.offset)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Its id.
    pub fn id(&self) -> UploadId {
        self.id
    }

    fn is_of(&self, namespace: &Namespace) -> bool {
        self.owner.namespace.account == namespace.account
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    async fn lock(&self) -> Result<OwnedMutexGuard<State>, RegistryError> {
        let state = timeout(LOCK_WAIT, self.state.clone().lock_owned())
            .await
            .map_err(|_| RegistryError::UploadBusy(self.id))?;
        if state.closed {
            return Err(RegistryError::UploadUnknown(self.id));
        }
        Ok(state)
    }

    /// The bytes received so far.
    pub async fn offset(&self) -> Result<u64, RegistryError> {
        Ok(self.lock().await?.offset)
    }
}

impl State {
    /// Ends the session. A directory that cannot be removed now is removed by the next start, which
    /// finds it incomplete. Blocking.
    fn close(&mut self, directory: &Path) {
        self.closed = true;
        let removed =
            fs::remove_file(directory.join("session.json")).and_then(|()| remove_directory(directory));
        if let Err(error) = removed {
            tracing::warn!(%error, ?directory, "an upload's files could not be removed");
        }
    }
}

/// A session whose content has been verified and is on stable storage.
#[derive(Debug)]
pub struct Sealed<'a> {
    uploads: &'a Uploads,
    session: &'a Session,
    state: OwnedMutexGuard<State>,
    digest: Digest,
}

impl Sealed<'_> {
    /// Makes the content a blob and ends the session. Returns the blob's length in bytes. After an
    /// error the session goes on.
    pub async fn adopt(self, blobs: &BlobFiles) -> Result<u64, RegistryError> {
        let (data, directory) = (self.session.data(), self.session.directory.clone());
        let (blobs, digest, mut state) = (blobs.clone(), self.digest, self.state);
        let adopted = spawn_blocking(move || -> Result<u64, RegistryError> {
            blobs.adopt(&data, &digest)?;
            state.close(&directory);
            Ok(state.offset)
        })
        .await;
        let length = flatten(adopted)?;
        self.uploads.sessions().remove(&self.session.id);
        Ok(length)
    }
}

/// All upload sessions.
#[derive(Debug)]
pub struct Uploads {
    directory: PathBuf,
    limits: UploadLimits,
    sessions: Mutex<HashMap<UploadId, Arc<Session>>>,
}

impl Uploads {
    /// Opens the sessions under `root`, those of before a restart included. Blocking.
    pub fn open(root: &Path, limits: UploadLimits) -> io::Result<Self> {
        let directory = root.join("uploads");
        fs::create_dir_all(&directory)?;
        sync_directory(root)?;
        let mut sessions = HashMap::new();
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            match read_session(&path) {
                Some(session) => {
                    sessions.insert(session.id, Arc::new(session));
                }
                // Interrupted while it was made or removed: nobody was promised it.
                None => remove_directory(&path)?,
            }
        }
        Ok(Self { directory, limits, sessions: Mutex::new(sessions) })
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Session>>> {
        // A map of handles is whole after any panic.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an upload to `repository`. An account that has as many as it may loses the one that was
    /// left alone the longest, if that is long: clients that are interrupted do not cancel.
    pub async fn begin(
        &self,
        namespace: &Namespace,
        repository: &RepositoryName,
    ) -> Result<Arc<Session>, RegistryError> {
        if self.count(namespace) >= self.limits.max_per_account {
            self.drop_abandoned(namespace).await;
        }
        let id = UploadId::random();
        let session = Arc::new(Session {
            id,
            owner: Owner { namespace: namespace.clone(), repository: repository.clone() },
            directory: self.directory.join(id.to_string()),
            state: Arc::new(tokio::sync::Mutex::new(State {
                offset: 0,
                hash: Some(digest::Context::new(&digest::SHA256)),
                closed: false,
            })),
        });
        {
            // Counted and inserted in one step, so that the bound holds under concurrency.
            let mut sessions = self.sessions();
            let open = sessions.values().filter(|other| other.is_of(namespace)).count();
            if open >= self.limits.max_per_account {
                return Err(RegistryError::TooManyUploads(open));
            }
            sessions.insert(id, session.clone());
        }
        let (directory, owner) = (session.directory.clone(), session.owner.clone());
        let made = spawn_blocking(move || make_session(&directory, &owner)).await;
        if let Err(error) = flatten(made) {
            self.sessions().remove(&id);
            let _ = fs::remove_dir_all(&session.directory);
            return Err(error);
        }
        Ok(session)
    }

    /// The session of that id, if it uploads to that repository.
    pub fn find(
        &self,
        namespace: &Namespace,
        repository: &RepositoryName,
        id: UploadId,
    ) -> Result<Arc<Session>, RegistryError> {
        self.sessions()
            .get(&id)
            .filter(|session| {
                session.owner.namespace == *namespace && session.owner.repository == *repository
            })
            .cloned()
            .ok_or(RegistryError::UploadUnknown(id))
    }

    /// Appends `body` to the session and returns its new offset. With `start` the session must have
    /// arrived exactly there; with `length` the body must have that many bytes, and a complete body of
    /// another length is dropped again. What arrives before an interruption is kept.
    pub async fn append<S, E>(
        &self,
        session: &Session,
        start: Option<u64>,
        length: Option<u64>,
        mut body: S,
    ) -> Result<u64, RegistryError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
    {
        let state = session.lock().await?;
        if start.is_some_and(|start| start != state.offset) {
            return Err(RegistryError::OffsetMismatch { expected: state.offset });
        }
        let limit = self.limits.max_blob_bytes;
        let before = state.offset;
        if length.is_some_and(|length| length > limit.saturating_sub(before)) {
            return Err(RegistryError::BlobTooLarge(limit));
        }
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let data = session.data();
        let writer = spawn_blocking(move || write_chunks(state, &data, receiver, limit, length));
        let mut interrupted = false;
        loop {
            let piece = match timeout(BODY_IDLE, body.next()).await {
                Ok(None) => Piece::End,
                Ok(Some(Ok(chunk))) => Piece::Chunk(chunk),
                Ok(Some(Err(_))) | Err(_) => {
                    interrupted = true;
                    break;
                }
            };
            let last = matches!(piece, Piece::End);
            // If the writer has stopped, its result says why.
            if sender.send(piece).await.is_err() || last {
                break;
            }
        }
        drop(sender);
        let after = flatten(writer.await)?;
        if interrupted {
            return Err(RegistryError::BodyInterrupted);
        }
        Ok(after)
    }

    /// Checks that the session's content has the digest, and makes it durable. Content of another
    /// digest ends the session. No other request can touch it until the result is dropped.
    pub async fn seal<'a>(
        &'a self,
        session: &'a Session,
        expected: Digest,
    ) -> Result<Sealed<'a>, RegistryError> {
        let mut state = session.lock().await?;
        let (data, directory) = (session.data(), session.directory.clone());
        let sealed = spawn_blocking(move || -> Result<_, RegistryError> {
            let hash = match state.hash.take() {
                Some(hash) => hash,
                None => hash_file(&data, state.offset)?,
            };
            let actual = Digest::finish(hash.clone().finish());
            if actual != expected {
                state.close(&directory);
                return Err(RegistryError::DigestMismatch { expected, actual });
            }
            // Put back, so that another try after an I/O error costs no second reading.
            state.hash = Some(hash);
            File::open(&data)?.sync_all()?;
            Ok(state)
        })
        .await;
        match flatten(sealed) {
            Ok(state) => Ok(Sealed { uploads: self, session, state, digest: expected }),
            Err(error) => {
                if matches!(error, RegistryError::DigestMismatch { .. }) {
                    self.sessions().remove(&session.id);
                }
                Err(error)
            }
        }
    }

    /// Cancels the session and removes what it received.
    pub async fn cancel(&self, session: &Session) -> Result<(), RegistryError> {
        let mut state = session.lock().await?;
        let directory = session.directory.clone();
        let closed = spawn_blocking(move || {
            state.close(&directory);
            Ok::<_, RegistryError>(())
        })
        .await;
        self.sessions().remove(&session.id);
        flatten(closed)
    }

    /// Cancels the sessions that nobody has written to for their lifetime before `now`. Returns how
    /// many.
    pub async fn expire(&self, now: SystemTime) -> usize {
        let mut expired = 0;
        for (idle, session) in self.idle(now, |_| true) {
            if idle >= self.limits.lifetime && self.cancel(&session).await.is_ok() {
                expired += 1;
            }
        }
        expired
    }

    /// Cancels all sessions.
    pub async fn clear(&self) -> Result<(), RegistryError> {
        let sessions: Vec<_> = self.sessions().values().cloned().collect();
        for session in sessions {
            match self.cancel(&session).await {
                Ok(()) | Err(RegistryError::UploadUnknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn count(&self, namespace: &Namespace) -> usize {
        self.sessions().values().filter(|session| session.is_of(namespace)).count()
    }

    /// Cancels the account's session that was left alone the longest, if that is long.
    async fn drop_abandoned(&self, namespace: &Namespace) {
        let idle = self.idle(SystemTime::now(), |session| session.is_of(namespace));
        if let Some((_, session)) =
            idle.into_iter().max_by_key(|(idle, _)| *idle).filter(|(idle, _)| *idle >= ABANDONED)
        {
            // If it goes on after all, there is no room.
            let _ = self.cancel(&session).await;
        }
    }

    /// The sessions that nobody is writing to, with the time since somebody did.
    fn idle(&self, now: SystemTime, which: impl Fn(&Session) -> bool) -> Vec<(Duration, Arc<Session>)> {
        let sessions: Vec<_> = self.sessions().values().filter(|session| which(session)).cloned().collect();
        let idle = sessions.into_iter().filter_map(|session| {
            let _unused = session.state.try_lock().ok()?;
            let changed = fs::metadata(session.data()).and_then(|metadata| metadata.modified());
            let idle = now.duration_since(changed.ok()?).ok()?;
            Some((idle, session.clone()))
        });
        idle.collect()
    }
}

/// A part of a body on its way to the file. A body without an end was interrupted.
enum Piece {
    Chunk(Bytes),
    End,
}

/// Joins a blocking task's two results. Blocking tasks here do not panic and are never aborted
/// except when the runtime is going away.
fn flatten<T, E: Into<RegistryError>>(
    joined: Result<Result<T, E>, tokio::task::JoinError>,
) -> Result<T, RegistryError> {
    match joined {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(RegistryError::Files(io::Error::other(error))),
    }
}

/// Makes a session's directory. Its `session.json` comes last: without it, it is not a session.
fn make_session(directory: &Path, owner: &Owner) -> io::Result<()> {
    fs::create_dir(directory)?;
    File::create_new(directory.join("data"))?;
    let owner = serde_json::to_vec(owner).map_err(io::Error::other)?;
    let temporary = directory.join("session.json.new");
    let mut file = File::create_new(&temporary)?;
    file.write_all(&owner)?;
    fs::rename(temporary, directory.join("session.json"))
}

fn read_session(directory: &Path) -> Option<Session> {
    let id = directory.file_name()?.to_str()?.parse().ok()?;
    let owner = serde_json::from_slice(&fs::read(directory.join("session.json")).ok()?).ok()?;
    let offset = fs::metadata(directory.join("data")).ok()?.len();
    Some(Session {
        id,
        owner,
        directory: directory.to_owned(),
        state: Arc::new(tokio::sync::Mutex::new(State { offset, hash: None, closed: false })),
    })
}

fn remove_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a body to the end of the session's data and returns the new offset. After an error, or when
/// a complete body has not its announced `length`, the file is cut back to what the session had before.
fn write_chunks(
    mut state: OwnedMutexGuard<State>,
    data: &Path,
    mut body: mpsc::Receiver<Piece>,
    limit: u64,
    length: Option<u64>,
) -> Result<u64, RegistryError> {
    let before = state.offset;
    let mut file = OpenOptions::new().append(true).open(data)?;
    let mut hash = state.hash.take();
    let mut offset = before;
    let mut write = || -> Result<(), RegistryError> {
        loop {
            let chunk = match body.blocking_recv() {
                Some(Piece::Chunk(chunk)) => chunk,
                Some(Piece::End) => {
                    let actual = offset - before;
                    return match length {
                        Some(expected) if expected != actual => {
                            Err(RegistryError::SizeMismatch { expected, actual })
                        }
                        _ => Ok(()),
                    };
                }
                None => return Ok(()),
            };
            let added = chunk.len() as u64;
            if added > limit.saturating_sub(offset) {
                return Err(RegistryError::BlobTooLarge(limit));
            }
            file.write_all(&chunk)?;
            if let Some(hash) = &mut hash {
                hash.update(&chunk);
            }
            offset += added;
        }
    };
    let written = write();
    match written {
        Ok(()) => {
            state.offset = offset;
            state.hash = hash;
            Ok(offset)
        }
        Err(error) => {
            // The hash covers bytes that are being dropped: it will be computed from the file.
            if let Err(error) = file.set_len(before) {
                // The file's end is unknown: this session cannot go on.
                state.closed = true;
                return Err(error.into());
            }
            Err(error)
        }
    }
}

fn hash_file(path: &Path, expected: u64) -> io::Result<digest::Context> {
    let mut file = File::open(path)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 256 << 10];
    let mut length = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => {
                hash.update(&buffer[..read]);
                length += read as u64;
            }
        }
    }
    if length == expected {
        Ok(hash)
    } else {
        Err(io::Error::other("the upload's file has another length than it was written with"))
    }
}
