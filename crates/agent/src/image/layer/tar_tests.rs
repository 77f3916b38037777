use std::io::Read;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// Every entry of an archive with its data, holes filled.
fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut tar = TarReader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = tar.next()? {
        let mut data = Vec::new();
        loop {
            let chunk = tar.data(u64::MAX)?;
            if chunk.is_empty() {
                break;
            }
            let length = chunk.len();
            data.extend_from_slice(chunk);
            tar.consume(length);
        }
        if let Some(segments) = &entry.sparse {
            let mut whole = vec![0; usize::try_from(entry.size).unwrap()];
            let mut position = 0;
            for segment in segments {
                let (offset, length) = (segment.offset as usize, segment.length as usize);
                whole[offset..offset + length].copy_from_slice(&data[position..position + length]);
                position += length;
            }
            data = whole;
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

fn header(kind: u8, name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

#[test]
fn reads_what_gnu_tar_writes_in_every_format() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let long = format!("{}/{}", "d".repeat(90), "n".repeat(150));
    std::fs::create_dir(root.join("d".repeat(90))).unwrap();
    std::fs::write(root.join(&long), "long").unwrap();
    std::fs::write(root.join("file"), vec![7; 5000]).unwrap();
    std::os::unix::fs::symlink("t".repeat(180), root.join("link")).unwrap();
    // Data, hole, data, hole; more segments than the header of the old form holds.
    let mut sparse = vec![0; 2 << 20];
    for index in 0..30 {
        sparse[index * 65_536..][..4096].fill(index as u8 + 1);
    }
    {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = std::fs::File::create(root.join("sparse")).unwrap();
        for index in 0..30_u64 {
            file.seek(SeekFrom::Start(index * 65_536)).unwrap();
            file.write_all(&[index as u8 + 1; 4096]).unwrap();
        }
        file.set_len(2 << 20).unwrap();
    }
    for arguments in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let output = Command::new("tar")
            .args(arguments)
            .args(["-C", root.to_str().unwrap(), "-c", "."])
            .output()
            .unwrap();
        assert!(output.status.success());
        let entries = read(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e:?}"));
        let find = |name: &str| {
            let path = format!("./{name}");
            entries
                .iter()
                .find(|(e, _)| e.path == path.as_bytes())
                .unwrap_or_else(|| panic!("{arguments:?}: no {name}"))
        };
        assert_eq!(find(&long).1, b"long", "{arguments:?}");
        assert_eq!(find("file").1, [7; 5000]);
        assert_eq!(find("link").0.link, "t".repeat(180).as_bytes());
        let (entry, data) = find("sparse");
        assert!(*data == sparse, "{arguments:?}");
        assert_eq!(entry.sparse.is_some(), arguments.len() > 1, "{arguments:?}");
    }
}

#[test]
fn numbers_in_base_256_and_large_sizes_are_understood() {
    let mut large = header(b'0', "x", 0);
    large.as_gnu_mut().unwrap().set_atime(0);
    large.set_uid(3_000_000_000);
    large.set_mtime(u64::from(u32::MAX) * 4);
    large.set_cksum();
    let entries = read(large.as_bytes()).unwrap();
    assert_eq!(entries[0].0.uid, 3_000_000_000);
    assert_eq!(entries[0].0.mtime.seconds, i64::from(u32::MAX) * 4);
    assert_eq!(super::super::pax::signed_number(&[0xff; 8]).unwrap(), -1);
    assert_eq!(super::super::pax::signed_number(&[0x80, 0, 0, 0, 0, 0, 1, 0]).unwrap(), 256);
    assert!(super::super::pax::signed_number(&[0xbf; 12]).is_err());
    assert_eq!(super::super::pax::signed_number(b"  644 \0x").unwrap(), 0o644);
    assert!(super::super::pax::signed_number(b"9").is_err());
    // A size over 8 GiB is a PAX record: what follows is missing, not another entry.
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("size", &b"9000000000"[..])]).unwrap();
    builder.append(&header(b'0', "big", 0), std::io::empty()).unwrap();
    assert!(matches!(read(&builder.into_inner().unwrap()), Err(TarError::Truncated)));
}

#[test]
fn broken_headers_are_refused() {
    let broken = |bytes: &[u8]| matches!(read(bytes), Err(TarError::Malformed(_)));
    let mut sum = *header(b'0', "x", 0).as_bytes();
    sum[0] ^= 1;
    assert!(broken(&sum));
    for size in ["18446744073709551615", "-1", "", "x"] {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("size", size.as_bytes())]).unwrap();
        builder.append(&header(b'0', "x", 0), std::io::empty()).unwrap();
        let archive = builder.into_inner().unwrap();
        assert_eq!(broken(&archive), !size.is_empty(), "{size}");
    }
    for sparse in [
        [("GNU.sparse.size", "10"), ("GNU.sparse.map", "0,5,4,5")],
        [("GNU.sparse.size", "10"), ("GNU.sparse.map", "8,5")],
        [("GNU.sparse.size", "10"), ("GNU.sparse.map", "0")],
        [("GNU.sparse.size", "10"), ("GNU.sparse.map", "18446744073709551615,5")],
        [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")],
        [("GNU.sparse.offset", "1"), ("GNU.sparse.offset", "1")],
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(sparse.iter().map(|(k, v)| (*k, v.as_bytes()))).unwrap();
        builder.append(&header(b'0', "x", 5), &b"01234"[..]).unwrap();
        assert!(broken(&builder.into_inner().unwrap()), "{sparse:?}");
    }
    let mut lone = tar::Builder::new(Vec::new());
    lone.append_pax_extensions([("path", &b"x"[..])]).unwrap();
    assert!(matches!(read(&lone.into_inner().unwrap()), Err(TarError::Truncated)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever the bytes, reading ends, without a panic.
    #[test]
    fn noise_is_never_a_panic(
        positions in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..20),
        fix in any::<bool>(),
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.size", b"100"), ("mtime", b"1.5")]).unwrap();
        builder.append(&header(b'0', "x", 600), &[b"1\n0\n88\n".to_vec(), vec![0; 593]].concat()[..]).unwrap();
        builder.append(&header(b'S', "y", 0), std::io::empty()).unwrap();
        let mut archive = builder.into_inner().unwrap();
        for (position, byte) in positions {
            let length = archive.len();
            archive[position % length] = byte;
        }
        if fix {
            // Changes get past the checksum, too.
            for block in archive.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        let mut tar = TarReader::new(&archive[..]);
        for _ in 0..100 {
            match tar.next() {
                Ok(Some(_)) => {}
                _ => break,
            }
        }
        let mut rest = Vec::new();
        tar.into_inner().read_to_end(&mut rest).unwrap();
    }
}
