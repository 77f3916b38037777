//! The host's network: the first storey of awsvpc.
//!
//! ```text
//!  task namespace          router namespace (one per VPC)            host
//!  eth0 172.31.0.5/32 ───── tk…  172.31.0.5/32        uplink ───── crcl-…  172.31.0.0/16
//!  default via .0.1              .0.1 router, .0.2 resolver (lo)           NAT to the outside
//! ```
//!
//! There is no bridge: a task's packets always pass the router's rules. Everything made here
//! belongs to one Coracle [`Instance`], survives this process, and is taken over by the next.
//! The only host-wide setting that is changed is `net.ipv4.ip_forward`, which NAT needs; it is
//! switched on with the first VPC and left on at the end, as others may rely on it by then.

mod error;
pub mod firewall;
mod names;
mod netlink;
pub mod netns;
mod nft_set;
pub mod resolver;
mod router;
pub mod tap;
mod task_link;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use model::network::{Cidr, Eni};
use model::{Region, VpcId};

pub use error::NetError;
pub use netlink::{Netlink, NetlinkError};
pub use resolver::{LocalNames, NameTable, Service};
pub use router::{ROUTER_MAC, Router};
pub use tap::PreparedTap;
pub use task_link::{InterfaceSpec, PreparedLink, TASK_METADATA_ADDRESS, TaskLink, configure_inside};

use crate::instance::Instance;
use netlink::Request;
use resolver::{Forwarder, LocalZone, Resolver};

/// How this instance's network is set up.
#[derive(Debug, Clone)]
pub struct NetConfig {
    pub instance: Instance,
    /// Part of private DNS names.
    pub region: Region,
    /// Where names that are not the VPC's are asked for; `None` for the servers of the host's
    /// `/etc/resolv.conf`.
    pub upstream_dns: Option<Vec<SocketAddr>>,
}

/// The host's network. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NetConfig,
    host: Netlink,
    routers: Mutex<BTreeMap<VpcId, Arc<Router>>>,
    resolvers: Mutex<BTreeMap<VpcId, Resolver>>,
    forwarder: Arc<Forwarder>,
    /// Links made by this process, and what was attached to them: `reconcile` leaves them alone.
    live_links: Mutex<HashMap<String, Option<TaskLink>>>,
    /// Held while routers or the host's rules change.
    set_up: Mutex<()>,
}

impl Network {
    /// Opens the host's network and takes over the routers that an earlier process of the same
    /// instance left. Changes nothing else. Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
    pub async fn open(config: NetConfig) -> Result<Self, NetError> {
        let host = Netlink::open().map_err(NetError::io("open a netlink socket"))?;
        let forwarder = Arc::new(Forwarder::new(config.upstream_dns.clone()));
        let inner = Inner {
            config,
            host,
            routers: Mutex::default(),
            resolvers: Mutex::default(),
            forwarder,
            live_links: Mutex::default(),
            set_up: Mutex::default(),
        };
        let network = Self { inner: Arc::new(inner) };
        for (vpc, cidr) in network.blocking(|inner| inner.left_behind()).await? {
            if let Err(error) = network.ensure_vpc(&vpc, cidr).await {
                tracing::warn!(%vpc, %cidr, %error, "cannot take over a VPC router");
            }
        }
        Ok(network)
    }

    /// Makes a VPC's router, or sees to it that it is complete. `cidr` must be free on this host
    /// (see [`free_cidr`](Self::free_cidr)) and, for now, be the same for every call.
    pub async fn ensure_vpc(&self, vpc: &VpcId, cidr: Cidr) -> Result<(), NetError> {
        let vpc = vpc.clone();
        self.blocking(move |inner| inner.ensure_vpc(&vpc, cidr)).await
    }

    /// `preferred` if this host does not route any of it elsewhere, else the first free block of
    /// the same size (at least a /16) among the private ones: 172.31 down to 172.16, then 10.255
    /// down to 10.0.
    pub async fn free_cidr(&self, preferred: Cidr) -> Result<Cidr, NetError> {
        self.blocking(move |inner| {
            let routes = inner.host.routes()?;
            let free = |cidr: &Cidr| router::overlapping_route(&routes, *cidr, None).is_none();
            let prefix_len = preferred.prefix_len.max(16);
            let block = |a, b| Cidr { base: std::net::Ipv4Addr::new(a, b, 0, 0), prefix_len };
            std::iter::once(preferred)
                .chain((16..=31).rev().map(|b| block(172, b)))
                .chain((0..=255).rev().map(|b| block(10, b)))
                .find(free)
                .ok_or(NetError::NoFreeCidr)
        })
        .await
    }

    /// The block of a VPC that has a router here.
    pub fn vpc_cidr(&self, vpc: &VpcId) -> Option<Cidr> {
        self.inner.router(vpc).ok().map(|router| router.cidr)
    }

    /// The names that a VPC's resolver answers itself, beside those of addresses.
    pub fn names(&self, vpc: &VpcId) -> Option<LocalNames> {
        lock(&self.inner.resolvers).get(vpc).map(|resolver| resolver.names().clone())
    }

    /// Makes a link between the VPC's router and a task's namespace, up on both ends but without
    /// an address: what can be done before there is a task.
    pub async fn prepare(&self, vpc: &VpcId, netns: OwnedFd) -> Result<PreparedLink, NetError> {
        let vpc = vpc.clone();
        self.blocking(move |inner| inner.prepare(&vpc, &netns)).await
    }

    /// Gives a prepared link its interface: address, routes and neighbours on both ends, and the
    /// permission to send from that address. One system call inside, two in the router.
    /// When it fails, the link is removed.
    pub async fn attach(&self, link: PreparedLink, eni: &Eni) -> Result<TaskLink, NetError> {
        let eni = eni.clone();
        self.blocking(move |inner| {
            let attached = inner.attach(&link, &eni);
            if attached.is_err() {
                inner.discard(&link);
            }
            attached
        })
        .await
    }

    /// Makes a tap in the VPC's router for a microVM, up but without an address. It is gone when the
    /// result is dropped.
    pub async fn prepare_tap(&self, vpc: &VpcId) -> Result<PreparedTap, NetError> {
        let vpc = vpc.clone();
        self.blocking(move |inner| inner.prepare_tap(&vpc)).await
    }

    /// Gives a tap its interface, as [`attach`](Self::attach) does on the router's side; the guest's is
    /// configured inside. Returns the guest's end, too. When it fails, the tap is gone.
    pub async fn attach_tap(&self, tap: PreparedTap, eni: &Eni) -> Result<(TaskLink, OwnedFd), NetError> {
        let eni = eni.clone();
        self.blocking(move |inner| {
            let admitted = inner.admit(&tap.vpc, &tap.link, tap.link_index, &eni);
            if admitted.is_err()
                && let Ok(router) = inner.router(&tap.vpc)
            {
                inner.forget(&router, &tap.link);
            }
            Ok((admitted?, tap.file))
        })
        .await
    }

    /// The largest packet that fits through the VPC's links, in bytes.
    ///
    /// # Errors
    /// There is no such VPC here.
    pub fn mtu(&self, vpc: &VpcId) -> Result<u16, NetError> {
        Ok(u16::try_from(self.inner.router(vpc)?.mtu).unwrap_or(u16::MAX))
    }

    /// Removes a link that is not to be attached.
    pub async fn discard(&self, link: PreparedLink) -> Result<(), NetError> {
        self.blocking(move |inner| {
            inner.discard(&link);
            Ok(())
        })
        .await
    }

    /// Removes a task's link. One that is gone already is fine: a link dies with the task's
    /// namespace; then only the permission to send is withdrawn.
    pub async fn detach(&self, link: &TaskLink) -> Result<(), NetError> {
        let link = link.clone();
        self.blocking(move |inner| inner.detach(&link)).await
    }

    /// Brings the host in line with the tasks that are to be there: removes all other task links
    /// (but those that this process made), allows exactly these senders, and renews the host's
    /// rules. Returns the links of `keep` that no longer exist.
    pub async fn reconcile(&self, keep: Vec<TaskLink>) -> Result<Vec<TaskLink>, NetError> {
        self.blocking(move |inner| inner.reconcile(&keep)).await
    }

    /// Removes all that this instance made on the host: routers, links, rules.
    pub async fn teardown(&self) -> Result<(), NetError> {
        self.blocking(Inner::teardown).await
    }

    async fn blocking<T, F>(&self, job: F) -> Result<T, NetError>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> Result<T, NetError> + Send + 'static,
    {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || job(&inner)).await {
            Ok(result) => result,
            Err(error) => Err(NetError::io("finish a network change")(error.into())),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn router(&self, vpc: &VpcId) -> Result<Arc<Router>, NetError> {
        lock(&self.routers).get(vpc).cloned().ok_or_else(|| NetError::UnknownVpc(vpc.clone()))
    }

    /// VPCs whose host link (and so, router) exists, from the link's alias.
    fn left_behind(&self) -> Result<Vec<(VpcId, Cidr)>, NetError> {
        let links = self.host.links()?;
        Ok(links
            .iter()
            .filter_map(|link| {
                let mut words = link.alias.as_deref()?.split(' ');
                let ours =
                    words.next() == Some("coracle") && words.next() == Some(self.config.instance.as_str());
                let vpc = VpcId::parse(words.next()?).ok()?;
                let cidr = words.next()?.parse().ok()?;
                ours.then_some((vpc, cidr))
            })
            .collect())
    }

    fn ensure_vpc(&self, vpc: &VpcId, cidr: Cidr) -> Result<(), NetError> {
        let _guard = lock(&self.set_up);
        // A router can send once its link is up: the host's rules come first.
        let known: Vec<_> =
            lock(&self.routers).iter().map(|(id, router)| (id.clone(), router.cidr)).collect();
        let mut vpcs: Vec<_> = known.iter().filter(|(id, _)| id != vpc).map(|(id, c)| (id, *c)).collect();
        vpcs.push((vpc, cidr));
        self.apply_host_rules(&vpcs)?;
        let router = Router::ensure(&self.config.instance, vpc, cidr, &self.host)?;
        self.ensure_resolver(&router)?;
        lock(&self.routers).insert(vpc.clone(), Arc::new(router));
        enable_forwarding()
    }

    fn ensure_resolver(&self, router: &Router) -> Result<(), NetError> {
        let mut resolvers = lock(&self.resolvers);
        if resolvers.contains_key(&router.vpc) {
            return Ok(());
        }
        let zone = LocalZone::new(router.cidr, &self.config.region, LocalNames::default());
        let resolver = Resolver::start(router.netns(), router.resolver, zone, self.forwarder.clone())
            .map_err(NetError::io(format!("start the resolver at {}", router.resolver)))?;
        resolvers.insert(router.vpc.clone(), resolver);
        Ok(())
    }

    fn apply_host_rules(&self, vpcs: &[(&VpcId, Cidr)]) -> Result<(), NetError> {
        let instance = &self.config.instance;
        let vpcs: Vec<_> = vpcs
            .iter()
            .map(|(vpc, cidr)| firewall::HostVpc { link: names::host_link(instance, vpc), cidr: *cidr })
            .collect();
        firewall::apply(&firewall::host_rules(instance.as_str(), &vpcs))?;
        firewall::open_foreign_forward(instance.as_str())
    }

    fn prepare(&self, vpc: &VpcId, netns: &OwnedFd) -> Result<PreparedLink, NetError> {
        let router = self.router(vpc)?;
        let inside = task_link::enter_task(netns.as_fd())
            .map_err(NetError::io("enter the task's network namespace"))?;
        task_link::set_up_loopback(&inside)?;
        let name = names::task_link(rand::random());
        lock(&self.live_links).insert(name.clone(), None);
        let made = || -> Result<PreparedLink, NetError> {
            router.netlink.batch(vec![Request::add_veth(
                &name,
                ROUTER_MAC,
                names::TASK_INTERFACE,
                // The interface's own comes when it is attached.
                model::network::Mac([0x02, 0xc0, 0xff, 0xff, 0xff, 0xff]),
                Some(netns.as_fd()),
                router.mtu,
            )])?;
            let vanished = || NetError::LinkVanished(name.clone());
            let link_index = router.netlink.link(&name)?.ok_or_else(vanished)?.index;
            let inside_index = inside.link(names::TASK_INTERFACE)?.ok_or_else(vanished)?.index;
            router.netlink.batch(vec![Request::set_link_up(link_index, None, None, None)])?;
            inside.batch(vec![Request::set_link_up(inside_index, None, None, None)])?;
            Ok(PreparedLink {
                vpc: vpc.clone(),
                link: name.clone(),
                link_index,
                inside,
                inside_index,
                mtu: router.mtu,
            })
        };
        let made = made();
        if made.is_err() {
            self.forget(&router, &name);
        }
        made
    }

    fn prepare_tap(&self, vpc: &VpcId) -> Result<PreparedTap, NetError> {
        let router = self.router(vpc)?;
        let name = names::task_link(rand::random());
        lock(&self.live_links).insert(name.clone(), None);
        let made = || -> Result<PreparedTap, NetError> {
            let file = netns::run_in(router.netns(), || tap::create(&name))
                .map_err(NetError::io(format!("make the tap {name} (is /dev/net/tun there?)")))?;
            let found = router.netlink.link(&name)?.ok_or_else(|| NetError::LinkVanished(name.clone()))?;
            let up = Request::set_link_up(found.index, Some(ROUTER_MAC), Some(router.mtu), None);
            router.netlink.batch(vec![up])?;
            Ok(PreparedTap { vpc: vpc.clone(), link: name.clone(), link_index: found.index, file })
        };
        let made = made();
        if made.is_err() {
            self.forget(&router, &name);
        }
        made
    }

    /// The router's side of giving a link its interface.
    fn admit(&self, vpc: &VpcId, link: &str, index: u32, eni: &Eni) -> Result<TaskLink, NetError> {
        if *vpc != eni.vpc {
            return Err(NetError::WrongVpc { prepared: vpc.clone(), wanted: eni.vpc.clone() });
        }
        let router = self.router(&eni.vpc)?;
        if !router.cidr.contains(eni.address) {
            return Err(NetError::ForeignAddress { address: eni.address, cidr: router.cidr });
        }
        let task_link =
            TaskLink { vpc: vpc.clone(), link: link.to_owned(), address: eni.address, mac: eni.mac };
        // `reconcile` must not replace the set of senders in between.
        let mut live = lock(&self.live_links);
        router.admit(&task_link, index)?;
        live.insert(link.to_owned(), Some(task_link.clone()));
        Ok(task_link)
    }

    fn attach(&self, link: &PreparedLink, eni: &Eni) -> Result<TaskLink, NetError> {
        let task_link = self.admit(&link.vpc, &link.link, link.link_index, eni)?;
        let router = self.router(&eni.vpc)?;
        let spec = InterfaceSpec::of(eni, link.mtu);
        if let Err(error) = link.inside.batch(spec.requests(link.inside_index)) {
            router.expel(&task_link)?;
            return Err(error.into());
        }
        Ok(task_link)
    }

    fn discard(&self, link: &PreparedLink) {
        if let Ok(router) = self.router(&link.vpc) {
            self.forget(&router, &link.link);
        }
    }

    fn detach(&self, link: &TaskLink) -> Result<(), NetError> {
        let Ok(router) = self.router(&link.vpc) else {
            return Ok(());
        };
        router.expel(link)?;
        self.forget(&router, &link.link);
        Ok(())
    }

    /// Deletes a link that may be gone already.
    fn forget(&self, router: &Router, name: &str) {
        match router.netlink.link(name) {
            Ok(Some(link)) => {
                if let Err(error) = router.netlink.batch(vec![Request::delete_link(link.index)]) {
                    tracing::warn!(link = name, %error, "cannot delete a task link");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(link = name, %error, "cannot look up a task link"),
        }
        lock(&self.live_links).remove(name);
    }

    fn reconcile(&self, keep: &[TaskLink]) -> Result<Vec<TaskLink>, NetError> {
        let _guard = lock(&self.set_up);
        let routers: Vec<_> = lock(&self.routers).values().cloned().collect();
        let vpcs: Vec<_> = routers.iter().map(|router| (&router.vpc, router.cidr)).collect();
        if !vpcs.is_empty() {
            self.apply_host_rules(&vpcs)?;
        }
        let mut missing = Vec::new();
        for router in &routers {
            let wanted: Vec<&TaskLink> = keep.iter().filter(|link| link.vpc == router.vpc).collect();
            let present = router.task_links()?;
            for link in &present {
                let ours = lock(&self.live_links).contains_key(&link.name);
                if !ours && wanted.iter().all(|keep| keep.link != link.name) {
                    tracing::info!(link = link.name, vpc = %router.vpc, "removing a left-over task link");
                    self.forget(router, &link.name);
                }
            }
            let mut admitted = Vec::new();
            for link in wanted {
                match present.iter().find(|present| present.name == link.link) {
                    Some(present) => {
                        router.admit(link, present.index)?;
                        admitted.push(link.clone());
                    }
                    None => missing.push(link.clone()),
                }
            }
            let live = lock(&self.live_links);
            admitted.extend(live.values().flatten().filter(|link| link.vpc == router.vpc).cloned());
            router.admit_only(&admitted)?;
        }
        let unknown = |link: &&TaskLink| routers.iter().all(|router| router.vpc != link.vpc);
        missing.extend(keep.iter().filter(unknown).cloned());
        Ok(missing)
    }

    fn teardown(&self) -> Result<(), NetError> {
        let _guard = lock(&self.set_up);
        let instance = &self.config.instance;
        lock(&self.resolvers).clear();
        for router in std::mem::take(&mut *lock(&self.routers)).into_values() {
            for link in router.task_links()? {
                self.forget(&router, &link.name);
            }
        }
        let prefix = format!("{}{instance}", names::HOST_LINK_PREFIX);
        for link in self.host.links()? {
            if link.name.starts_with(&prefix) {
                self.host.batch(vec![Request::delete_link(link.index)])?;
            }
        }
        let listed = netns::list(&names::netns_prefix(instance));
        for name in listed.map_err(NetError::io("list network namespaces"))? {
            netns::remove(&name).map_err(NetError::io(format!("remove namespace {name}")))?;
        }
        firewall::close_foreign_forward(instance.as_str());
        firewall::delete_table(&firewall::host_table(instance.as_str()))
    }
}

/// Lets the host forward IPv4 between its interfaces.
fn enable_forwarding() -> Result<(), NetError> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    let now = std::fs::read_to_string(PATH).map_err(NetError::io(format!("read {PATH}")))?;
    if now.trim() == "0" {
        std::fs::write(PATH, "1").map_err(NetError::io(format!("write {PATH}")))?;
        tracing::info!("switched on net.ipv4.ip_forward, for tasks to reach the outside");
    }
    Ok(())
}
