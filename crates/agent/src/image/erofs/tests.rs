//! Images are mounted by this machine's kernel, and compared with the trees that they were made of.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::prelude::*;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::*;
use crate::loop_device::{self, LoopDevice};

const OPTIONS: Options = Options { uuid: [7; 16], min_free_bytes: 0 };

/// A source tree, its image, and where that is mounted.
struct Fixture {
    directory: tempfile::TempDir,
    device: Option<LoopDevice>,
    mounts: Vec<PathBuf>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for path in self.mounts.iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

impl Fixture {
    /// On the disk's own file system: /tmp may be one without trusted attributes.
    fn new() -> Self {
        Self::below("/tmp")
    }

    fn below(place: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("erofs-test-").tempdir_in(place).unwrap();
        for name in ["source", "mounted", "lower", "merged"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory, device: None, mounts: Vec::new() }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn source(&self, below: &str) -> PathBuf {
        self.path("source").join(below)
    }

    fn mounted(&self, below: &str) -> PathBuf {
        self.path("mounted").join(below)
    }

    fn build(&self, name: &str) -> Result<u64, ErofsError> {
        let image = self.path(name);
        let file = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
        let length = build(&self.path("source"), &file, &OPTIONS)?;
        assert_eq!((length % 4096, file.metadata().unwrap().len()), (0, length));
        Ok(length)
    }

    /// Builds and mounts, and compares everything.
    fn check(&mut self) -> u64 {
        let length = self.build("image").unwrap();
        self.mount();
        let (source, image) = (walk(&self.path("source")), walk(&self.path("mounted")));
        assert_eq!(source.keys().collect::<Vec<_>>(), image.keys().collect::<Vec<_>>());
        for (path, of_source) in &source {
            assert_eq!(*of_source, image[path], "{path:?}");
        }
        length
    }

    /// From the file where the kernel can (Linux 6.12), else through a loop device.
    fn mount(&mut self) {
        let (image, target) = (self.path("image"), self.path("mounted"));
        let by =
            |source: &Path| mount(Some(source), &target, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>);
        if by(&image) == Err(nix::Error::ENOTBLK) {
            let file = File::options().read(true).write(true).open(&image).unwrap();
            let device = loop_device::attach(&file).unwrap();
            by(device.path()).unwrap();
            self.device = Some(device);
        }
        self.mounts.push(target);
    }
}

/// All that is known of a file.
#[derive(PartialEq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    mtime: (i64, i64),
    device: u64,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Digest of the data, or a symlink's target.
    content: Vec<u8>,
    /// The first path with the same inode.
    same_as: PathBuf,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, owner, links, size, mtime, device, .. } = self;
        let names: Vec<_> =
            self.xattrs.iter().map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), v.len())).collect();
        write!(f, "{mode:o} {owner:?} links {links} size {size} {mtime:?} device {device} {names:?} ")?;
        write!(f, "{:x?} same as {:?}", &self.content[..self.content.len().min(32)], self.same_as)
    }
}

fn walk(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes = std::collections::HashMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(below) = todo.pop() {
        let path = root.join(&below);
        let stat = fs::symlink_metadata(&path).unwrap();
        assert_ne!(stat.ino(), 0);
        let mut xattrs = Vec::new();
        let mut content = Vec::new();
        if stat.is_file() || stat.is_dir() {
            xattrs = scan::xattrs(&File::open(&path).unwrap().into()).unwrap();
        }
        if stat.is_file() {
            content = digest(&path);
        } else if stat.is_symlink() {
            content = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
        } else if stat.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
            // In reverse, so that they are taken in order.
            names.sort();
            todo.extend(names.iter().rev().map(|name| below.join(name)));
        }
        let key = (stat.is_dir(), stat.ino());
        let of_inode = Seen {
            mode: stat.mode(),
            owner: (stat.uid(), stat.gid()),
            links: stat.nlink(),
            size: if stat.is_dir() { 0 } else { stat.size() },
            mtime: (stat.mtime(), stat.mtime_nsec()),
            device: if stat.is_file() || stat.is_dir() { 0 } else { stat.rdev() },
            xattrs,
            content,
            same_as: inodes.entry(key).or_insert_with(|| below.clone()).clone(),
        };
        seen.insert(below, of_inode);
    }
    seen
}

fn digest(path: &Path) -> Vec<u8> {
    let mut hasher = crate::image::digest::Hasher::new();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer).unwrap();
        if length == 0 {
            return hasher.finish().bytes().to_vec();
        }
        hasher.update(&buffer[..length]);
    }
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
}

fn chown(path: &Path, uid: u32, gid: u32) {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(rustix::fs::CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// `length` bytes that differ from block to block.
fn data(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 4096 * 31 + i % 251) as u8).collect()
}

#[test]
fn an_empty_layer() {
    let mut fixture = Fixture::new();
    fs::set_permissions(fixture.path("source"), fs::Permissions::from_mode(0o755)).unwrap();
    set_mtime(&fixture.path("source"), 1_600_000_000, 123_456_789);
    assert_eq!(fixture.check(), 8192);
    assert_eq!(fs::read_dir(fixture.path("mounted")).unwrap().count(), 0);
}

#[test]
fn every_kind_of_file_and_all_its_metadata() {
    let mut fixture = Fixture::new();
    let at = |below: &str| fixture.source(below);
    // Names before and after `.` and `..`, and one that is no text.
    for name in ["!", "+x", "-", "...", ".hidden", "0", "~", "a b\n", "ä"] {
        fs::write(at(name), name).unwrap();
    }
    fs::write(fixture.path("source").join(OsStr::from_bytes(b"\xff\x01")), "x").unwrap();
    fs::create_dir_all(at("d/e/f")).unwrap();
    // Every way to lie in blocks.
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 8191, 8192, 262_144, 262_145, 1 << 20]
    {
        fs::write(at(&format!("d/size-{size}")), data(size)).unwrap();
    }
    fs::write(at("d/setuid"), "x").unwrap();
    chown(&at("d/setuid"), 65_534, 4_000_000_000);
    fs::set_permissions(at("d/setuid"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::set_permissions(at("d/e"), fs::Permissions::from_mode(0o1777)).unwrap();
    // VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&at("d/setuid"), "security.capability", &capability);
    set_xattr(&at("d/setuid"), "user.mime_type", b"text/plain");
    set_xattr(&at("d/setuid"), "user.empty", b"");
    set_xattr(&at("d/size-0"), "user.of.nothing", b"value");
    set_xattr(&at("d/e"), "trusted.overlay.opaque", b"y");
    // The host's own: not part of a layer.
    set_xattr(&at("d/e"), "trusted.host", b"secret");
    // Links go over directories, and to what is no file.
    fs::hard_link(at("d/size-4097"), at("a-link")).unwrap();
    fs::hard_link(at("d/size-4097"), at("d/e/z-link")).unwrap();
    for length in [1, 60, 2048, 2049, 4000, 4032, 4033, 4095] {
        symlink("t".repeat(length), at(&format!("d/e/symlink-{length}"))).unwrap();
    }
    symlink("../../etc/passwd", at("d/e/f/outside")).unwrap();
    chown(&at("d/e/f/outside"), 1000, 1001);
    fs::hard_link(at("d/e/symlink-60"), at("symlink-link")).unwrap();
    node(&at("d/fifo"), FileType::Fifo, 0);
    node(&at("d/socket"), FileType::Socket, 0);
    node(&at("d/null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node(&at("d/disk"), FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
    node(&at("d/whiteout"), FileType::CharacterDevice, 0);
    for (path, seconds, nanoseconds) in [
        ("d/size-1", 0, 0),
        ("d/size-2047", -1, 999_999_999),
        ("d/size-2048", i64::from(u32::MAX) + 1, 1),
        ("d/e/symlink-1", 1, 2),
        ("d/fifo", 3, 4),
        ("d/e", 5, 6),
        ("", 7, 8),
    ] {
        set_mtime(&at(path), seconds, nanoseconds);
    }
    fixture.check();
    let link = fs::symlink_metadata(fixture.mounted("a-link")).unwrap();
    assert_eq!(link.nlink(), 3);
    assert_eq!(link.ino(), fs::symlink_metadata(fixture.mounted("d/e/z-link")).unwrap().ino());
    let attribute = |below: &str, name: &str| {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(fixture.mounted(below), name, &mut value[..])?;
        Ok::<_, rustix::io::Errno>(value[..length].to_vec())
    };
    assert_eq!(attribute("d/setuid", "security.capability").unwrap(), capability);
    assert_eq!(attribute("d/setuid", "user.mime_type").unwrap(), b"text/plain");
    assert_eq!(attribute("d/setuid", "user.empty").unwrap(), b"");
    assert_eq!(attribute("d/size-0", "user.of.nothing").unwrap(), b"value");
    assert_eq!(attribute("d/e", "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(attribute("d/e", "trusted.host"), Err(rustix::io::Errno::NODATA));
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let mut fixture = Fixture::new();
    for directory in ["source", "lower"] {
        for name in ["opaque", "merged"] {
            fs::create_dir(fixture.path(directory).join(name)).unwrap();
        }
    }
    for name in ["gone", "kept", "opaque/hidden", "merged/seen"] {
        fs::write(fixture.path("lower").join(name), name).unwrap();
    }
    node(&fixture.source("gone"), FileType::CharacterDevice, 0);
    set_xattr(&fixture.source("opaque"), "trusted.overlay.opaque", b"y");
    fs::write(fixture.source("opaque/new"), "new").unwrap();
    fs::write(fixture.source("merged/new"), "new").unwrap();
    fixture.check();
    let merged = fixture.path("merged");
    let options =
        format!("lowerdir={}:{}", fixture.path("mounted").display(), fixture.path("lower").display());
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).unwrap();
    fixture.mounts.push(merged.clone());
    let paths: Vec<String> = walk(&merged)
        .keys()
        .map(|path| path.to_str().unwrap().to_owned())
        .filter(|p| !p.is_empty())
        .collect();
    assert_eq!(paths, ["kept", "merged", "merged/new", "merged/seen", "opaque", "opaque/new"]);
}

#[test]
fn long_names_deep_paths_and_large_attributes() {
    let mut fixture = Fixture::new();
    // A directory over many blocks, of the longest names.
    let wide = fixture.source("wide");
    fs::create_dir(&wide).unwrap();
    for number in 0..200 {
        fs::write(wide.join(format!("{number:03}{}", "n".repeat(252))), "").unwrap();
    }
    // As deep as layers may be.
    let mut deep = PathBuf::from("deep");
    for _ in 0..255 {
        deep.push("0123456789abcde".get(..14).unwrap());
    }
    fs::create_dir_all(fixture.source(deep.to_str().unwrap())).unwrap();
    fs::write(fixture.source(deep.join("file").to_str().unwrap()), "at the bottom").unwrap();
    let file = fixture.source("attributes");
    fs::write(&file, data(5000)).unwrap();
    // What fits into ext4's block; larger ones need another file system.
    set_xattr(&file, &format!("user.{}", "x".repeat(250)), &data(1000));
    set_xattr(&file, "user.large", &data(2500));
    let directory = fixture.source("attributes-of-directory");
    fs::create_dir(&directory).unwrap();
    set_xattr(&directory, "user.large", &data(3900));
    fixture.check();
}

#[test]
fn a_hundred_thousand_small_files() {
    // Not to wait for a disk's journal.
    let mut fixture = Fixture::below("/dev/shm");
    for directory in 0..100 {
        let directory = fixture.source(&format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..900 {
            fs::write(directory.join(file.to_string()), vec![b'x'; file % 300]).unwrap();
        }
    }
    let flat = fixture.source("flat");
    fs::create_dir(&flat).unwrap();
    for file in 0..10_000 {
        File::create(flat.join(format!("file-{file}"))).unwrap();
    }
    let length = fixture.build("image").unwrap();
    assert!(length < 40 << 20, "they are packed: {length}");
    fixture.mount();
    let names = |path: PathBuf| fs::read_dir(path).unwrap().count();
    assert_eq!(names(fixture.mounted("flat")), 10_000);
    for number in (0..10_000).step_by(37) {
        assert!(fixture.mounted(&format!("flat/file-{number}")).exists(), "found by its name");
    }
    assert!(!fixture.mounted("flat/file-10000").exists());
    assert_eq!(names(fixture.mounted("d99")), 900);
    assert_eq!(fs::read(fixture.mounted("d99/899")).unwrap(), vec![b'x'; 299]);
}

#[test]
fn a_large_sparse_file_takes_no_more_disk_than_it_did() {
    let mut fixture = Fixture::new();
    let file = File::create(fixture.source("sparse")).unwrap();
    let size = (1 << 30) + 1234;
    file.set_len(size).unwrap();
    // At the front, in the middle over a buffer's length, and in the tail.
    file.write_all_at(&data(10_000), 0).unwrap();
    file.write_all_at(&data(1_000_000), (512 << 20) + 77).unwrap();
    file.write_all_at(b"the end", size - 7).unwrap();
    let empty = File::create(fixture.source("hole")).unwrap();
    empty.set_len(100 << 30).unwrap();
    let length = fixture.build("image").unwrap();
    assert!(length > 101 << 30);
    let used = fs::metadata(fixture.path("image")).unwrap().blocks() * 512;
    assert!(used < 2 << 20, "{used}");
    fixture.mount();
    assert_eq!(digest(&fixture.source("sparse")), digest(&fixture.mounted("sparse")));
    assert_eq!(fs::metadata(fixture.mounted("hole")).unwrap().len(), 100 << 30);
}

#[test]
fn data_is_not_kept_in_memory() {
    let mut fixture = Fixture::new();
    let mut file = File::create(fixture.source("large")).unwrap();
    for _ in 0..256 {
        std::io::Write::write_all(&mut file, &data(1 << 20)).unwrap();
    }
    drop(file);
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let before = resident();
    fixture.check();
    assert!(resident() - before < 64, "MiB");
}

#[test]
fn equal_trees_make_equal_images() {
    let images: Vec<Vec<u8>> = [false, true]
        .into_iter()
        .map(|reversed| {
            let fixture = Fixture::new();
            fs::create_dir(fixture.source("d")).unwrap();
            let mut numbers: Vec<usize> = (0..300).collect();
            if reversed {
                numbers.reverse();
            }
            for number in numbers {
                fs::write(fixture.source(&format!("d/{number}")), data(number * 30)).unwrap();
                set_mtime(&fixture.source(&format!("d/{number}")), number as i64, 0);
            }
            set_xattr(&fixture.source("d"), if reversed { "user.b" } else { "user.a" }, b"1");
            set_xattr(&fixture.source("d"), if reversed { "user.a" } else { "user.b" }, b"1");
            set_mtime(&fixture.source("d"), 1, 1);
            set_mtime(&fixture.source(""), 1, 1);
            fixture.build("image").unwrap();
            fs::read(fixture.path("image")).unwrap()
        })
        .collect();
    assert!(images[0] == images[1]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let fixture = Fixture::new();
    for number in 0..2 {
        // ext4 files end at 16 TiB, as EROFS images do.
        let file = File::create(fixture.source(&number.to_string())).unwrap();
        file.set_len(9 << 40).unwrap();
    }
    let error = fixture.build("image").unwrap_err();
    assert!(matches!(error, ErofsError::TooLarge { .. }), "{error}");
    let file = File::create(fixture.path("full")).unwrap();
    let options = Options { min_free_bytes: u64::MAX, ..OPTIONS };
    fs::remove_file(fixture.source("0")).unwrap();
    let error = build(&fixture.path("source"), &file, &options).unwrap_err();
    assert!(matches!(error, ErofsError::DiskFull), "{error}");
    let gone = build(&fixture.path("nothing"), &file, &OPTIONS).unwrap_err();
    assert!(gone.to_string().contains("nothing"), "{gone}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever sizes and names come together, all is found again.
    #[test]
    fn any_mixture(files in proptest::collection::vec(("[!-.0-~]{1,60}", 0_usize..9000, 0_usize..700), 0..80)) {
        let mut fixture = Fixture::new();
        for (name, size, attribute) in files {
            if name == "." || name == ".." {
                continue;
            }
            fs::write(fixture.source(&name), data(size)).unwrap();
            if attribute % 3 == 0 {
                set_xattr(&fixture.source(&name), "user.a", &data(attribute));
            }
        }
        fixture.check();
    }
}
