//! Registry authentication: `WWW-Authenticate` challenges (RFC 9110, 11.6.1) and Docker's token scheme (distribution
//! docs, "Token Authentication Specification").
//!
//! Credentials go to the registry itself (Basic) or to the realm it names (Bearer), never along a redirect. Tokens are
//! kept per registry, repository and identity, so that nobody is served with another's.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use model::Secret;

use super::Auth;
use crate::image::digest::{Digest, Hasher};

/// A token without a lifetime is good for this long (token spec: 60 seconds).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Tokens are renewed this much before their end.
const MARGIN: Duration = Duration::from_secs(10);
/// Tokens kept; beyond it, those that ended go, then all.
const CACHE_MAX: usize = 4096;

impl Auth {
    /// The value of an `Authorization: Basic` header.
    pub(super) fn basic(&self) -> Option<Secret> {
        match self {
            Self::Anonymous => None,
            Self::Basic { username, password } => {
                let pair = format!("{username}:{}", password.expose());
                Some(Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))))
            }
        }
    }

    fn identity(&self) -> Option<Digest> {
        self.basic().map(|basic| {
            let mut hasher = Hasher::new();
            hasher.update(basic.expose().as_bytes());
            hasher.finish()
        })
    }
}

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenge to answer, of all `WWW-Authenticate` headers: Bearer before Basic.
pub(super) fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in parse_challenges(header) {
            let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            match (scheme.as_str(), get("realm")) {
                ("bearer", Some(realm)) => {
                    return Some(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
                }
                ("basic", _) => basic = Some(Challenge::Basic),
                _ => {}
            }
        }
    }
    basic
}

/// Splits `Scheme a=b, c="d, e", Scheme2 …`; names in lower case. What it cannot read ends it.
fn parse_challenges(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    const HEADER_MAX: usize = 8 << 10;
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    if header.len() > HEADER_MAX {
        return challenges;
    }
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return challenges;
        }
        if let Some(value) = after.strip_prefix('=') {
            let Some((value, after)) = parse_value(value) else { return challenges };
            if let Some((_, parameters)) = challenges.last_mut() {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = after;
        } else {
            challenges.push((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
        }
    }
}

fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// What a token is for: a repository of a registry, and who asks.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    base: String,
    repository: String,
    identity: Option<Digest>,
}

impl TokenKey {
    pub(super) fn new(base: &str, repository: &str, auth: &Auth) -> Self {
        Self { base: base.to_owned(), repository: repository.to_owned(), identity: auth.identity() }
    }
}

/// `Authorization` headers that registries took.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<TokenKey, (Secret, Option<Instant>)>>);

impl Tokens {
    pub(super) fn get(&self, key: &TokenKey) -> Option<Secret> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (header, end) = tokens.get(key)?;
        end.is_none_or(|end| Instant::now() < end).then(|| header.clone())
    }

    pub(super) fn put(&self, key: TokenKey, header: Secret, lifetime: Option<Duration>) {
        let now = Instant::now();
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= CACHE_MAX {
            tokens.retain(|_, (_, end)| end.is_some_and(|end| now < end));
            if tokens.len() >= CACHE_MAX {
                tokens.clear();
            }
        }
        tokens.insert(key, (header, lifetime.map(|lifetime| now + lifetime.saturating_sub(MARGIN))));
    }

    pub(super) fn forget(&self, key: &TokenKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// A token server's answer.
#[derive(serde::Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl TokenAnswer {
    /// The `Authorization` header, and how long it is good for; `None` without a usable token.
    pub(super) fn header(self) -> Option<(Secret, Duration)> {
        let token = self.token.filter(|t| !t.expose().is_empty()).or(self.access_token)?;
        // What is not a header value is no token.
        if token.expose().is_empty() || !token.expose().bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let lifetime = self.expires_in.filter(|s| *s > 0).map_or(DEFAULT_LIFETIME, Duration::from_secs);
        // At most a day: an hour more or less is of no use, and the sum must not overflow.
        let lifetime = lifetime.min(Duration::from_secs(24 * 3600));
        Some((Secret::new(format!("Bearer {}", token.expose())), lifetime))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        assert_eq!(
            challenge([hub].into_iter()),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:a/b:pull,push".into()),
            })
        );
        let ecr = r#"Basic realm="https://1.dkr.ecr.us-east-1.amazonaws.com/",service="ecr.amazonaws.com""#;
        assert_eq!(challenge([ecr].into_iter()), Some(Challenge::Basic));
        let both = r#"Basic realm="x", Bearer realm="y \"z\"""#;
        let bearer = Challenge::Bearer { realm: "y \"z\"".into(), service: None, scope: None };
        assert_eq!(challenge([both].into_iter()), Some(bearer));
        for bad in ["", "Bearer", "Bearer realm=\"open", "Negotiate", "=,=", ",,,", "Bearer scope=\"x\""] {
            assert_eq!(challenge([bad].into_iter()), None, "{bad}");
        }
    }

    #[test]
    fn tokens_are_not_shared_between_identities() {
        let tokens = Tokens::default();
        let user = |name: &str| Auth::Basic { username: name.into(), password: Secret::new("p") };
        let key = |auth: &Auth| TokenKey::new("https://r", "a", auth);
        tokens.put(key(&user("a")), Secret::new("Bearer t"), Some(Duration::from_secs(60)));
        assert!(tokens.get(&key(&user("a"))).is_some());
        assert!(tokens.get(&key(&user("b"))).is_none());
        assert!(tokens.get(&key(&Auth::Anonymous)).is_none());
        tokens.put(key(&user("b")), Secret::new("Bearer t"), Some(Duration::from_secs(1)));
        assert!(tokens.get(&key(&user("b"))).is_none(), "within the margin of its end");
        let shown = format!("{:?}", Auth::Basic { username: "u".into(), password: Secret::new("hunter2") });
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
