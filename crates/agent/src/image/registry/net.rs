//! Where requests may go.
//!
//! A tenant names the registry, and the registry names further hosts: redirects of blobs, realms of tokens. So:
//! - no request goes to a link-local address (cloud metadata services), nor to an unspecified or multicast one;
//! - a host that only the registry named may not be on loopback, unless the registry itself is;
//! - plain HTTP is for loopback hosts and those configured as insecure; nothing leads from HTTPS down to it.
//!
//! Names are checked by what they resolve to, in the resolver that the connection uses, so that a second answer cannot
//! differ from the checked one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url};

use crate::image::disk::OpenError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest silence within a response.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// HTTP clients for the two kinds of hosts.
pub(super) struct Clients {
    /// Hosts that the reference or the configuration names.
    direct: Client,
    /// Hosts that only a registry names.
    foreign: Client,
    insecure: Vec<String>,
}

impl Clients {
    /// `insecure` are `host` or `host:port`; `ca_certificates` are PEM bundles trusted beside the system's.
    pub(super) fn new(insecure: Vec<String>, ca_certificates: &[Vec<u8>]) -> Result<Self, OpenError> {
        let mut certificates = Vec::new();
        for pem in ca_certificates {
            certificates.extend(reqwest::Certificate::from_pem_bundle(pem).map_err(OpenError::Certificate)?);
        }
        let build = |reach| {
            let builder = || {
                Client::builder()
                    .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
                    .redirect(reqwest::redirect::Policy::none())
                    .retry(reqwest::retry::never())
                    // A connection per layer: one HTTP/2 connection's flow control would bound them all together.
                    .http1_only()
                    .tcp_nodelay(true)
                    .connect_timeout(CONNECT_TIMEOUT)
                    .read_timeout(READ_TIMEOUT)
                    .dns_resolver(Resolver { reach })
            };
            match builder().tls_certs_merge(certificates.clone()).build() {
                Ok(client) => Ok(client),
                // A host without any CA certificate still pulls from plain and explicitly trusted registries.
                Err(error) => match builder().tls_certs_only(certificates.clone()).build() {
                    Ok(client) => {
                        tracing::warn!(%error, "no system CA certificates: registries need certificates of their own");
                        Ok(client)
                    }
                    Err(_) => Err(OpenError::Client(error)),
                },
            }
        };
        Ok(Self { direct: build(Reach::Direct)?, foreign: build(Reach::Foreign)?, insecure })
    }

    /// The scheme to speak to a reference's host with.
    pub(super) fn scheme(&self, host: &str) -> &'static str {
        if self.is_insecure(host) { "http" } else { "https" }
    }

    fn is_insecure(&self, host_and_port: &str) -> bool {
        let host = without_port(host_and_port);
        is_loopback_name(host) || self.insecure.iter().any(|entry| entry == host_and_port || entry == host)
    }

    /// The client for `target`, a URL that the registry at `base` led to (or `base`'s own); `Err` says why there is none.
    pub(super) fn route(&self, base: &Url, target: &Url) -> Result<&Client, &'static str> {
        let reach = if target.host_str() == base.host_str() || base.host_str().is_some_and(is_loopback_name) {
            Reach::Direct
        } else {
            Reach::Foreign
        };
        match target.scheme() {
            "https" => {}
            "http" if base.scheme() == "http" => {
                let with_port =
                    target.port().map(|port| format!("{}:{port}", target.host_str().unwrap_or_default()));
                let host = with_port.as_deref().or(target.host_str()).unwrap_or_default();
                if target.origin() != base.origin() && !self.is_insecure(host) {
                    return Err("plain HTTP to a host that is not configured as insecure");
                }
            }
            "http" => return Err("it leads from HTTPS to plain HTTP"),
            _ => return Err("it is neither HTTP nor HTTPS"),
        }
        if !target.username().is_empty() || target.password().is_some() {
            return Err("it has credentials in it");
        }
        // The resolver does not see addresses.
        let literal = target.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        if let Some(Ok(address)) = literal.map(str::parse::<IpAddr>)
            && !reach.allows(address)
        {
            return Err("its address is not allowed");
        }
        Ok(match reach {
            Reach::Direct => &self.direct,
            Reach::Foreign => &self.foreign,
        })
    }
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.split_inclusive(']').next().unwrap_or(host);
    }
    host.split(':').next().unwrap_or(host)
}

/// `localhost`, 127.0.0.0/8 and `[::1]`, by name alone.
fn is_loopback_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Direct,
    Foreign,
}

impl Reach {
    fn allows(self, address: IpAddr) -> bool {
        let address = match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
            IpAddr::V4(_) => address,
        };
        let never = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4 == Ipv4Addr::BROADCAST,
            // fd00:ec2::/32 has the EC2 metadata service.
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments()[..2] == [0xfd00, 0x0ec2],
        };
        !never
            && !address.is_unspecified()
            && !address.is_multicast()
            && (self == Self::Direct || !address.is_loopback())
    }
}

struct Resolver {
    reach: Reach,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach;
        Box::pin(async move {
            // RFC 6761, 6.3: the name is loopback, whatever a resolver says.
            if name.as_str() == "localhost" {
                let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                let allowed =
                    loopback.into_iter().filter(|a| reach.allows(*a)).map(|a| SocketAddr::new(a, 0));
                return answer(allowed.collect());
            }
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            answer(found.filter(|address| reach.allows(address.ip())).collect())
        })
    }
}

fn answer(addresses: Vec<SocketAddr>) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
    if addresses.is_empty() {
        return Err("no such host, or none at an allowed address".into());
    }
    Ok(Box::new(addresses.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Clients {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Clients::new(vec!["plain.test:5000".to_owned(), "any.test".to_owned()], &[]).unwrap()
    }

    #[test]
    fn plain_http_is_for_loopback_and_configured_hosts() {
        let clients = clients();
        for (host, scheme) in [
            ("localhost:5000", "http"),
            ("localhost", "http"),
            ("127.8.9.1:80", "http"),
            ("[::1]:5000", "http"),
            ("plain.test:5000", "http"),
            ("plain.test:5001", "https"),
            ("any.test:1", "http"),
            ("docker.io", "https"),
            ("localhost.evil.test", "https"),
            ("10.0.0.1:5000", "https"),
        ] {
            assert_eq!(clients.scheme(host), scheme, "{host}");
        }
    }

    #[test]
    fn a_registry_cannot_lead_where_it_should_not() {
        let clients = clients();
        let route = |base: &str, target: &str| {
            clients.route(&Url::parse(base).unwrap(), &Url::parse(target).unwrap()).map(|_| ())
        };
        assert!(route("https://r.test", "https://cdn.test/x").is_ok());
        assert!(route("https://r.test", "https://10.0.0.1/x").is_ok(), "private networks have registries");
        assert!(route("http://127.0.0.1:5000", "http://127.0.0.1:6000/x").is_ok());
        assert!(route("http://localhost:5000", "https://auth.test/x").is_ok());
        for (base, target) in [
            ("https://r.test", "http://r.test/x"),
            ("https://r.test", "http://127.0.0.1/x"),
            ("https://r.test", "https://127.0.0.1/x"),
            ("https://r.test", "https://[::1]/x"),
            ("https://r.test", "https://[::ffff:127.0.0.1]/x"),
            ("https://r.test", "https://169.254.169.254/latest"),
            ("https://169.254.169.254", "https://169.254.169.254/v2/"),
            ("http://127.0.0.1:5000", "http://169.254.170.2/v2/"),
            ("https://r.test", "https://0.0.0.0/x"),
            ("http://localhost:5000", "http://other.test/x"),
            ("https://r.test", "ftp://r.test/x"),
            ("https://r.test", "https://user:pw@r.test/x"),
        ] {
            assert!(route(base, target).is_err(), "{base} led to {target}");
        }
    }

    #[tokio::test]
    async fn names_are_checked_by_what_they_resolve_to() {
        let resolve =
            async |reach| Resolver { reach }.resolve("localhost".parse().unwrap()).await.map(|a| a.count());
        assert_eq!(resolve(Reach::Direct).await.unwrap(), 2);
        assert!(resolve(Reach::Foreign).await.is_err());
    }
}
