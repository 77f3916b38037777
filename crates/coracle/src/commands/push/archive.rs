//! The files of an image archive: of a directory, or of a tar file that is read in place.
//!
//! Nothing is unpacked. Names that lead out of the archive are refused, so nothing but its own files
//! is ever read or sent.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use flate2::read::MultiGzDecoder;

/// Image archives have a few files per layer.
const MAX_ENTRIES: usize = 100_000;

/// What a compressed archive may become, in bytes.
const MAX_UNCOMPRESSED: u64 = 256 << 30;

/// Links to links, as `docker save` once made them between layers.
const MAX_LINKS: usize = 8;

/// Some bytes of a file.
#[derive(Clone, Debug)]
pub struct Extent {
    file: Arc<File>,
    offset: u64,
    pub len: u64,
}

impl Extent {
    /// Fills the buffer with what is at `position`, as far as there is something.
    pub fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let left = self.len.saturating_sub(position);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.file.read_at(&mut buffer[..wanted], self.offset.saturating_add(position))
    }

    pub fn reader(&self) -> ExtentReader<'_> {
        ExtentReader { extent: self, position: 0 }
    }
}

/// Reads an extent from its beginning.
pub struct ExtentReader<'e> {
    extent: &'e Extent,
    position: u64,
}

impl Read for ExtentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.extent.read_at(buffer, self.position)?;
        if read == 0 && self.position < self.extent.len && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

/// The files by name.
pub enum Archive {
    Directory(PathBuf),
    Tar { file: Arc<File>, entries: HashMap<String, Entry> },
}

/// What a tar file has under a name.
pub enum Entry {
    File { offset: u64, len: u64 },
    Link(String),
}

impl Archive {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
        if metadata.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if !metadata.is_file() {
            bail!("{shown} is neither a file nor a directory");
        }
        let mut file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
        let mut magic = [0; 4];
        let read = file.read_at(&mut magic, 0).with_context(|| format!("cannot read {shown}"))?;
        if magic[..read].starts_with(&[0x1f, 0x8b]) {
            file = uncompressed(file).with_context(|| format!("cannot uncompress {shown}"))?;
        } else if magic == [0x28, 0xb5, 0x2f, 0xfd] {
            bail!("{shown} is compressed with zstd; uncompress it first (zstd -d)");
        }
        let entries = index(&file).with_context(|| {
            format!("{shown} is neither an OCI layout nor a docker-archive (docker save), or it is damaged")
        })?;
        Ok(Self::Tar { file: Arc::new(file), entries })
    }

    /// The file of that name, or nothing.
    pub fn find(&self, name: &str) -> anyhow::Result<Option<Extent>> {
        let mut name = inside(name)?;
        match self {
            Self::Directory(directory) => {
                let file = match File::open(directory.join(&name)) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
                };
                let metadata = file.metadata().with_context(|| format!("cannot read {name}"))?;
                if !metadata.is_file() {
                    bail!("{name} is not a file");
                }
                Ok(Some(Extent { file: Arc::new(file), offset: 0, len: metadata.len() }))
            }
            Self::Tar { file, entries } => {
                for _ in 0..MAX_LINKS {
                    match entries.get(&name) {
                        None => return Ok(None),
                        Some(Entry::File { offset, len }) => {
                            return Ok(Some(Extent { file: Arc::clone(file), offset: *offset, len: *len }));
                        }
                        Some(Entry::Link(target)) => name.clone_from(target),
                    }
                }
                bail!("{name} is a link that leads nowhere")
            }
        }
    }

    /// A whole file of at most `limit` bytes, or nothing.
    pub fn read(&self, name: &str, limit: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(extent) = self.find(name)? else { return Ok(None) };
        if extent.len > limit {
            bail!("{name} has {} bytes, more than the {limit} that it may have", extent.len);
        }
        let mut bytes = Vec::new();
        extent.reader().read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
        Ok(Some(bytes))
    }
}

/// A name in the archive as it is kept: relative, without `.`, and not leading out.
fn inside(name: &str) -> anyhow::Result<String> {
    resolved("", name)
}

/// `name` as seen from the directory `base`.
fn resolved(base: &str, name: &str) -> anyhow::Result<String> {
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for component in Path::new(name).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str().context("a name in it is not UTF-8")?),
            Component::ParentDir if parts.pop().is_some() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("'{}' leads out of the archive", name.escape_debug())
            }
        }
    }
    Ok(parts.join("/"))
}

fn index(file: &File) -> anyhow::Result<HashMap<String, Entry>> {
    let size = file.metadata().context("cannot read its size")?.len();
    let mut tar = tar::Archive::new(BufReader::new(file));
    let mut entries = HashMap::new();
    for entry in tar.entries_with_seek().context("cannot read it")? {
        let entry = entry.context("cannot read an entry")?;
        if entries.len() == MAX_ENTRIES {
            bail!("it has more than {MAX_ENTRIES} entries");
        }
        let path = entry.path_bytes();
        let name = std::str::from_utf8(&path).context("a name in it is not UTF-8")?;
        if name.split('/').any(|part| part == "..") {
            bail!("'{}' leads out of the archive", name.escape_debug());
        }
        let name = inside(name)?;
        let kind = entry.header().entry_type();
        if kind.is_file() || kind.is_contiguous() {
            let (offset, len) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(len).is_none_or(|end| end > size) {
                bail!("it is truncated: {name} goes on beyond its end");
            }
            entries.insert(name, Entry::File { offset, len });
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = std::str::from_utf8(&target).context("a link's target is not UTF-8")?;
            // A hard link's target is seen from the archive's root, a symbolic one's from its directory.
            let base =
                if kind.is_symlink() { name.rsplit_once('/').map_or("", |(base, _)| base) } else { "" };
            entries.insert(name.clone(), Entry::Link(resolved(base, target)?));
        } else if kind.is_gnu_sparse() {
            bail!("{name} is a sparse file, which image archives do not have");
        }
    }
    if entries.is_empty() {
        bail!("it has no files");
    }
    Ok(entries)
}

/// The content of a gzip file in a file without a name.
fn uncompressed(file: File) -> anyhow::Result<File> {
    let path = std::env::temp_dir().join(format!(".coracle-push-{:016x}", rand::random::<u64>()));
    let shown = path.display().to_string();
    let made = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let mut plain = made.with_context(|| format!("cannot create {shown}"))?;
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {shown}"))?;
    let mut decoder = MultiGzDecoder::new(BufReader::new(file)).take(MAX_UNCOMPRESSED + 1);
    let mut buffer = vec![0; 1 << 18];
    let mut total = 0u64;
    loop {
        let read = decoder.read(&mut buffer).context("it is damaged or truncated")?;
        if read == 0 {
            plain.rewind().context("cannot go back to its beginning")?;
            return Ok(plain);
        }
        total += read as u64;
        if total > MAX_UNCOMPRESSED {
            bail!("its content has more than {} GiB", MAX_UNCOMPRESSED >> 30);
        }
        plain
            .write_all(&buffer[..read])
            .with_context(|| format!("cannot write to {}", std::env::temp_dir().display()))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(inside("./blobs/sha256/x").unwrap(), "blobs/sha256/x");
        assert_eq!(resolved("a", "../b/layer.tar").unwrap(), "b/layer.tar");
        for bad in ["/etc/passwd", "..", "a/../../b"] {
            assert!(inside(bad).is_err(), "{bad}");
        }
        assert!(resolved("a", "../../etc/passwd").is_err());
        assert!(resolved("a", "/etc/passwd").is_err());
    }
}
