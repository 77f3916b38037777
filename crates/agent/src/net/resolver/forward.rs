//! Asking the host's resolvers, with a cache.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often a change of `/etc/resolv.conf` is looked for.
const RECHECK: Duration = Duration::from_secs(5);
/// When to give up: before libc's resolver does (5 s, resolv.conf(5)), so that a task gets its
/// SERVFAIL instead of a time-out.
const DEADLINE: Duration = Duration::from_secs(4);

/// An answer from elsewhere.
#[derive(Debug)]
pub struct Forwarded {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

impl Forwarded {
    pub(super) fn failure(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authorities: Vec::new() }
    }
}

/// Forwards to the given servers, or to those of the host's `/etc/resolv.conf`, which is read
/// again when it changes. Its sockets are the host's: tasks cannot see or bind them.
#[derive(Debug)]
pub struct Forwarder {
    fixed: Option<Vec<SocketAddr>>,
    current: Mutex<Current>,
}

struct Current {
    checked: Option<Instant>,
    modified: Option<SystemTime>,
    resolver: Option<Arc<TokioResolver>>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("modified", &self.modified).finish_non_exhaustive()
    }
}

impl Forwarder {
    /// `servers`: `None` for the host's own.
    pub fn new(servers: Option<Vec<SocketAddr>>) -> Self {
        let current = Current { checked: None, modified: None, resolver: None };
        Self { fixed: servers, current: Mutex::new(current) }
    }

    /// Asks; SERVFAIL when there is no server to ask, or none answers.
    pub async fn ask(&self, query: &Query) -> Forwarded {
        let Some(resolver) = self.resolver() else {
            return Forwarded::failure(ResponseCode::ServFail);
        };
        let mut name = query.name().clone();
        // Otherwise the host's search list would be tried.
        name.set_fqdn(true);
        let lookup = resolver.lookup(name, query.query_type());
        match tokio::time::timeout(DEADLINE, lookup).await.unwrap_or(Err(NetError::Timeout)) {
            Ok(lookup) => Forwarded {
                code: ResponseCode::NoError,
                answers: lookup.answers().to_vec(),
                authorities: Vec::new(),
            },
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Forwarded {
                code: none.response_code,
                answers: Vec::new(),
                authorities: none.soa.map(|soa| soa.into_record_of_rdata()).into_iter().collect(),
            },
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Forwarded::failure(code),
            Err(error) => {
                tracing::debug!(name = %query.name(), %error, "no answer from the host's resolvers");
                Forwarded::failure(ResponseCode::ServFail)
            }
        }
    }

    fn resolver(&self) -> Option<Arc<TokioResolver>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(servers) = &self.fixed {
            if current.resolver.is_none() {
                current.resolver = build(name_servers(servers));
            }
            return current.resolver.clone();
        }
        if current.checked.is_none_or(|at| at.elapsed() > RECHECK) {
            current.checked = Some(Instant::now());
            let modified = fs::metadata(RESOLV_CONF).and_then(|found| found.modified()).ok();
            if current.resolver.is_none() || modified != current.modified {
                current.modified = modified;
                current.resolver = host_servers().and_then(build);
            }
        }
        current.resolver.clone()
    }
}

fn host_servers() -> Option<Vec<NameServerConfig>> {
    match hickory_resolver::system_conf::read_system_conf() {
        Ok((config, _)) => Some(config.name_servers().to_vec()),
        Err(error) => {
            tracing::warn!(%error, "{RESOLV_CONF} names no usable resolver; tasks get SERVFAIL for outside names");
            None
        }
    }
}

fn name_servers(servers: &[SocketAddr]) -> Vec<NameServerConfig> {
    let connection = |mut connection: ConnectionConfig, port| {
        connection.port = port;
        connection
    };
    servers
        .iter()
        .map(|server| {
            let port = server.port();
            let connections =
                vec![connection(ConnectionConfig::udp(), port), connection(ConnectionConfig::tcp(), port)];
            NameServerConfig::new(server.ip(), true, connections)
        })
        .collect()
}

fn build(servers: Vec<NameServerConfig>) -> Option<Arc<TokioResolver>> {
    if servers.is_empty() {
        return None;
    }
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options: &mut ResolverOpts = builder.options_mut();
    // The host's /etc/hosts is not the VPC's business.
    options.use_hosts_file = ResolveHosts::Never;
    options.preserve_intermediates = true;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.cache_size = 4096;
    options.timeout = Duration::from_millis(1500);
    options.attempts = 2;
    options.max_active_requests = 512;
    // A hostile server must not make an answer stay for ever.
    options.positive_max_ttl = Some(Duration::from_secs(3600));
    options.negative_max_ttl = Some(Duration::from_secs(60));
    match builder.build() {
        Ok(resolver) => Some(Arc::new(resolver)),
        Err(error) => {
            tracing::warn!(%error, "cannot set up forwarding of DNS queries");
            None
        }
    }
}
