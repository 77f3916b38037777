//! botocore's `service-2.json`, as far as the generator reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

#[derive(Deserialize)]
pub struct Model {
    pub metadata: Metadata,
    pub operations: BTreeMap<String, Operation>,
    pub shapes: BTreeMap<String, Shape>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub api_version: String,
    pub endpoint_prefix: String,
    pub protocol: String,
    pub json_version: Option<String>,
    pub signing_name: Option<String>,
    pub target_prefix: Option<String>,
    pub xml_namespace: Option<String>,
}

#[derive(Deserialize)]
pub struct Operation {
    pub input: Option<Reference>,
    pub output: Option<Reference>,
    #[serde(default)]
    pub errors: Vec<Reference>,
}

#[derive(Deserialize)]
pub struct Reference {
    pub shape: String,
}

#[derive(Deserialize)]
pub struct Shape {
    #[serde(rename = "type")]
    pub kind: String,
    /// In the model's order.
    #[serde(default)]
    members: Map<String, Value>,
    #[serde(default)]
    pub required: BTreeSet<String>,
    pub member: Option<Reference>,
    pub key: Option<Reference>,
    pub value: Option<Reference>,
    #[serde(default, rename = "enum")]
    pub values: Vec<String>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub pattern: Option<String>,
    #[serde(default)]
    pub exception: bool,
    #[serde(default)]
    pub fault: bool,
    pub error: Option<ErrorTrait>,
    #[serde(default)]
    pub sensitive: bool,
    #[serde(default)]
    pub document: bool,
    #[serde(default)]
    pub eventstream: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorTrait {
    pub code: Option<String>,
    pub http_status_code: Option<u16>,
}

impl Shape {
    /// The members in the model's order, with the shapes they refer to.
    pub fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        self.members
            .iter()
            .filter_map(|(name, reference)| Some((name.as_str(), reference.get("shape")?.as_str()?)))
    }
}

impl Model {
    /// Reads the newest API version of `service` below the package's directory.
    pub fn read(botocore: &Path, service: &str) -> anyhow::Result<Self> {
        let directory = botocore.join("data").join(service);
        let mut versions: Vec<PathBuf> = fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir())
            .collect();
        versions.sort();
        let newest = versions.pop().with_context(|| format!("{} is empty", directory.display()))?;
        read_json(&newest.join("service-2.json"))
    }

    pub fn shape(&self, name: &str) -> anyhow::Result<&Shape> {
        self.shapes.get(name).with_context(|| format!("the model has no shape {name}"))
    }

    /// All shapes contained in `roots`, themselves included, in name order.
    pub fn reachable(&self, roots: &[String]) -> anyhow::Result<Vec<String>> {
        let mut seen = BTreeSet::new();
        let mut open = roots.to_vec();
        while let Some(name) = open.pop() {
            let shape = self.shape(&name)?;
            if !seen.insert(name) {
                continue;
            }
            open.extend(shape.members().map(|(_, target)| target.to_owned()));
            let parts = [&shape.member, &shape.key, &shape.value];
            open.extend(parts.into_iter().flatten().map(|part| part.shape.clone()));
        }
        Ok(seen.into_iter().collect())
    }
}

/// The directory of the `botocore` package that `python3` imports.
pub fn installed_botocore() -> anyhow::Result<PathBuf> {
    let program = "import botocore, os; print(os.path.dirname(botocore.__file__))";
    let output = Command::new("python3")
        .args(["-c", program])
        .output()
        .context("cannot run python3 (or give --botocore DIR)")?;
    if !output.status.success() {
        bail!("python3 has no botocore: install it, or give --botocore DIR");
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// Refuses a package of another version: its output would differ for reasons outside this tree.
pub fn require_version(botocore: &Path, wanted: &str) -> anyhow::Result<()> {
    let path = botocore.join("__init__.py");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix("__version__ = "))
        .map(|version| version.trim().trim_matches(['\'', '"']))
        .with_context(|| format!("{} names no version", path.display()))?;
    if found != wanted {
        bail!("botocore {wanted} is wanted, {} is {found}", botocore.display());
    }
    Ok(())
}

/// Reads `path`, or `path` + `.gz`.
fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let mut text = String::new();
    if path.exists() {
        text = fs::read_to_string(path)?;
    } else {
        let packed = PathBuf::from(format!("{}.gz", path.display()));
        let file = fs::File::open(&packed).with_context(|| format!("cannot open {}", packed.display()))?;
        GzDecoder::new(file).read_to_string(&mut text)?;
    }
    serde_json::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))
}
