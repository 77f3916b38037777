//! A host of the test's own: the test runs again in a child process with its own network and mount
//! namespaces, so nothing it does to routes, firewalls or `/run/netns` is seen outside, and all of
//! it is gone when the child ends, however it ends. `/run/netns` and the directory for temporary
//! files are its own, too.

use std::process::Command;

const INSIDE: &str = "CORACLE_TEST_PRIVATE_HOST";

/// Runs `test` (whose path is `name`) on a host of its own. Fails without root.
pub fn on_private_host(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        return test();
    }
    let temporary = tempfile::tempdir().expect("a directory for temporary files");
    // Names of network namespaces are files, which a mount namespace alone does not keep apart.
    let script = "mkdir -p /run/netns && mount -t tmpfs netns /run/netns && exec \"$0\" \"$@\"";
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--fork", "--kill-child", "sh", "-c", script])
        .arg(std::env::current_exe().expect("the test's own path"))
        .args([name, "--exact", "--nocapture", "--include-ignored"])
        .env(INSIDE, name)
        .env("TMPDIR", temporary.path())
        .output()
        .expect("unshare (util-linux)");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "on a private host:\n{text}");
    print!("{text}");
}
