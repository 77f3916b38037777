//! The state file: how it comes to be, how it is recognised, how connections to it are set up.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::fault::Fault;
use crate::{Error, Revision};

/// "CORA": in SQLite's header field for the owner of a file (<https://sqlite.org/fileformat2.html>, 1.3.14).
const APPLICATION_ID: i64 = 0x434F_5241;
/// The format that this program writes.
const FORMAT: i64 = 1;

/// How long to wait for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// `kv` has row ids, so that pages of its key index hold keys only and stay few; the value is the last
/// column, so that reading the others never touches its overflow pages. `crc` is that of [`row_crc`]: SQLite's
/// pages have no checksums.
const SCHEMA: &str = "
    CREATE TABLE state (revision INTEGER NOT NULL) STRICT;
    INSERT INTO state VALUES (0);
    CREATE TABLE kv (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        create_revision INTEGER NOT NULL,
        mod_revision INTEGER NOT NULL,
        lease INTEGER,
        crc INTEGER NOT NULL,
        value BLOB NOT NULL
    ) STRICT;
    CREATE INDEX kv_by_lease ON kv (lease) WHERE lease IS NOT NULL;
    CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL) STRICT;
";

/// Opens the state for writing, creates it if it is not there, and checks that it is ours and whole.
pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    if !exists(path)? {
        create(path)?;
    }
    refuse_foreign(path)?;
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|e| e.on(path))?;
    recognise(&conn, path)?;
    let mode = set_up_writer(&conn).map_err(|fault| fault.on(path))?;
    if mode != "wal" {
        // Without shared memory (a network file system) SQLite stays in its old mode.
        let unsupported = io::Error::new(
            io::ErrorKind::Unsupported,
            "the file system does not support a write-ahead log; use a local one",
        );
        return Err(io_error("open", path, unsupported));
    }
    check(&conn, path)?;
    Ok(conn)
}

/// The CRC-32 of what a row says: of key, revision and value.
pub(super) fn row_crc(key: &[u8], mod_revision: Revision, value: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(&mod_revision.0.to_le_bytes());
    crc.update(value);
    crc.finalize()
}

/// A connection for reading. (Not read-only for SQLite: after a crash the first reader may have to
/// rebuild the write-ahead log's index.)
pub(super) fn open_reader(path: &Path) -> Result<Connection, Fault> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

fn connect(path: &Path, mode: OpenFlags) -> Result<Connection, Fault> {
    // Each connection is used by one thread at a time: SQLite's own mutexes are not needed.
    let conn = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(32);
    // Never temporary files outside the state directory.
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(conn)
}

/// Returns the journal mode that the file then has.
fn set_up_writer(conn: &Connection) -> Result<String, Fault> {
    let mode = write_ahead_log(conn)?;
    // FULL: a commit returns after the log is synced (<https://sqlite.org/pragma.html#pragma_synchronous>).
    conn.pragma_update(None, "synchronous", "FULL")?;
    // Only a backstop, in pages: the writer checkpoints earlier, between batches.
    conn.pragma_update(None, "wal_autocheckpoint", 8000)?;
    // What a burst left behind is given back to the file system at the next restart of the log.
    conn.pragma_update(None, "journal_size_limit", 64 << 20)?;
    Ok(mode)
}

/// SQLite does not wait for its timeout where two connections that wait for each other would wait for ever, as those of
/// two openers may here (<https://sqlite.org/c3ref/busy_handler.html>): it is asked again.
fn write_ahead_log(conn: &Connection) -> Result<String, Fault> {
    let end = Instant::now() + BUSY_TIMEOUT;
    loop {
        match conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(Fault::from) {
            Err(fault) if fault.is_busy() && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            mode => return mode,
        }
    }
}

/// The file may be there with any content, so the state is made whole under another name, and gets its
/// name in one step; an empty or half-made file under that name is then never one of ours.
fn create(path: &Path) -> Result<(), Error> {
    let wal = beside(path, "-wal");
    if exists(&wal)? {
        return Err(Error::Corrupt {
            path: path.to_owned(),
            detail: format!("it is missing, but its log {} is there", wal.display()),
        });
    }
    let parent = parent(path);
    create_directories(parent)?;
    let draft = beside(path, &format!(".new-{:016x}", rand::random::<u64>()));
    let _cleanup = RemoveOnDrop(&draft);
    create_private(&draft)?;
    initialise(&draft).map_err(|fault| fault.on(&draft))?;
    publish(&draft, path).or_else(|error| match error {
        // Another opener was faster; its file is as good.
        Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        error => Err(error),
    })
}

fn initialise(draft: &Path) -> Result<(), Fault> {
    let conn = connect(draft, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Not yet with a log: the header must be in the file itself.
    conn.execute_batch(&format!(
        "PRAGMA synchronous = FULL;
         BEGIN;
         PRAGMA application_id = {APPLICATION_ID};
         PRAGMA user_version = {FORMAT};
         {SCHEMA}
         COMMIT;"
    ))?;
    Ok(conn.close().map_err(|(_, error)| error)?)
}

/// Gives the finished file `draft` its name, durably, unless the name is taken.
pub(super) fn publish(draft: &Path, path: &Path) -> Result<(), Error> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let failed = |source: io::Error| io_error("create", path, source);
    File::open(draft).and_then(|file| file.sync_all()).map_err(failed)?;
    match renameat_with(CWD, draft, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Not every file system can: a hard link, too, fails on a name that is taken.
        Err(rustix::io::Errno::INVAL) => std::fs::hard_link(draft, path).map_err(failed)?,
        Err(error) => return Err(failed(error.into())),
    }
    sync_directory(parent(path))
}

/// Opens a new, empty file of mode 0600.
pub(super) fn create_private(path: &Path) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|source| io_error("create", path, source))
}

/// The directories' own entries are made durable, too.
fn create_directories(directory: &Path) -> Result<(), Error> {
    if exists(directory)? {
        return Ok(());
    }
    let above = parent(directory);
    create_directories(above)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error("create", directory, error))
        }
        _ => sync_directory(above),
    }
}

fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| io_error("sync", directory, source))
}

/// Before SQLite sees the file: it takes an empty one for a new database, and deletes the log beside it.
fn refuse_foreign(path: &Path) -> Result<(), Error> {
    let metadata = std::fs::metadata(path).map_err(|source| io_error("open", path, source))?;
    if !metadata.is_file() {
        return Err(Error::Foreign { path: path.to_owned(), detail: "it is not a regular file".to_owned() });
    }
    if metadata.len() == 0 {
        return Err(Error::Corrupt { path: path.to_owned(), detail: "the file is empty".to_owned() });
    }
    // SQLite reports a file that it may not open without saying why.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| io_error("open", path, source))?;
    refuse_cut(&file, path).map_err(|source| io_error("open", path, source))?
}

/// A file that lost its end. SQLite reads missing bytes as zeros, and takes those in a value for the value.
///
/// Only without a log: after a crash amid a checkpoint the end may still have to come from the log.
fn refuse_cut(file: &File, path: &Path) -> io::Result<Result<(), Error>> {
    match std::fs::metadata(beside(path, "-wal")) {
        Ok(log) if log.len() > 0 => return Ok(Ok(())),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Page size and number of pages in the header (<https://sqlite.org/fileformat2.html>, 1.3.2 and
    // 1.3.8). What is not SQLite's is found out later.
    let mut header = [0; 32];
    if file.read_exact_at(&mut header, 0).is_err() || !header.starts_with(b"SQLite format 3\0") {
        return Ok(Ok(()));
    }
    let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        bytes => u64::from(bytes),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    let expected = u64::from(pages) * page_bytes;
    let length = file.metadata()?.len();
    if length < expected {
        return Ok(Err(Error::Corrupt {
            path: path.to_owned(),
            detail: format!("it has {length} bytes of {expected}"),
        }));
    }
    Ok(Ok(()))
}

fn recognise(conn: &Connection, path: &Path) -> Result<(), Error> {
    let pragma = |name: &str| -> Result<i64, Fault> {
        Ok(conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))?)
    };
    let foreign = |detail: &str| Error::Foreign { path: path.to_owned(), detail: detail.to_owned() };
    let owner = pragma("application_id").map_err(|fault| {
        if fault.is_not_a_database() {
            foreign("its content is not a database, or its first bytes are damaged")
        } else {
            fault.on(path)
        }
    })?;
    if owner != APPLICATION_ID {
        return Err(foreign("it is a database of another program"));
    }
    let format = pragma("user_version").map_err(|fault| fault.on(path))?;
    if format > FORMAT {
        return Err(Error::NewerFormat { path: path.to_owned(), found: format, supported: FORMAT });
    }
    if format < FORMAT {
        return Err(foreign(&format!("there is no format {format}")));
    }
    Ok(())
}

/// Reads all of the structure, so that damage is known now and not when a task needs the page.
fn check(conn: &Connection, path: &Path) -> Result<(), Error> {
    let verdict: String = conn
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| Fault::from(error).on(path))?;
    if verdict != "ok" {
        return Err(Error::Corrupt { path: path.to_owned(), detail: verdict.replace('\n', " ") });
    }
    Ok(())
}

pub(super) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|source| io_error("open", path, source))
}

pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::StorageFull {
        return Error::NoSpace { path: path.to_owned() };
    }
    Error::Io { action, path: path.to_owned(), source }
}

/// `path` with `suffix` appended to its last part.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The directory that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ if path.is_absolute() => Path::new("/"),
        _ => Path::new("."),
    }
}

/// Removes a draft that did not get its final name, with what SQLite puts beside it.
pub(super) struct RemoveOnDrop<'a>(pub(super) &'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            // Usually there is none; if one stays, it is in nobody's way.
            let _ = std::fs::remove_file(beside(self.0, suffix));
        }
    }
}
