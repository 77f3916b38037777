//! `cargo xtask deps`: the workspace's imports against the table of `deps.json`.
//!
//! The table is that of the design: which of our crates each may import, and which foreign crates
//! must not be below it. Crates that do not exist yet may stand in it; a crate that is missing in it
//! is a violation. Dependencies of tests alone are not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

/// Crate → what it may import.
type Table = BTreeMap<String, Rule>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Our crates that it may name.
    may_import: BTreeSet<String>,
    /// Foreign crates that must not be in its closure.
    #[serde(default)]
    without: BTreeSet<String>,
}

/// `cargo metadata --format-version 1`, as far as it is read.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Dependency {
    /// Whether the crate itself needs it, rather than its build script or tests.
    fn normal(&self) -> bool {
        self.dep_kinds.iter().any(|kind| kind.kind.is_none())
    }

    fn for_tests_only(&self) -> bool {
        self.dep_kinds.iter().all(|kind| kind.kind.as_deref() == Some("dev"))
    }
}

/// Fails with a list of all violations.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let table: Table =
        serde_json::from_str(include_str!("../deps.json")).context("cannot parse xtask/deps.json")?;
    let violations = violations(&table, &metadata(root)?);
    if violations.is_empty() {
        return Ok(());
    }
    bail!("imports that xtask/deps.json does not allow:\n  {}", violations.join("\n  "))
}

fn metadata(root: &Path) -> anyhow::Result<Metadata> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cannot parse cargo metadata's output")
}

fn violations(table: &Table, metadata: &Metadata) -> Vec<String> {
    let names: BTreeMap<&str, &str> =
        metadata.packages.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let name = |id: &str| names.get(id).copied().unwrap_or_default().to_owned();

    let mut violations = BTreeSet::new();
    for member in &metadata.workspace_members {
        let from = name(member);
        let Some(rule) = table.get(&from) else {
            violations.insert(format!("{from} is not in the table"));
            continue;
        };
        let dependencies = nodes.get(member.as_str()).map_or(&[][..], |node| &node.deps);
        for dependency in dependencies.iter().filter(|dependency| !dependency.for_tests_only()) {
            let to = name(&dependency.pkg);
            if metadata.workspace_members.contains(&dependency.pkg) && !rule.may_import.contains(&to) {
                violations.insert(format!("{from} imports {to}"));
            }
        }
        for path in forbidden_paths(&nodes, member, rule, &name) {
            violations.insert(path);
        }
    }
    violations.into_iter().collect()
}

/// How each forbidden crate is reached from `root`: `model → uuid → tokio`.
fn forbidden_paths(
    nodes: &BTreeMap<&str, &Node>,
    root: &str,
    rule: &Rule,
    name: &impl Fn(&str) -> String,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([root.to_owned()]);
    let mut open = vec![(root.to_owned(), name(root))];
    while let Some((id, path)) = open.pop() {
        let dependencies = nodes.get(id.as_str()).map_or(&[][..], |node| &node.deps);
        for dependency in dependencies.iter().filter(|dependency| dependency.normal()) {
            if !seen.insert(dependency.pkg.clone()) {
                continue;
            }
            let to = name(&dependency.pkg);
            let path = format!("{path} → {to}");
            if rule.without.contains(&to) {
                found.push(path);
            } else {
                open.push((dependency.pkg.clone(), path));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table() -> Table {
        serde_json::from_value(json!({
            "model": { "may_import": [], "without": ["tokio"] },
            "plan": { "may_import": ["model"] },
            "vmm": { "may_import": ["model"] },
        }))
        .unwrap()
    }

    /// A workspace of `model` and `plan` over `serde` and `tokio`, with these edges.
    fn workspace(edges: &[(&str, &str, Option<&str>)]) -> Metadata {
        let names = ["model", "plan", "serde", "tokio"];
        let nodes: Vec<_> = names
            .iter()
            .map(|name| {
                let deps: Vec<_> = edges
                    .iter()
                    .filter(|(from, ..)| from == name)
                    .map(
                        |(_, to, kind)| json!({ "pkg": format!("id-{to}"), "dep_kinds": [{ "kind": kind }] }),
                    )
                    .collect();
                json!({ "id": format!("id-{name}"), "deps": deps })
            })
            .collect();
        let packages: Vec<_> =
            names.iter().map(|name| json!({ "id": format!("id-{name}"), "name": name })).collect();
        serde_json::from_value(json!({
            "packages": packages,
            "workspace_members": ["id-model", "id-plan"],
            "resolve": { "nodes": nodes },
        }))
        .unwrap()
    }

    #[test]
    fn allowed_imports_pass() {
        let metadata = workspace(&[("plan", "model", None), ("plan", "tokio", None)]);
        assert!(violations(&table(), &metadata).is_empty());
    }

    #[test]
    fn an_import_against_the_table_is_found() {
        for kind in [None, Some("build")] {
            let metadata = workspace(&[("model", "plan", kind)]);
            assert_eq!(violations(&table(), &metadata), ["model imports plan"]);
        }
    }

    #[test]
    fn tests_may_import_what_they_need() {
        let metadata = workspace(&[("model", "plan", Some("dev")), ("model", "tokio", Some("dev"))]);
        assert!(violations(&table(), &metadata).is_empty());
    }

    #[test]
    fn a_forbidden_crate_is_found_through_others() {
        let metadata = workspace(&[("model", "serde", None), ("serde", "tokio", None)]);
        assert_eq!(violations(&table(), &metadata), ["model → serde → tokio"]);
    }

    #[test]
    fn a_crate_outside_the_table_is_found() {
        let mut table = table();
        table.remove("plan");
        assert_eq!(violations(&table, &workspace(&[])), ["plan is not in the table"]);
    }

    #[test]
    fn this_workspace_keeps_its_table() {
        run(&crate::workspace_root().unwrap()).unwrap();
    }
}
