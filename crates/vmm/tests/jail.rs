//! The jail, from inside: a small program in the monitor's place says what it sees. Needs root, and a C
//! compiler for a program that needs no files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UID: &str = "1199570175";

/// Writes a line per finding to the "ended" file, and waits for the end of the world.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <linux/capability.h>
#include <unistd.h>
int main(int argc, char **argv) {
    FILE *out = fdopen(4, "w");
    fprintf(out, "arguments %d %s %s\n", argc, argv[0], argv[1]);
    fprintf(out, "ids %d %d %d %d\n", getuid(), geteuid(), getgid(), getgroups(0, 0));
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct caps[2];
    syscall(SYS_capget, &header, caps);
    fprintf(out, "capabilities %x %x %x %x\n", caps[0].effective, caps[0].permitted, caps[1].effective, caps[1].permitted);
    fprintf(out, "no_new_privs %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    fprintf(out, "pid %d\n", getpid());
    int entries = 0;
    DIR *root = opendir("/");
    for (struct dirent *e; root && (e = readdir(root));) entries += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    fprintf(out, "root %d\n", root ? entries : -1);
    closedir(root);
    int made = open("/file", O_CREAT | O_WRONLY, 0600);
    fprintf(out, "create %s\n", made < 0 ? strerror(errno) : "possible");
    fprintf(out, "up %s\n", chdir("/..") == 0 && opendir("proc") == 0 ? "stays" : "LEAVES");
    fprintf(out, "mount %s\n", mount("x", "/", "tmpfs", 0, 0) < 0 ? strerror(errno) : "possible");
    fprintf(out, "open files");
    for (int fd = 0; fd < 4096; fd++) if (fcntl(fd, F_GETFD) >= 0) fprintf(out, " %d", fd);
    int type = 0, listens = 0; socklen_t size = sizeof type;
    getsockopt(3, SOL_SOCKET, SO_TYPE, &type, &size);
    getsockopt(3, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size);
    fprintf(out, "\ncontrol %d %d\n", type == SOCK_SEQPACKET, listens);
    struct rlimit cores; getrlimit(RLIMIT_CORE, &cores);
    fprintf(out, "core %d\n", (int) cores.rlim_max);
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr address = { AF_INET, { 0, 53, 127, 0, 0, 1 } };
    fprintf(out, "network %s\n", connect(udp, &address, sizeof address) < 0 ? strerror(errno) : "reachable");
    fprintf(out, "end\n");
    fflush(out);
    pause();
}
"#;

struct Jail {
    dir: tempfile::TempDir,
}

impl Jail {
    fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("jail-").tempdir().unwrap() }
    }

    fn start(&self, monitor: &Path) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-jailer"));
        command.arg("--dir").arg(self.dir.path()).args(["--uid", UID]).arg("--monitor").arg(monitor);
        command.output().unwrap()
    }

    fn pid(&self) -> Option<i32> {
        let record = std::fs::read(self.dir.path().join("monitor.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        i32::try_from(record["pid"].as_i64()?).ok()
    }

    fn said(&self) -> String {
        let path = self.dir.path().join("ended.json");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.ends_with("end\n") {
                return text;
            }
            assert!(Instant::now() < deadline, "only said {text:?}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn probe(dir: &Path) -> PathBuf {
    let (source, program) = (dir.join("probe.c"), dir.join("probe"));
    std::fs::write(&source, PROBE).unwrap();
    let compiled = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    program
}

#[test]
fn a_monitor_has_nothing_but_what_it_needs() {
    let scratch = tempfile::tempdir().unwrap();
    let program = probe(scratch.path());
    let jail = Jail::new();
    let output = jail.start(&program);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = jail.said();
    for line in [
        "arguments 3 coracle-vmm --dir",
        &format!("ids {UID} {UID} {UID} 0"),
        "capabilities 0 0 0 0",
        "no_new_privs 1",
        "pid 1",
        "root 0",
        "create Read-only file system",
        "mount Operation not permitted",
        "open files 0 1 2 3 4 5",
        "control 1 1",
        "core 0",
        "network Network is unreachable",
    ] {
        let found = said.lines().any(|said| said == line);
        assert!(found, "{line:?} is not in\n{said}");
    }
    let pid = jail.pid().unwrap();
    let command_line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command_line.contains(jail.dir.path().to_str().unwrap()), "found by its command line");
    for space in ["mnt", "pid", "net", "ipc", "uts"] {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        assert_ne!(theirs, std::fs::read_link(format!("/proc/self/ns/{space}")).unwrap());
    }
}

#[test]
fn what_is_missing_is_named() {
    let jail = Jail::new();
    let output = jail.start(Path::new("/nonexistent/monitor"));
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("open /nonexistent/monitor"), "{text}");

    let jail = Jail::new();
    let output = jail.start(Path::new("/etc/hostname"));
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("run /etc/hostname"), "{text}");
    assert_eq!(jail.pid(), None);
}

#[test]
fn root_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_coracle-jailer"))
        .arg("--dir")
        .arg(scratch.path())
        .args(["--uid", "0", "--monitor", "/bin/true"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not run as root"));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}
