//! Which host runs a task.

use std::collections::BTreeMap;

use model::HostId;
use model::host::{Host, Resources};
use model::spec::TaskSpec;

/// `stoppedReason` of a task that no host has room for; Fargate's words.
pub const NO_CAPACITY: &str =
    "Capacity is unavailable at this time. Please try again later or in a different availability zone";

/// A connected host and what it has promised already.
#[derive(Clone, Debug)]
pub struct HostView {
    pub host: Host,
    pub used: Resources,
}

/// Hosts with the room that is left while a plan is made.
pub(crate) struct Hosts {
    free: BTreeMap<HostId, (Host, Resources)>,
}

impl Hosts {
    pub(crate) fn new(views: &[HostView]) -> Self {
        let free = views
            .iter()
            .map(|view| (view.host.id.clone(), (view.host.clone(), view.host.capacity.minus(view.used))))
            .collect();
        Self { free }
    }

    /// The host with the largest share of its memory left, so that load spreads; ties go to the
    /// first id.
    pub(crate) fn choose(&self, spec: &TaskSpec) -> Option<HostId> {
        let need = spec.resources();
        let fits = |host: &Host, free: Resources| {
            host.architecture == spec.architecture
                && host.isolations.contains(&spec.isolation)
                && free.holds(need)
        };
        self.free
            .iter()
            .filter(|(_, (host, free))| fits(host, *free))
            .max_by(|(a_id, (a, a_free)), (b_id, (b, b_free))| {
                let left = |host: &Host, free: Resources| {
                    u128::from(free.memory_mib) * 1_000_000 / u128::from(host.capacity.memory_mib.max(1))
                };
                left(a, *a_free).cmp(&left(b, *b_free)).then_with(|| b_id.cmp(a_id))
            })
            .map(|(id, _)| id.clone())
    }

    pub(crate) fn take(&mut self, host: &HostId, spec: &TaskSpec) {
        if let Some((_, free)) = self.free.get_mut(host) {
            *free = free.minus(spec.resources());
        }
    }
}
