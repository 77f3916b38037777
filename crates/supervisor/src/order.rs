//! The order in which containers start and stop: pure decisions over what is known.
//!
//! Source: "ContainerDependency" and `startTimeout` in the ECS API reference; the texts are those
//! of the ECS agent.

use std::time::{Duration, Instant};

use model::HealthStatus;
use model::spec::{ContainerSpec, DependencyCondition};

/// What is known of one container when order is decided.
#[derive(Clone, Debug)]
pub struct Known {
    pub has_started: bool,
    /// It ended and will not be restarted.
    pub has_ended: bool,
    pub exit_code: Option<i32>,
    pub health: HealthStatus,
    /// When it (last) started.
    pub started: Option<Instant>,
}

/// Whether a container may start.
#[derive(Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Not yet; look again at the given time at the latest.
    Waiting(Option<Instant>),
    /// Never: the reason in the ECS agent's words.
    Never(String),
}

/// Whether the container at `index` may start. `specs` and `known` are in the same order.
pub fn readiness(specs: &[&ContainerSpec], known: &[Known], index: usize, now: Instant) -> Readiness {
    let target = &specs[index].name;
    let mut waits_until: Option<Instant> = None;
    let mut waiting = false;
    for dependency in &specs[index].depends_on {
        let Some(other) = specs.iter().position(|spec| spec.name == dependency.container) else {
            return Readiness::Never(format!(
                "dependency graph: failed to resolve the containers ordering dependency [{}] for target [{target}]",
                dependency.container
            ));
        };
        let state = &known[other];
        let resolved = match dependency.condition {
            DependencyCondition::Start => state.has_started,
            DependencyCondition::Complete => state.has_started && state.has_ended,
            DependencyCondition::Success => state.has_ended && state.exit_code == Some(0),
            DependencyCondition::Healthy => state.health == HealthStatus::Healthy && !state.has_ended,
        };
        if resolved {
            continue;
        }
        if state.has_ended {
            return Readiness::Never(format!(
                "dependency graph: failed to resolve the containers ordering dependency [{}] for target \
                 [{target}] as dependency did not exit successfully.",
                dependency.container
            ));
        }
        waiting = true;
        // Without a `startTimeout` there is none, as in the ECS agent (`hasDependencyTimedOut`): a
        // migration may take its time. The three minutes that older editions of the API reference
        // name as Fargate's default are those of starting one container.
        let timeout = specs[other].start_timeout_secs.map(|seconds| Duration::from_secs(seconds.into()));
        if let (Some(timeout), Some(started)) = (timeout, state.started) {
            let deadline = started + timeout;
            if now >= deadline {
                return Readiness::Never(format!(
                    "dependency graph: container ordering dependency [{}] for target [{target}] has timed out.",
                    dependency.container
                ));
            }
            waits_until = Some(waits_until.map_or(deadline, |until| until.min(deadline)));
        }
    }
    if waiting { Readiness::Waiting(waits_until) } else { Readiness::Ready }
}

/// Whether the container at `index` may be told to stop: nothing that still runs depends on it.
pub fn may_stop(specs: &[&ContainerSpec], is_running: &[bool], index: usize) -> bool {
    let name = &specs[index].name;
    !specs
        .iter()
        .zip(is_running)
        .any(|(spec, running)| *running && spec.depends_on.iter().any(|on| on.container == *name))
}

/// Whether dependencies form a circle: such a task can neither start nor stop in order.
pub fn has_cycle(specs: &[&ContainerSpec]) -> bool {
    let mut done = vec![false; specs.len()];
    loop {
        let next = (0..specs.len()).find(|index| {
            !done[*index]
                && specs[*index].depends_on.iter().all(|on| {
                    specs.iter().position(|spec| spec.name == on.container).is_none_or(|other| done[other])
                })
        });
        match next {
            Some(index) => done[index] = true,
            None => return done.contains(&false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::container;
    use model::spec::Dependency;

    fn pair(condition: DependencyCondition) -> [ContainerSpec; 2] {
        let mut first = container().spec;
        first.name = "db".into();
        first.start_timeout_secs = Some(10);
        let mut second = container().spec;
        second.depends_on = vec![Dependency { container: "db".into(), condition }];
        [first, second]
    }

    fn known() -> Known {
        Known {
            has_started: false,
            has_ended: false,
            exit_code: None,
            health: HealthStatus::Unknown,
            started: None,
        }
    }

    #[test]
    fn conditions() {
        let now = Instant::now();
        let running = Known { has_started: true, started: Some(now), ..known() };
        let healthy = Known { health: HealthStatus::Healthy, ..running.clone() };
        let ended = |code| Known { has_ended: true, exit_code: Some(code), ..running.clone() };
        let is_ready = |condition, state: &Known| {
            let specs = pair(condition);
            match readiness(&[&specs[0], &specs[1]], &[state.clone(), known()], 1, now) {
                Readiness::Ready => Some(true),
                Readiness::Waiting(_) => Some(false),
                Readiness::Never(_) => None,
            }
        };
        use DependencyCondition::{Complete, Healthy, Start, Success};
        let expected = [
            (Start, [Some(false), Some(true), Some(true), Some(true), Some(true)]),
            (Complete, [Some(false), Some(false), Some(false), Some(true), Some(true)]),
            (Success, [Some(false), Some(false), Some(false), Some(true), None]),
            (Healthy, [Some(false), Some(false), Some(true), None, None]),
        ];
        for (condition, answers) in expected {
            let states = [known(), running.clone(), healthy.clone(), ended(0), ended(1)];
            let got: Vec<_> = states.iter().map(|state| is_ready(condition, state)).collect();
            assert_eq!(got, answers, "{condition:?}");
        }
    }

    #[test]
    fn start_timeouts_count_from_the_dependencys_start() {
        let specs = pair(DependencyCondition::Healthy);
        let specs = [&specs[0], &specs[1]];
        let now = Instant::now();
        let running = Known { has_started: true, started: Some(now), ..known() };
        let deadline = now + Duration::from_secs(10);
        let states = [running, known()];
        assert_eq!(readiness(&specs, &states, 1, now), Readiness::Waiting(Some(deadline)));
        assert!(
            matches!(readiness(&specs, &states, 1, deadline), Readiness::Never(text) if text.contains("timed out"))
        );
    }

    #[test]
    fn without_a_start_timeout_dependents_wait_as_long_as_it_takes() {
        let mut specs = pair(DependencyCondition::Success);
        specs[0].start_timeout_secs = None;
        let now = Instant::now();
        let running = Known { has_started: true, started: Some(now), ..known() };
        let after_a_day = now + Duration::from_secs(86_400);
        let readiness = readiness(&[&specs[0], &specs[1]], &[running, known()], 1, after_a_day);
        assert_eq!(readiness, Readiness::Waiting(None));
    }

    #[test]
    fn stopping_goes_backwards() {
        let specs = pair(DependencyCondition::Start);
        let specs = [&specs[0], &specs[1]];
        assert!(!may_stop(&specs, &[true, true], 0) && may_stop(&specs, &[true, true], 1));
        assert!(may_stop(&specs, &[true, false], 0));
    }

    #[test]
    fn circles_are_found() {
        let mut specs = pair(DependencyCondition::Start);
        assert!(!has_cycle(&[&specs[0], &specs[1]]));
        specs[0].depends_on =
            vec![Dependency { container: "app".into(), condition: DependencyCondition::Start }];
        assert!(has_cycle(&[&specs[0], &specs[1]]));
    }
}
