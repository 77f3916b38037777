//! Running containers: what a program in one sees, and how it ends.

mod common;

use common::TestSandbox;

#[test]
fn a_program_runs_and_its_exit_code_is_known() {
    let (text, code) = TestSandbox::shell_output("echo hello; id; exit 7");
    assert_eq!(text, "hello\nuid=0(root) gid=0(root) groups=0(root)");
    assert_eq!(code, 7);
}
