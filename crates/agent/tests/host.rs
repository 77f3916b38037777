//! The probe on the real host. Needs root.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use agent::host::{Status, probe};
use support::on_private_host;

#[test]
fn a_host_that_can_run_tasks_is_found_able() {
    on_private_host("a_host_that_can_run_tasks_is_found_able", || {
        let look = || {
            let script = "cat /proc/self/mountinfo | wc -l; find $TMPDIR -name '*doctor*'; nft list tables; losetup -a | grep $TMPDIR; ls /run/netns; true";
            let output = Command::new("sh").args(["-c", script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let before = look();
        let directory = tempfile::tempdir().unwrap();
        let facts = probe(&directory.path().join("not/yet/there"));
        for check in &facts.checks {
            println!("{check:?}");
            assert_eq!(
                check.status == Status::Ok,
                check.advice.is_none(),
                "advice exactly where it helps: {check:?}"
            );
        }
        let failed: Vec<_> = facts.checks.iter().filter(|check| check.status == Status::Fail).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert!(facts.cgroup.is_some());
        assert!(facts.memory_total > facts.memory_available && facts.memory_available > 0);
        assert!(facts.cpus > 0 && facts.disk_free > 0);
        assert_eq!(look(), before, "the probe leaves nothing");
    });
}

#[test]
fn without_privileges_it_says_what_is_missing() {
    on_private_host("without_privileges_it_says_what_is_missing", || {
        std::fs::set_permissions(std::env::temp_dir(), std::fs::Permissions::from_mode(0o777)).unwrap();
        // Only this thread, and what it starts.
        let dropped = std::thread::spawn(|| {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            let directory = tempfile::tempdir().unwrap();
            probe(directory.path())
        });
        let facts = dropped.join().unwrap();
        let status = |name: &str| facts.checks.iter().find(|check| check.name == name).unwrap().status;
        assert_eq!(facts.status(), Status::Fail);
        assert_eq!(status("privileges"), Status::Fail);
        // What only root can try is not said to be missing.
        for name in ["nftables", "overlayfs", "idmapped-mounts", "loop-devices"] {
            assert_eq!(status(name), Status::Warn, "{name}");
        }
    });
}
