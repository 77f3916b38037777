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
            spec.snapshot.as_ref().is_none_or(|snapshot| snapshot.host == host.id)
                && host.architecture == spec.architecture
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

    /// Why [`Self::choose`] found no host: Fargate's words, and what they leave open where waiting would not help.
    pub(crate) fn refusal(&self, spec: &TaskSpec) -> String {
        if let Some(snapshot) = &spec.snapshot
            && !self.free.contains_key(&snapshot.host)
        {
            return format!("The host that keeps the snapshot {} is not there any more.", snapshot.id);
        }
        let mut suited =
            self.free.values().filter(|(host, _)| host.architecture == spec.architecture).peekable();
        if suited.peek().is_none() {
            return format!("{NO_CAPACITY}. No host runs programs for {}.", spec.architecture);
        }
        let mut suited = suited.filter(|(host, _)| host.isolations.contains(&spec.isolation)).peekable();
        if suited.peek().is_none() {
            let isolation = spec.isolation.as_str();
            return format!(
                "{NO_CAPACITY}. The task insists on the isolation '{isolation}', which no host has."
            );
        }
        let need = spec.resources();
        if !suited.any(|(host, _)| host.capacity.holds(need)) {
            return format!(
                "{NO_CAPACITY}. The task's {} CPU units, {} MiB of memory and {} GiB of storage are more than any host has.",
                need.cpu_units, need.memory_mib, need.storage_gib
            );
        }
        NO_CAPACITY.to_owned()
    }

    pub(crate) fn take(&mut self, host: &HostId, spec: &TaskSpec) {
        if let Some((_, free)) = self.free.get_mut(host) {
            *free = free.minus(spec.resources());
        }
    }
}
