//! `cargo xtask licenses`: every package of the lock file has a licence that the project allows,
//! and comes from the public registry. What `cargo deny check licenses bans sources` would say, but
//! from cargo's own metadata, so that CI needs no tool that takes minutes to compile.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

/// SPDX ids that may be linked into an Apache-2.0 binary without further duties than notices.
const ALLOWED: [&str; 14] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Zlib",
];
/// Crates that must not come back: unmaintained, copyleft, or a second TLS provider or runtime.
const BANNED: [&str; 5] = ["openssl", "openssl-sys", "async-std", "rustables", "native-tls"];

/// Packages that name a licence file only, and what it holds.
const READ_BY_HAND: [(&str, &str); 1] = [("rust-criu", "MIT")];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<String>,
    /// `None` for the workspace's own.
    source: Option<String>,
}

pub fn run(root: &Path) -> anyhow::Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--all-features"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cargo metadata said something else")?;
    let found: Vec<String> = metadata.packages.iter().flat_map(violations).collect();
    if !found.is_empty() {
        bail!("{} packages break the rules:\n{}", found.len(), found.join("\n"));
    }
    println!("{} packages: licences and sources are as allowed", metadata.packages.len());
    Ok(())
}

fn violations(package: &Package) -> Vec<String> {
    let mut found = Vec::new();
    let name = format!("{} {}", package.name, package.version);
    let by_hand = READ_BY_HAND.iter().find(|(name, _)| *name == package.name).map(|(_, id)| *id);
    match package.license.as_deref().or(by_hand) {
        Some(expression) if allowed(expression) => {}
        Some(expression) => found.push(format!("{name}: licence {expression}")),
        None => found.push(format!("{name}: no licence ({:?})", package.license_file)),
    }
    if let Some(source) = &package.source
        && !source.starts_with("registry+")
        && !source.starts_with("sparse+")
    {
        found.push(format!("{name}: comes from {source}"));
    }
    if BANNED.contains(&package.name.as_str()) {
        found.push(format!("{name}: is banned"));
    }
    found
}

/// Whether an SPDX expression can be met with allowed licences: each side of `AND`, one of `OR`.
fn allowed(expression: &str) -> bool {
    // The old form of `OR`; parentheses only ever group alternatives in practice, and splitting on
    // AND first within them would be wrong, so they are resolved innermost first.
    let expression = expression.replace('/', " OR ");
    if let Some(open) = expression.rfind('(') {
        let Some(length) = expression[open..].find(')') else { return false };
        let inner = allowed(&expression[open + 1..open + length]);
        let stand_in = if inner { "MIT" } else { "refused" };
        return allowed(&format!("{}{stand_in}{}", &expression[..open], &expression[open + length + 1..]));
    }
    expression.split(" OR ").any(|side| side.split(" AND ").all(|id| ALLOWED.contains(&id.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_by_each_side_of_and_and_one_of_or() {
        for good in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-2.0) AND Unicode-3.0"] {
            assert!(allowed(good), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-2.0", "(GPL-2.0 OR AGPL-3.0) AND MIT", "(MIT", ""] {
            assert!(!allowed(bad), "{bad}");
        }
    }
}
