use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { bytes: 1 << 30, entries: 10_000, free_bytes: 0 };

fn entry(kind: u8, path: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(data.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

struct Unpacked {
    directory: tempfile::TempDir,
}

impl Unpacked {
    /// On the disk's own file system: /tmp may be one without trusted attributes.
    fn new(entries: &[Vec<u8>]) -> Self {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        unpack(&entries.concat()[..], directory.path(), LIMITS).unwrap();
        Self { directory }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn is_whiteout(&self, below: &str) -> bool {
        let stat = std::fs::symlink_metadata(self.path(below)).unwrap();
        stat.file_type().is_char_device() && stat.rdev() == 0
    }

    fn is_opaque(&self, below: &str) -> bool {
        let mut value = [0; 1];
        rustix::fs::getxattr(self.path(below), "trusted.overlay.opaque", &mut value[..])
            .is_ok_and(|_| value == *b"y")
    }
}

#[test]
fn whiteouts_become_overlayfs_ones_in_any_order() {
    let layer = Unpacked::new(&[
        entry(b'0', "a/.wh.gone", "", b""),
        entry(b'3', "a/device", "", b""),
        entry(b'0', "b/.wh..wh..opq", "", b""),
        // The layer both hides a name and brings it anew, whichever comes first.
        entry(b'0', ".wh.first", "", b""),
        entry(b'5', "first/", "", b""),
        entry(b'0', ".wh.implied", "", b""),
        entry(b'0', "implied/x", "", b""),
        entry(b'5', "last/", "", b""),
        entry(b'0', "last/x", "", b""),
        entry(b'0', ".wh.last", "", b""),
        entry(b'0', ".wh.file", "", b""),
        entry(b'0', "file", "", b"new"),
        entry(b'0', ".wh.file", "", b""),
    ]);
    assert!(layer.is_whiteout("a/gone") && layer.is_whiteout("a/device"));
    assert!(!layer.is_opaque("a") && layer.is_opaque("b"));
    for directory in ["first", "implied", "last"] {
        assert!(layer.is_opaque(directory), "{directory}");
    }
    assert!(layer.path("last/x").exists() && layer.path("implied/x").exists());
    assert_eq!(std::fs::read(layer.path("file")).unwrap(), b"new");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let layer = Unpacked::new(&[
        entry(b'0', "file", "", b"a long first content"),
        entry(b'0', "file", "", b"second"),
        entry(b'5', "dir/", "", b""),
        entry(b'0', "dir/kept", "", b""),
        entry(b'5', "dir/", "", b""),
        entry(b'5', "tree/", "", b""),
        entry(b'0', "tree/deep/x", "", b""),
        entry(b'2', "tree", "file", b""),
        entry(b'0', "was-file", "", b""),
        entry(b'5', "was-file/", "", b""),
        entry(b'0', "was-file/x", "", b""),
        entry(b'6', "dir/kept", "", b""),
    ]);
    assert_eq!(std::fs::read(layer.path("file")).unwrap(), b"second");
    assert_eq!(std::fs::read_link(layer.path("tree")).unwrap().to_str(), Some("file"));
    assert!(layer.path("was-file/x").exists());
    assert!(std::fs::symlink_metadata(layer.path("dir/kept")).unwrap().file_type().is_fifo());
    assert_eq!(std::fs::metadata(layer.path("dir")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn a_replaced_directory_is_not_written_to_any_more() {
    // The parent of `d/two` was open when `d` was replaced.
    let layer = Unpacked::new(&[
        entry(b'0', "d/one", "", b""),
        entry(b'5', "other/", "", b""),
        entry(b'0', "d/sub/x", "", b""),
        entry(b'2', "d", "other", b""),
        entry(b'0', "d/sub/y", "", b""),
        entry(b'0', "d/two", "", b""),
    ]);
    assert!(layer.path("other/sub/y").exists() && layer.path("other/two").exists());
    assert!(!layer.path("other/sub/x").exists());
}

#[test]
fn sparse_files_stay_sparse() {
    let mut builder = tar::Builder::new(Vec::new());
    let records = [("GNU.sparse.size", &b"1073741824"[..]), ("GNU.sparse.map", b"4096,3,1073741823,1")];
    builder.append_pax_extensions(records).unwrap();
    let layer =
        Unpacked::new(&[builder.into_inner().unwrap()[..1024].to_vec(), entry(b'0', "sparse", "", b"abcd")]);
    let stat = std::fs::metadata(layer.path("sparse")).unwrap();
    assert_eq!(stat.len(), 1 << 30);
    assert!(stat.blocks() * 512 < 1 << 20, "{} blocks", stat.blocks());
    let mut tail = [0; 2];
    std::os::unix::fs::FileExt::read_exact_at(
        &std::fs::File::open(layer.path("sparse")).unwrap(),
        &mut tail,
        (1 << 30) - 2,
    )
    .unwrap();
    assert_eq!(tail, *b"\0d");
}

#[test]
fn long_runs_of_zeros_become_holes() {
    let data = |parts: &[(u8, usize)]| -> Vec<u8> {
        parts.iter().flat_map(|(byte, length)| std::iter::repeat_n(*byte, *length)).collect()
    };
    let files = [
        ("middle", data(&[(1, 100_000), (0, 1 << 20), (2, 100_000)])),
        ("end", data(&[(1, 100_000), (0, 1 << 20)])),
        ("all", data(&[(0, 1 << 20)])),
        ("odd", data(&[(0, (1 << 20) + 17)])),
    ];
    let layer = Unpacked::new(&files.each_ref().map(|(name, data)| entry(b'0', name, "", data)));
    for (name, data) in files {
        let stat = std::fs::metadata(layer.path(name)).unwrap();
        assert!(stat.blocks() * 512 < 300_000, "{name}: {} blocks", stat.blocks());
        assert!(std::fs::read(layer.path(name)).unwrap() == data, "{name}");
        assert_eq!(stat.mtime(), 1_000_000_000, "{name}");
    }
}

#[test]
fn counts_what_it_unpacks() {
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let archive = [entry(b'0', "a/b/one", "", &[1; 5000]), entry(b'2', "l", "one", b"")].concat();
    let unpacked = unpack(&archive[..], directory.path(), LIMITS).unwrap();
    assert_eq!((unpacked.bytes, unpacked.entries), (5000, 4));
    assert!(unpacked.disk_bytes >= 4 * 4096, "{unpacked:?}");
}

/// All below a directory, itself left out: path, and type with content.
fn tree(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            let what =
                if kind.is_file() { std::fs::read_to_string(&path).unwrap() } else { format!("{kind:?}") };
            if kind.is_dir() {
                directories.push(path.clone());
            }
            found.push((path, what));
        }
    }
    found.sort();
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever the entries, and in whatever order: nothing outside of the layer is made, changed or linked to, and what
    /// is inside can be removed.
    #[test]
    fn nothing_outside_is_touched(
        entries in proptest::collection::vec(
            (0_usize..6, "(/|\\./)?[abcl]((/|//|/\\./)(\\.wh\\.)?([abcl]|\\.\\.)){0,3}/?", 0_usize..9),
            1..25,
        ),
    ) {
        let top = tempfile::tempdir_in("/tmp").unwrap();
        let outside = top.path().join("outside");
        std::fs::create_dir_all(outside.join("a/b")).unwrap();
        std::fs::write(outside.join("a/c"), "untouched").unwrap();
        std::fs::write(top.path().join("c"), "untouched").unwrap();
        let layer = top.path().join("layer");
        std::fs::create_dir(&layer).unwrap();
        let absolute = outside.to_str().unwrap();
        let targets = ["a", "a/b", "..", "../outside", "../outside/a", absolute, "l", "/", "c"];
        let before = tree(&outside);
        let mut root = Unpack {
            tree: Tree::open(&layer).unwrap(),
            limits: LIMITS,
            totals: super::Unpacked::default(),
            unchecked: 0,
            times: Vec::new(),
            paths: 0,
        };
        for (kind, path, target) in &entries {
            let kind = [b'0', b'5', b'2', b'2', b'1', b'6'][*kind];
            let data: &[u8] = if kind == b'0' { b"written" } else { b"" };
            let bytes = entry(kind, path, targets[*target], data);
            let mut tar = TarReader::new(&bytes[..]);
            let entry = tar.next().unwrap().unwrap();
            // A refused entry ends a pull; here the next ones shall not get further for it.
            let _ = root.entry(&mut tar, &entry);
        }
        root.finish_directories();
        prop_assert_eq!(tree(&outside), before);
        prop_assert_eq!(std::fs::read_to_string(top.path().join("c")).unwrap(), "untouched");
        let names: Vec<_> = std::fs::read_dir(top.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert_eq!(names.len(), 3, "{:?}", names);
        let link_count = std::fs::metadata(outside.join("a/c")).unwrap().nlink();
        prop_assert_eq!(link_count, 1);
        std::fs::remove_dir_all(&layer).unwrap();
    }
}
