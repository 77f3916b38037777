//! `coracle images`: what the built-in registry holds.

use aws_api::ecr::operation::{DescribeImages, DescribeRepositories};
use aws_api::ecr::{DescribeImagesRequest, DescribeRepositoriesRequest, ImageDetail};

use super::{Context, Output, print, time_text};
use crate::client::Client;

pub async fn main(context: &Context) -> anyhow::Result<()> {
    let client = context.client()?;
    let mut images = Vec::new();
    for repository in repositories(&client).await? {
        images.extend(images_of(&client, repository).await?);
    }
    if context.output == Output::Json {
        return print::json(&images);
    }
    let now = time_text::now();
    let rows = images.iter().flat_map(|image| rows(image, &client.server.registry, now)).collect();
    print::table(&["IMAGE", "TAG", "DIGEST", "SIZE", "PUSHED"], rows)
}

async fn repositories(client: &Client) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut request = DescribeRepositoriesRequest::default();
    loop {
        let page = client.call::<DescribeRepositories>(&request).await?;
        names.extend(page.repositories.into_iter().flatten().filter_map(|r| r.repository_name));
        request.next_token = page.next_token;
        if request.next_token.is_none() {
            names.sort_unstable();
            return Ok(names);
        }
    }
}

async fn images_of(client: &Client, repository: String) -> anyhow::Result<Vec<ImageDetail>> {
    let mut images = Vec::new();
    let mut request =
        DescribeImagesRequest { repository_name: repository, ..DescribeImagesRequest::default() };
    loop {
        let page = match client.call::<DescribeImages>(&request).await {
            // It was deleted since it was listed.
            Err(error) if is_gone(&error) => return Ok(images),
            page => page?,
        };
        images.extend(page.image_details.unwrap_or_default());
        request.next_token = page.next_token;
        if request.next_token.is_none() {
            images.sort_by_key(|image| std::cmp::Reverse(image.image_pushed_at));
            return Ok(images);
        }
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<aws_api::Error>().is_some_and(|error| error.code == "RepositoryNotFoundException")
}

/// A row for every tag; one for an image without.
fn rows(image: &ImageDetail, registry: &str, now: i64) -> Vec<Vec<String>> {
    let name = format!("{registry}/{}", image.repository_name.as_deref().unwrap_or_default());
    let digest = image.image_digest.as_deref().unwrap_or_default();
    let none = [String::from("-")];
    let tags = image.image_tags.as_deref().filter(|tags| !tags.is_empty()).unwrap_or(&none);
    let size = image.image_size_in_bytes.and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
    let pushed = image.image_pushed_at.map(|at| format!("{} ago", time_text::age(now - at.as_millis())));
    let row = |tag: &String| {
        vec![
            name.clone(),
            tag.clone(),
            digest.get(..19).unwrap_or(digest).to_owned(),
            indicatif::BinaryBytes(size).to_string(),
            pushed.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    tags.iter().map(row).collect()
}
