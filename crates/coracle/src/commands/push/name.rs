//! Names of images in the built-in registry.

use anyhow::bail;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    pub repository: String,
    pub tag: String,
}

impl ImageName {
    /// A name as a person gives it, with or without the built-in registry's host and port.
    pub fn parse(text: &str, registry: &str) -> anyhow::Result<Self> {
        let (host, rest) = split_host(text);
        let port = |host: &str| host.rsplit(':').next().unwrap_or_default().to_owned();
        let here = |host: &str| {
            let name = host.split(':').next().unwrap_or_default();
            matches!(name, "localhost" | "127.0.0.1") && port(host) == port(registry)
        };
        if let Some(host) = host.filter(|host| *host != registry && !here(host)) {
            bail!(
                "{host} is another registry; coracle push sends images to the built-in one only, {registry}"
            );
        }
        Self::checked(rest)
    }

    /// A name as it is in an archive, wherever the image came from.
    pub fn of_archive(text: &str) -> anyhow::Result<Self> {
        let (host, rest) = split_host(text);
        let official = matches!(host, None | Some("docker.io" | "index.docker.io"));
        let rest = if official { rest.strip_prefix("library/").unwrap_or(rest) } else { rest };
        Self::checked(rest)
    }

    fn checked(text: &str) -> anyhow::Result<Self> {
        if text.contains('@') {
            bail!("'{text}' names a digest; give NAME or NAME:TAG");
        }
        let (repository, tag) = text.split_once(':').unwrap_or((text, "latest"));
        // ECR's own pattern and lengths (CreateRepository, API reference).
        if !(2..=256).contains(&repository.len()) || !repository.split('/').all(is_component) {
            bail!(
                "'{repository}' cannot be a repository's name: 2 to 256 of a-z, 0-9 and '/', with single . _ - in \
                 between"
            );
        }
        let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        let all = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !first || !all || tag.len() > 128 {
            bail!(
                "'{tag}' cannot be a tag: up to 128 of A-Z, a-z, 0-9 and . _ -, beginning with none of . -"
            );
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.to_owned() })
    }
}

/// The host of an image reference, if its first component is one.
fn split_host(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
        _ => (None, text),
    }
}

fn is_component(text: &str) -> bool {
    let mut after_separator = true;
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => after_separator = false,
            b'.' | b'_' | b'-' if !after_separator => after_separator = true,
            _ => return false,
        }
    }
    !after_separator
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(repository: &str, tag: &str) -> ImageName {
        ImageName { repository: repository.to_owned(), tag: tag.to_owned() }
    }

    #[test]
    fn the_host_may_be_left_out() {
        let here = "localhost:4566";
        assert_eq!(ImageName::parse("web", here).unwrap(), name("web", "latest"));
        assert_eq!(ImageName::parse("team/web:1.0", here).unwrap(), name("team/web", "1.0"));
        assert_eq!(ImageName::parse("localhost:4566/web:1", here).unwrap(), name("web", "1"));
        assert_eq!(ImageName::parse("127.0.0.1:4566/web:1", here).unwrap(), name("web", "1"));
        for bad in [
            "quay.io/web",
            "localhost:5000/web",
            "Web",
            "web:",
            "web:-x",
            "a",
            "../etc",
            "web//x",
            "we--b",
            "web@sha256:0",
            "",
            "web/",
        ] {
            assert!(ImageName::parse(bad, here).is_err(), "{bad}");
        }
    }

    #[test]
    fn archives_name_images_as_they_were_elsewhere() {
        assert_eq!(ImageName::of_archive("docker.io/library/nginx:1").unwrap(), name("nginx", "1"));
        assert_eq!(ImageName::of_archive("quay.io:443/a/b:2").unwrap(), name("a/b", "2"));
    }
}
