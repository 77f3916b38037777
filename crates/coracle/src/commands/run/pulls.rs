//! How far the pull of the task's image is, as the server hears it from the host.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use link::PullProgress;

use crate::client::Client;
use crate::commands::tasks::TaskRef;

/// Hosts say it about as often.
const PERIOD: Duration = Duration::from_millis(200);

/// Asks, but not all the time.
#[derive(Default)]
pub struct Pulls {
    /// When there was an answer last.
    known: Option<Instant>,
}

impl Pulls {
    /// The progress of all containers of the task together; `None` when it is not known, or was looked at just before.
    pub async fn look(&mut self, client: &Client, task: &TaskRef) -> Option<PullProgress> {
        if self.known.is_some_and(|known| known.elapsed() < PERIOD) {
            return None;
        }
        let path = format!("/_coracle/tasks/{}/pulls", task.id);
        // Only for show: a server that is away shows elsewhere.
        let containers = client.get::<BTreeMap<String, PullProgress>>(&path).await.ok()?;
        let sum = containers.into_values().reduce(|sum, next| PullProgress {
            layers_total: sum.layers_total.saturating_add(next.layers_total),
            layers_done: sum.layers_done.saturating_add(next.layers_done),
            bytes_total: sum.bytes_total.saturating_add(next.bytes_total),
            bytes_done: sum.bytes_done.saturating_add(next.bytes_done),
        });
        self.known = sum.map(|_| Instant::now());
        sum
    }
}
