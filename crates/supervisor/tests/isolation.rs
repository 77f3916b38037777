//! What a container cannot do: the product.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use common::TestSandbox;
use model::spec::{MountSpec, Tmpfs, VolumeSpec};

#[test]
fn the_filter_is_on_and_dangerous_calls_fail() {
    let (text, _) = TestSandbox::shell_output(
        "grep -e ^Seccomp: -e NoNewPrivs /proc/self/status; \
         for c in 'unshare -U true' 'unshare -m true' 'mount -t tmpfs x /tmp' 'chroot / true' 'umount /proc' \
         'hostname evil' 'mknod /tmp/sda b 8 0' 'insmod /bin/busybox' 'reboot -f' \
         'swapoff -a' 'pivot_root . .' 'ip link add dummy0 type dummy' 'nsenter -t 1 -n true'; \
         do $c >/dev/null 2>&1 && echo \"$c: allowed\" || echo \"$c: refused\"; done",
    );
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
    for line in text.lines().filter(|line| line.contains("allowed")) {
        // Of the default capabilities: a change of root, within the container.
        assert_eq!(line, "chroot / true: allowed");
    }
    assert!(text.matches("refused").count() >= 10, "{text}");
}

#[test]
fn root_inside_is_nobody_outside() {
    let mut sandbox = TestSandbox::start();
    let app = sandbox.shell("app", "echo up; sleep 1000");
    let spec = sandbox.spec(vec![app]);
    sandbox.run(spec);
    sandbox.wait("output", |sandbox| sandbox.text("app") == "up");
    let pid = sandbox.container("app").pid.unwrap();
    let metadata = fs::metadata(format!("/proc/{pid}")).unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let base = sandbox.uid_base;
    assert!(
        status.contains(&format!("Uid:\t{base}\t{base}\t{base}\t{base}\n")),
        "{status} {}",
        metadata.uid()
    );
    assert!(status.contains(&format!("Gid:\t{base}\t{base}\t{base}\t{base}\n")), "{status}");
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(link("self"), link(&pid.to_string()), "{namespace}");
    }
    // The network namespace, which the agent configures through the supervisor, is the container's.
    let net = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(net(pid), net(sandbox.pid));
    // No descriptor of the supervisor's has come along.
    let descriptors: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(descriptors.len(), 3, "{descriptors:?}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("CARGO"));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let realtime = limits.lines().find(|line| line.starts_with("Max realtime priority")).unwrap();
    assert!(realtime.split_whitespace().nth(3) == Some("0"), "{realtime}");
}

#[test]
fn a_supervisor_stands_alone() {
    let sandbox = TestSandbox::start();
    let stat = fs::read_to_string(format!("/proc/{}/stat", sandbox.pid)).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // Not of the session of whoever started it, which a terminal may end.
    assert_eq!(fields[3], sandbox.pid.to_string());
    let parent: u32 = fields[1].parse().unwrap();
    assert_ne!(parent, std::process::id());
    let threads = fs::read_dir(format!("/proc/{}/task", sandbox.pid)).unwrap().count();
    assert_eq!(threads, 1);
    for descriptor in 0..2 {
        let target = fs::read_link(format!("/proc/{}/fd/{descriptor}", sandbox.pid)).unwrap();
        assert!(target.ends_with("dev/null"), "{target:?}");
    }
}

#[test]
fn nothing_of_the_host_is_visible() {
    let (text, _) = TestSandbox::shell_output(
        "ls /; echo --; cut -d' ' -f2,3 /proc/mounts; echo --; ls -A /proc/1/root /proc/self/root/..; \
         ls /dev; echo --; ps | wc -l; ls /sys/class/net; cat /proc/kcore | head -c 1 | wc -c; cat /proc/keys | wc -c; \
         echo x 2>/dev/null > /proc/sys/kernel/core_pattern || echo core_pattern refused; \
         echo b 2>/dev/null > /proc/sysrq-trigger || echo sysrq refused; \
         echo 1 2>/dev/null > /sys/fs/cgroup/memory/memory.limit_in_bytes || echo cgroup refused; \
         echo 1 2>/dev/null > /sys/fs/cgroup/memory.max || echo cgroup2 refused; touch /sys/x 2>/dev/null || echo sys refused",
    );
    for forbidden in ["supervisor", "/host ", "host\n/", "\nrun\n", "\ndisk\n", "vda", "loop"] {
        assert!(!text.contains(forbidden), "{forbidden}: {text}");
    }
    for refused in ["core_pattern", "sysrq", "cgroup", "cgroup2", "sys"] {
        assert!(text.contains(&format!("{refused} refused")), "{refused}: {text}");
    }
    assert!(text.lines().any(|line| line == "lo") && !text.contains("eth0"), "{text}");
}

#[test]
fn devices_of_an_image_do_not_open() {
    let mut sandbox = TestSandbox::start();
    let node = sandbox.layer().join("bin/memory");
    nix::sys::stat::mknod(
        &node,
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 5),
    )
    .unwrap();
    let app = sandbox.shell("app", "head -c 1 /bin/memory 2>&1 || true; head -c 1 /dev/zero | wc -c");
    sandbox.run_to_end(vec![app]);
    assert_eq!(sandbox.text("app"), "head: /bin/memory: Permission denied\n1");
}

#[test]
fn links_of_an_image_do_not_lead_out() {
    let mut sandbox = TestSandbox::start();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("passwd"), "evil:x:0:0::/:/bin/sh\n").unwrap();
    let layer = sandbox.layer();
    // A mount point, the generated files and the working directory lead to the host by name.
    symlink(outside.path(), layer.join("escape")).unwrap();
    symlink("../../../../../../../../..", layer.join("up")).unwrap();
    fs::remove_file(layer.join("etc/passwd")).unwrap();
    symlink(outside.path().join("passwd"), layer.join("etc/passwd")).unwrap();
    symlink(outside.path().join("hosts"), layer.join("etc/hosts")).unwrap();
    let mut app = sandbox.shell("app", "id -u; touch /escape/mounted /up/root; pwd; cat /etc/hosts | wc -l");
    app.spec.mounts = vec![
        MountSpec { volume: "v".into(), container_path: "/escape/volume".into(), read_only: false },
        MountSpec { volume: "v".into(), container_path: "/up/tmp/volume".into(), read_only: false },
    ];
    app.image.volumes = vec![format!("/up{}/anonymous", outside.path().display())];
    app.spec.working_directory = Some("/escape/work".into());
    let mut spec = sandbox.spec(vec![app]);
    spec.volumes = vec![VolumeSpec { name: "v".into() }];
    sandbox.run(spec);
    sandbox.wait_for_end();
    let found: Vec<_> =
        fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(found, ["passwd"], "{:?} {}", sandbox.state, sandbox.text("app"));
    assert!(!std::path::Path::new("/root/volume").exists() && !std::path::Path::new("/tmp/volume").exists());
    // The layer itself is what it was.
    assert!(!layer.join("tmp/volume").exists());
    let mut sandbox = TestSandbox::start();
    let layer = sandbox.layer();
    fs::remove_file(layer.join("etc/passwd")).unwrap();
    symlink(outside.path().join("passwd"), layer.join("etc/passwd")).unwrap();
    let mut app = sandbox.shell("app", "true");
    app.spec.user = Some("evil".into());
    sandbox.run_to_end(vec![app]);
    let reason = sandbox.container("app").reason.clone().unwrap();
    assert!(reason.contains("unable to find user evil"), "{reason}");
}

#[test]
fn directories_that_an_image_replaces_by_links_lead_nowhere() {
    for name in ["dev", "proc", "sys", "etc", "tmp"] {
        for target in ["", "/", "/../../..", "/host"] {
            let mut sandbox = TestSandbox::start();
            let outside = tempfile::tempdir().unwrap();
            fs::set_permissions(outside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
            let layer = sandbox.layer();
            fs::remove_dir_all(layer.join(name)).unwrap();
            let target = if target.is_empty() { outside.path().to_owned() } else { target.into() };
            symlink(&target, layer.join(name)).unwrap();
            let mut app = sandbox.shell("app", "touch /tmp/x /dev/x /etc/x; true");
            app.spec.linux.tmpfs =
                vec![Tmpfs { container_path: "/tmp".into(), size_mib: 1, mount_options: vec![] }];
            sandbox.run_to_end(vec![app]);
            // It starts or not; the host has nothing of it.
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{name} {target:?}");
            assert!(!std::path::Path::new("/x").exists());
        }
    }
}

#[test]
fn mounts_over_proc_and_root_are_refused() {
    for path in ["/proc", "/proc/self", "/", "/../x"] {
        let mut sandbox = TestSandbox::start();
        let mut app = sandbox.shell("app", "true");
        app.spec.mounts =
            vec![MountSpec { volume: "v".into(), container_path: path.into(), read_only: false }];
        let mut spec = sandbox.spec(vec![app]);
        spec.volumes = vec![VolumeSpec { name: "v".into() }];
        sandbox.run(spec);
        sandbox.wait_for_end();
        assert_eq!(sandbox.container("app").started_at, None, "{path}");
    }
}

#[test]
fn capabilities_are_fargates_and_changes_apply() {
    let caps = "grep -e CapEff -e CapBnd -e CapAmb -e CapInh /proc/self/status | cut -f2 | tr '\\n' ' '";
    let (text, _) = TestSandbox::shell_output(caps);
    assert_eq!(text.trim(), "0000000000000000 00000000a80425fb 00000000a80425fb 0000000000000000");
    let (text, _) = TestSandbox::output_of(caps, |app| {
        app.spec.linux.add_capabilities = vec!["SYS_PTRACE".into()];
        app.spec.linux.drop_capabilities = vec!["ALL".into()];
    });
    assert_eq!(text.trim(), "0000000000000000 0000000000080000 0000000000080000 0000000000000000");
}

#[test]
fn an_added_capability_is_only_the_tasks() {
    let (text, _) = TestSandbox::output_of(
        "mount -t tmpfs x /tmp && echo mounted; \
         echo x 2>/dev/null > /proc/sys/kernel/core_pattern || echo refused; cat /dev/sda 2>/dev/null || echo no disk; \
         mknod /tmp/d b 7 0 2>/dev/null || echo no node; mount -t ext4 /dev/loop0 /tmp 2>/dev/null || echo no ext4",
        |app| app.spec.linux.add_capabilities = vec!["ALL".into()],
    );
    let text: Vec<_> = text.lines().filter(|line| !line.starts_with("/bin/sh")).collect();
    assert_eq!(text.join("\n"), "mounted\nrefused\nno disk\nno node\nno ext4");
}

#[test]
fn layers_stay_as_they_are() {
    let mut sandbox = TestSandbox::start();
    let before = fs::metadata(sandbox.layer().join("etc/group")).unwrap();
    let app = sandbox.shell(
        "app",
        "stat -c '%u:%g' /etc/passwd /home/app; echo '#' >> /etc/group; rm /data/seed; chown 5:6 /bin/sh /tmp; stat -c '%u:%g' /tmp; touch /new; stat -c %u /new",
    );
    sandbox.run_to_end(vec![app]);
    assert_eq!(sandbox.text("app"), "0:0\n1000:1000\n5:6\n0");
    let after = fs::metadata(sandbox.layer().join("etc/group")).unwrap();
    assert_eq!((before.len(), before.mtime()), (after.len(), after.mtime()));
    assert!(sandbox.layer().join("data/seed").exists() && !sandbox.layer().join("new").exists());
    assert_eq!(fs::metadata(sandbox.layer().join("tmp")).unwrap().uid(), 0);
}
