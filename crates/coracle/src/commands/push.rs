//! `coracle push`: an image in a file goes to the built-in registry.

mod archive;
mod image;
mod name;
mod progress;
mod registry;

use std::path::PathBuf;

use anyhow::Context as _;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;

use self::archive::Archive;
use self::name::ImageName;
use self::progress::Progress;
use self::registry::Registry;
use super::{Context, Output, print};

#[derive(Clone, Debug, clap::Args)]
pub struct PushArgs {
    /// An OCI layout (a directory or a tar file) or what `docker save` writes; .gz is fine.
    file: PathBuf,
    /// What the image is called in the registry; without it, what the file calls it.
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Say nothing of the progress.
    #[arg(short, long)]
    quiet: bool,
}

/// Blobs that are sent at the same time.
const PARALLEL: usize = 3;

pub async fn main(context: &Context, args: &PushArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let given =
        args.name.as_deref().map(|name| ImageName::parse(name, &client.server.registry)).transpose()?;
    let (file, wanted) = (args.file.clone(), given.clone());
    // Reading and hashing an archive takes a while and blocks.
    let reading = tokio::task::spawn_blocking(move || {
        let archive = Archive::open(&file)?;
        image::read(&archive, wanted.as_ref())
    });
    let image = reading
        .await
        .context("reading the file failed")?
        .with_context(|| format!("cannot push {}", args.file.display()))?;
    let name = match (given, &image.name) {
        (Some(name), _) => name,
        (None, Some(name)) => ImageName::of_archive(name)?,
        (None, None) => {
            anyhow::bail!("{} does not say what the image is called; give a NAME", args.file.display())
        }
    };
    let registry = Registry::log_in(&client, &name.repository).await?;
    let progress = Progress::new(args.quiet, &image.blobs);
    let uploads = image.blobs.iter().map(|blob| {
        let (registry, progress) = (&registry, &progress);
        async move {
            registry.send_blob(blob, progress).await.with_context(|| format!("cannot push {}", blob.digest))
        }
    });
    futures_util::stream::iter(uploads).buffer_unordered(PARALLEL).try_collect::<()>().await?;
    progress.finish();
    // An index comes after what it refers to, and gets the tag.
    let (last, children) = image.manifests.split_last().context("the image has no manifest")?;
    for manifest in children {
        registry.put_manifest(manifest, &manifest.digest).await?;
    }
    registry.put_manifest(last, &name.tag).await?;
    let tagged = format!("{}/{}:{}", client.server.registry, name.repository, name.tag);
    match context.output {
        Output::Text => print::line(format_args!("pushed {tagged}@{}", last.digest)),
        Output::Json => print::json(&json!({
            "image": tagged,
            "repository": name.repository,
            "tag": name.tag,
            "digest": last.digest,
        })),
    }
}
