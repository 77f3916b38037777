//! The open files that came with a request.

use std::os::fd::OwnedFd;

use model::microvm::Attached;

/// Each can be taken once; those never taken are closed with this.
#[derive(Debug, Default)]
pub struct Files(Vec<Option<OwnedFd>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request speaks of attached file {0}, which is not there or was spoken of before")]
pub struct MissingFile(u8);

impl Files {
    #[must_use]
    pub fn new(files: Vec<OwnedFd>) -> Self {
        Self(files.into_iter().map(Some).collect())
    }

    /// # Errors
    /// There is no such file, or it was taken already.
    pub fn take(&mut self, which: Attached) -> Result<OwnedFd, MissingFile> {
        self.0.get_mut(usize::from(which.0)).and_then(Option::take).ok_or(MissingFile(which.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_once() {
        let mut files = Files::new(vec![tempfile::tempfile().unwrap().into()]);
        files.take(Attached(0)).unwrap();
        assert_eq!(files.take(Attached(0)).unwrap_err(), MissingFile(0));
        assert_eq!(files.take(Attached(1)).unwrap_err(), MissingFile(1));
    }
}
