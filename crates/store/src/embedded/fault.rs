//! SQLite's errors in the store's terms.

use std::path::Path;
use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::Error;

/// An SQLite error; cloneable, because one failure can fail many transactions.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Fault(Arc<rusqlite::Error>);

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        Fault(Arc::new(error))
    }
}

impl Fault {
    /// The file system that holds the state is full.
    pub(super) fn is_no_space(&self) -> bool {
        // SQLITE_FULL is what SQLite makes of ENOSPC on write. Growing the memory-mapped index of
        // the write-ahead log reports the same cause as an I/O error of its own kind.
        match self.0.sqlite_error() {
            Some(error) => {
                error.code == ErrorCode::DiskFull
                    || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
            }
            None => false,
        }
    }

    /// Another process holds the file locked.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.0.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    pub(super) fn is_not_a_database(&self) -> bool {
        self.0.sqlite_error_code() == Some(ErrorCode::NotADatabase)
    }

    /// The file contradicts itself or its schema.
    fn is_damage(&self) -> bool {
        match &*self.0 {
            rusqlite::Error::QueryReturnedNoRows
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::InvalidColumnType(..) => true,
            error => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ),
        }
    }

    pub(super) fn on(self, path: &Path) -> Error {
        let path = path.to_owned();
        if self.is_no_space() {
            Error::NoSpace { path }
        } else if self.is_damage() {
            Error::Corrupt { path, detail: self.to_string() }
        } else {
            Error::Engine { path, source: Box::new(self) }
        }
    }
}
