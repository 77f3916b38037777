//! Compiles the system call filters (`seccomp/monitor.json`) to BPF, so that the monitor carries no
//! compiler and a mistake in the file is a build error.

use std::fmt::Write as _;
use std::path::PathBuf;

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

/// Which lists of the file each kind of thread gets. Device and processor threads are started by the
/// main thread and have its filter, too: the kernel takes the strictest answer, so the main thread's
/// allows all that theirs do.
const KINDS: [(&str, &[&str]); 4] = [
    ("MAIN", &["common", "device", "vcpu", "pager", "main"]),
    ("DEVICE", &["common", "device"]),
    // A processor's access to a device's registers can make the device begin or end its work.
    ("VCPU", &["common", "device", "vcpu"]),
    ("PAGER", &["common", "pager"]),
];

fn main() {
    let source = "seccomp/monitor.json";
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-changed=build.rs");
    // Set by cargo-fuzz.
    println!("cargo:rustc-check-cfg=cfg(fuzzing)");
    let text = std::fs::read_to_string(source).expect("seccomp/monitor.json is in the repository");
    let lists: Value = serde_json::from_str(&text).expect("seccomp/monitor.json is JSON");
    let arch: TargetArch = std::env::var("CARGO_CFG_TARGET_ARCH")
        .expect("cargo sets it")
        .as_str()
        .try_into()
        .expect("an architecture with system call filters");
    let mut code = String::new();
    for (kind, names) in KINDS {
        let rules: Vec<Value> = names
            .iter()
            .flat_map(|name| lists[name].as_array().expect("each list is there").clone())
            .collect();
        let filter = json!({ kind: {
            "mismatch_action": "kill_process", "match_action": "allow", "filter": rules,
        }});
        let mut compiled =
            compile_from_json(filter.to_string().as_bytes(), arch).expect("the rules are well-formed");
        let program: BpfProgram = compiled.remove(kind).expect("it was compiled");
        writeln!(code, "static {kind}: [sock_filter; {}] = [", program.len()).expect("into a string");
        for part in program {
            writeln!(
                code,
                "    sock_filter {{ code: {}, jt: {}, jf: {}, k: {} }},",
                part.code, part.jt, part.jf, part.k
            )
            .expect("into a string");
        }
        code.push_str("];\n");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it")).join("seccomp.rs");
    std::fs::write(out, code).expect("the output directory can be written");
}
