//! The root access key of the account: made at first start, or given by the operator.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::Secret;

/// An access key and whose it is.
#[derive(Clone, Debug)]
pub struct AccessKey {
    pub id: String,
    pub secret: Secret,
}

/// Why the key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} has no {field} in its [default] section", path.display())]
    Incomplete { path: PathBuf, field: &'static str },
    #[error("an access key id has 16 to 128 letters and digits")]
    BadId,
    #[error("a secret access key has 8 to 128 printable characters without spaces")]
    BadSecret,
}

impl AccessKey {
    /// # Errors
    /// The parts do not have the form of a key.
    pub fn new(id: &str, secret: &str) -> Result<Self, KeyError> {
        if !(16..=128).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(KeyError::BadId);
        }
        if !(8..=128).contains(&secret.len()) || !secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(KeyError::BadSecret);
        }
        Ok(Self { id: id.to_owned(), secret: Secret::new(secret) })
    }

    fn random() -> Self {
        const ID_LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        const SECRET_LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let draw = |letters: &[u8], count: usize| -> String {
            (0..count).map(|_| char::from(letters[rand::random_range(0..letters.len())])).collect()
        };
        Self { id: format!("AKIA{}", draw(ID_LETTERS, 16)), secret: Secret::new(draw(SECRET_LETTERS, 40)) }
    }

    /// Reads the key from a file in the format of `~/.aws/credentials`, or makes one and writes the
    /// file with mode 0600.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no credentials file.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let key = Self::random();
                key.write(path)?;
                Ok(key)
            }
            other => other,
        }
    }

    /// Reads the key from a file in the format of `~/.aws/credentials`.
    ///
    /// # Errors
    /// The file cannot be read or is no credentials file.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(path);
        Self::parse(path, &text.map_err(|source| KeyError::Read { path: path.to_owned(), source })?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, KeyError> {
        let mut section = "";
        let (mut id, mut secret) = (None, None);
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name;
            } else if section == "default"
                && let Some((name, value)) = line.split_once('=')
            {
                match name.trim() {
                    "aws_access_key_id" => id = Some(value.trim()),
                    "aws_secret_access_key" => secret = Some(value.trim()),
                    _ => {}
                }
            }
        }
        let missing = |field| KeyError::Incomplete { path: path.to_owned(), field };
        Self::new(
            id.ok_or_else(|| missing("aws_access_key_id"))?,
            secret.ok_or_else(|| missing("aws_secret_access_key"))?,
        )
    }

    /// Replaces the file atomically.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let write = || -> io::Result<()> {
            let new = path.with_extension("new");
            let options =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
            let mut file = options?;
            writeln!(file, "[default]")?;
            writeln!(file, "aws_access_key_id = {}", self.id)?;
            writeln!(file, "aws_secret_access_key = {}", self.secret.expose())?;
            file.sync_all()?;
            std::fs::rename(&new, path)
        };
        write().map_err(|source| KeyError::Write { path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        let made = AccessKey::load_or_create(&path).unwrap();
        let read = AccessKey::load_or_create(&path).unwrap();
        assert_eq!((&made.id, made.secret.expose()), (&read.id, read.secret.expose()));
        assert_eq!(made.id.len(), 20);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{made:?}").contains(made.secret.expose()));
    }

    #[test]
    fn a_damaged_file_says_what_is_missing() {
        let error = AccessKey::parse(Path::new("x"), "[default]\naws_access_key_id = AKIAAAAAAAAAAAAAAAAA\n")
            .unwrap_err();
        assert!(error.to_string().contains("aws_secret_access_key"));
        assert!(matches!(AccessKey::new("short", "12345678"), Err(KeyError::BadId)));
        assert!(matches!(AccessKey::new("AKIAAAAAAAAAAAAAAAAA", "with space"), Err(KeyError::BadSecret)));
    }
}
