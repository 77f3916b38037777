//! The initial file system: a cpio archive in the form "newc" (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same content gives the same bytes, so that what was made from it can be told to be current.

/// What the supervisor reads first: the modules' file names, one a line, in the order of loading.
const ORDER: &str = "modules/order";

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive with the supervisor as `/init` and these modules (file name, content).
pub(super) fn build(supervisor: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.entry("dev", DIRECTORY, (0, 0), b"");
    // What the kernel opens as the first process's output before there is a devtmpfs.
    archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), b"");
    // Without a console, Rust's runtime opens this for the standard streams before anything else, or aborts.
    archive.entry("dev/null", CHARACTER_DEVICE, (1, 3), b"");
    archive.entry("init", PROGRAM, (0, 0), supervisor);
    archive.entry("modules", DIRECTORY, (0, 0), b"");
    let order: String = modules.iter().flat_map(|(name, _)| [name, "\n"]).collect();
    archive.entry(ORDER, FILE, (0, 0), order.as_bytes());
    for (name, content) in modules {
        archive.entry(&format!("modules/{name}"), FILE, (0, 0), content);
    }
    archive.finish()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let (length, name_length) = (content.len(), name.len() + 1);
        let (mode, major, minor) = (mode as usize, device.0 as usize, device.1 as usize);
        let fields = [self.entries, mode, 0, 0, links, 0, length, 0, 0, major, minor, name_length, 0];
        self.bytes.extend(b"070701");
        // Eight digits each: what is put in is bounded far below 4 GiB where it is read.
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.align(4);
        self.bytes.extend(content);
        self.align(4);
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.align(512);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn cpio_reads_the_archive() {
        let modules = [("b.ko".to_owned(), b"second".to_vec()), ("a.ko".to_owned(), vec![7; 4099])];
        let archive = build(b"#!supervisor", &modules);
        assert!(archive == build(b"#!supervisor", &modules));
        let run = |arguments: &[&str]| {
            let mut cpio = Command::new("cpio")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = cpio.stdin.take().unwrap();
            let archive = archive.clone();
            let writing = std::thread::spawn(move || {
                let _ = input.write_all(&archive);
            });
            let output = cpio.wait_with_output().unwrap();
            writing.join().unwrap();
            assert!(output.status.success());
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let listing = run(&["--quiet", "-tv", "--numeric-uid-gid"]);
        let names: Vec<_> = listing.lines().filter_map(|line| line.split_whitespace().last()).collect();
        let expected = [
            "dev",
            "dev/console",
            "dev/null",
            "init",
            "modules",
            "modules/order",
            "modules/b.ko",
            "modules/a.ko",
        ];
        assert_eq!(names, expected);
        assert!(listing.lines().nth(1).unwrap().starts_with("crw------- "));
        assert!(listing.lines().nth(3).unwrap().starts_with("-rwxr-xr-x "));
        assert_eq!(run(&["--quiet", "-i", "--to-stdout", ORDER]), "b.ko\na.ko\n");
        assert_eq!(run(&["--quiet", "-i", "--to-stdout", "init"]), "#!supervisor");
    }
}
