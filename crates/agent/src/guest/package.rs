//! Reads a Debian binary package (deb(5)): an `ar` archive of `debian-binary`, `control.tar.*` and
//! `data.tar.*`.

use std::io::{self, BufReader, Read};

use super::decompress::decompress;
use crate::image::layer::{Kind, TarError, TarReader};

/// The longest package file, in bytes: Debian's largest kernel package has 100 MB.
pub(super) const PACKAGE_MAX: u64 = 1 << 30;
/// The most that is read of an unpacked archive in it, in bytes.
const UNPACKED_MAX: u64 = 4 << 30;
const CONTROL_MAX: u64 = 1 << 20;
const ENTRIES_MAX: u64 = 200_000;

/// What a package says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) package: String,
    pub(super) version: String,
    pub(super) architecture: String,
}

/// Why a package could not be read.
#[derive(Debug)]
pub(super) enum PackageError {
    Malformed(String),
    /// What was made of a file failed.
    Sink(super::GuestError),
}

impl From<io::Error> for PackageError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Malformed("it ends too early".into());
        }
        Self::Malformed(format!("it cannot be read: {error}"))
    }
}

impl From<TarError> for PackageError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Truncated => Self::Malformed("an archive in it ends too early".into()),
            TarError::Malformed(why) => Self::Malformed(format!("an archive in it is damaged: {why}")),
            TarError::Io(error) => error.into(),
        }
    }
}

/// Where the regular files of a package go.
pub(super) trait Sink {
    /// How many bytes of the file at `path` (`boot/vmlinuz-6.1`) are wanted at most; `None`: none of it.
    fn wants(&mut self, path: &str) -> Option<u64>;
    fn file(&mut self, path: &str, content: Vec<u8>) -> Result<(), super::GuestError>;
}

/// Reads a package from beginning to end.
///
/// # Errors
/// It is not one, is damaged, or holds a wanted file longer than wanted; or what the sink said.
pub(super) fn read(package: impl Read, sink: &mut impl Sink) -> Result<Control, PackageError> {
    let mut package = package.take(PACKAGE_MAX);
    let mut magic = [0; 8];
    package.read_exact(&mut magic)?;
    if &magic != b"!<arch>\n" {
        return Err(PackageError::Malformed("it is not a Debian package".into()));
    }
    let mut control = None;
    let mut saw_data = false;
    while let Some((name, length)) = member(&mut package)? {
        let mut content = package.by_ref().take(length);
        match name.split_once(".tar").map_or(name.as_str(), |(stem, _)| stem) {
            "control" => control = Some(read_control(&mut content)?),
            "data" => {
                read_data(&mut content, sink)?;
                saw_data = true;
            }
            _ => {}
        }
        // What follows an archive's end, and the byte that makes the length even.
        io::copy(&mut content, &mut io::sink())?;
        if content.limit() > 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if length % 2 == 1 {
            io::copy(&mut package.by_ref().take(1), &mut io::sink())?;
        }
    }
    match control {
        Some(control) if saw_data => Ok(control),
        _ => Err(PackageError::Malformed("it ends too early".into())),
    }
}

/// The next member's name and length, or `None` at the end.
fn member(archive: &mut impl Read) -> Result<Option<(String, u64)>, PackageError> {
    let mut header = Vec::with_capacity(60);
    archive.take(60).read_to_end(&mut header)?;
    if header.is_empty() {
        return Ok(None);
    }
    let malformed = || PackageError::Malformed("it is a damaged Debian package".into());
    if header.len() != 60 || &header[58..] != b"`\n" {
        return Err(malformed());
    }
    let text = |range| str::from_utf8(&header[range]).map(|field| field.trim_end().to_owned());
    let name = text(0..16).map_err(|_| malformed())?;
    let length = text(48..58).map_err(|_| malformed())?;
    Ok(Some((name.trim_end_matches('/').to_owned(), length.parse().map_err(|_| malformed())?)))
}

fn unpacked<'a>(content: &'a mut (impl Read + 'a)) -> io::Result<TarReader<BufReader<impl Read + 'a>>> {
    Ok(TarReader::new(BufReader::with_capacity(256 << 10, decompress(content)?.take(UNPACKED_MAX))))
}

/// A path in the package, without the `./` before it.
fn path_of(path: &[u8]) -> Option<&str> {
    let path = str::from_utf8(path).ok()?;
    Some(path.strip_prefix("./").unwrap_or(path))
}

fn read_control(content: &mut impl Read) -> Result<Control, PackageError> {
    let mut archive = unpacked(content)?;
    while let Some(entry) = archive.next()? {
        if entry.kind == Kind::File && path_of(&entry.path) == Some("control") {
            let text = read_file(&mut archive, "control", CONTROL_MAX)?;
            let text = String::from_utf8(text)
                .map_err(|_| PackageError::Malformed("its control file is not text".into()))?;
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .map(|value| value.trim().to_owned())
                    .ok_or_else(|| PackageError::Malformed(format!("its control file has no field {name}")))
            };
            return Ok(Control {
                package: field("Package")?,
                version: field("Version")?,
                architecture: field("Architecture")?,
            });
        }
    }
    Err(PackageError::Malformed("it has no control file".into()))
}

fn read_data(content: &mut impl Read, sink: &mut impl Sink) -> Result<(), PackageError> {
    let mut archive = unpacked(content)?;
    let mut entries = 0;
    while let Some(entry) = archive.next()? {
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(PackageError::Malformed("it holds too many files".into()));
        }
        let (Kind::File, None, Some(path)) = (entry.kind, &entry.sparse, path_of(&entry.path)) else {
            continue;
        };
        if let Some(most) = sink.wants(path) {
            let content = read_file(&mut archive, path, most)?;
            sink.file(path, content).map_err(PackageError::Sink)?;
        }
    }
    Ok(())
}

fn read_file<R: io::BufRead>(
    archive: &mut TarReader<R>,
    path: &str,
    most: u64,
) -> Result<Vec<u8>, PackageError> {
    let mut content = Vec::new();
    loop {
        let data = archive.data(u64::MAX)?;
        if data.is_empty() {
            return Ok(content);
        }
        if (content.len() + data.len()) as u64 > most {
            return Err(PackageError::Malformed(format!(
                "{} is longer than {most} bytes",
                path.escape_debug()
            )));
        }
        content.extend_from_slice(data);
        let length = data.len();
        archive.consume(length);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A package of these files. `architecture` is in its control file.
    pub(in super::super) fn package(version: &str, architecture: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
        let control = format!(
            "Package: linux-image-test\nVersion: {version}\nArchitecture: {architecture}\nDepends: kmod\n"
        );
        let mut out = b"!<arch>\n".to_vec();
        let mut member = |name: &str, content: &[u8]| {
            out.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len()).bytes(),
            );
            out.extend(content);
            if content.len() % 2 == 1 {
                out.push(b'\n');
            }
        };
        member("debian-binary", b"2.0\n");
        member(
            "control.tar.zst",
            &zstd::encode_all(&archive(&[("./control", control.as_bytes())])[..], 1).unwrap(),
        );
        member("data.tar", &archive(files));
        out
    }

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, path, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[derive(Debug, Default)]
    struct Found(Vec<(String, Vec<u8>)>);

    impl Sink for Found {
        fn wants(&mut self, path: &str) -> Option<u64> {
            path.starts_with("boot/").then_some(10)
        }

        fn file(&mut self, path: &str, content: Vec<u8>) -> Result<(), crate::guest::GuestError> {
            self.0.push((path.to_owned(), content));
            Ok(())
        }
    }

    fn read_all(package: &[u8]) -> Result<(Control, Found), PackageError> {
        let mut found = Found::default();
        read(package, &mut found).map(|control| (control, found))
    }

    #[test]
    fn wanted_files_and_what_it_says_of_itself_are_read() {
        let package =
            package("6.1-2", "amd64", &[("./boot/vmlinuz", b"kernel"), ("./usr/share/doc", b"long text")]);
        let (control, files) = read_all(&package).unwrap();
        assert_eq!(control.package, "linux-image-test");
        assert_eq!((control.version.as_str(), control.architecture.as_str()), ("6.1-2", "amd64"));
        assert_eq!(files.0, [("boot/vmlinuz".to_owned(), b"kernel".to_vec())]);
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let package = package("1", "amd64", &[("./boot/vmlinuz", b"longer than ten")]);
        assert!(matches!(read_all(&package), Err(PackageError::Malformed(why)) if why.contains("longer")));
    }

    #[test]
    fn wherever_it_is_cut_it_is_refused() {
        let whole = package("1", "amd64", &[("./boot/vmlinuz", b"kernel")]);
        for length in 0..whole.len() {
            assert!(read_all(&whole[..length]).is_err(), "{length} of {}", whole.len());
        }
        assert!(read_all(b"not a package at all").is_err());
    }
}
