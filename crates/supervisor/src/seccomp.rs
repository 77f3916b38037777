//! The system call filter of containers: `seccomp/container.json`, compiled to BPF.
//!
//! The list is what Docker's default profile allows: everything ordinary programs need, and for
//! some capabilities the calls that make no sense without them.

use anyhow::{Context, Result};
use nix::libc;
use seccompiler::{BpfProgram, TargetArch, apply_filter, compile_from_json};
use serde::Deserialize;
use serde_json::{Value, json};

const PROFILE: &str = include_str!("../seccomp/container.json");

#[derive(Deserialize)]
struct Profile {
    allow: Vec<String>,
    allow_x86_64: Vec<String>,
    allow_aarch64: Vec<String>,
    /// Rules in seccompiler's own form.
    conditional: Vec<Value>,
    with_capability: std::collections::BTreeMap<String, Vec<String>>,
}

/// A compiled filter. When filters disagree the kernel takes the strictest answer, so that each
/// part may only add refusals.
#[derive(Clone)]
pub struct Filter {
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Lets everything through.
    pub fn none() -> Self {
        Self { programs: Vec::new() }
    }

    /// The filter for processes with these capabilities (`CAP_…`).
    ///
    /// # Errors
    /// Never for a built-in profile on a supported architecture; tests compile it for all.
    pub fn for_capabilities<'a>(capabilities: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let arch =
            std::env::consts::ARCH.try_into().context("no system call filter for this architecture")?;
        Self::compile(capabilities, arch)
    }

    fn compile<'a>(capabilities: impl IntoIterator<Item = &'a str>, arch: TargetArch) -> Result<Self> {
        let profile: Profile = serde_json::from_str(PROFILE)?;
        let mut names = profile.allow;
        names.extend(match arch {
            TargetArch::x86_64 => profile.allow_x86_64,
            _ => profile.allow_aarch64,
        });
        for capability in capabilities {
            names.extend(profile.with_capability.get(capability).into_iter().flatten().cloned());
        }
        names.sort_unstable();
        names.dedup();
        let may_clone3 = names.binary_search_by(|name| name.as_str().cmp("clone3")).is_ok();
        if !may_clone3 {
            // Let through here, and answered by the second part.
            names.push("clone3".to_owned());
        }
        let conditional = profile.conditional.into_iter().filter(|rule| {
            // An unconditional rule must not stand beside a conditional one for the same call.
            !names.iter().any(|name| rule["syscall"] == name.as_str())
        });
        let rules: Vec<Value> =
            conditional.chain(names.iter().map(|name| json!({ "syscall": name }))).collect();

        let mut programs = vec![part(libc::EPERM, "allow", rules, arch)?];
        if !may_clone3 {
            let rules = vec![json!({ "syscall": "clone3" })];
            programs.push(part_matching(rules, arch)?);
        }
        Ok(Self { programs })
    }

    /// Applies the filter to this process, for good.
    pub fn apply(&self) -> seccompiler::Result<()> {
        self.programs.iter().try_for_each(|program| apply_filter(program))
    }
}

fn part(refusal: i32, allow: &str, rules: Vec<Value>, arch: TargetArch) -> Result<BpfProgram> {
    compile(json!({ "mismatch_action": { "errno": refusal }, "match_action": allow, "filter": rules }), arch)
}

fn part_matching(rules: Vec<Value>, arch: TargetArch) -> Result<BpfProgram> {
    compile(
        json!({ "mismatch_action": "allow", "match_action": { "errno": libc::ENOSYS }, "filter": rules }),
        arch,
    )
}

fn compile(filter: Value, arch: TargetArch) -> Result<BpfProgram> {
    let document = serde_json::to_vec(&json!({ "container": filter }))?;
    let mut compiled = compile_from_json(document.as_slice(), arch)?;
    compiled.remove("container").context("no program")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiles_for_every_architecture_and_capability() {
        let profile: Profile = serde_json::from_str(PROFILE).unwrap();
        for arch in [TargetArch::x86_64, TargetArch::aarch64] {
            assert_eq!(Filter::compile([], arch).unwrap().programs.len(), 2);
            for capability in profile.with_capability.keys() {
                Filter::compile([capability.as_str()], arch).unwrap();
            }
            let all = profile.with_capability.keys().map(String::as_str);
            assert_eq!(Filter::compile(all, arch).unwrap().programs.len(), 1);
        }
    }
}
