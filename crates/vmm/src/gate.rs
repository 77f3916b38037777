//! How a machine's threads are made to run, rest and stop.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use model::microvm::Ended;

use crate::ending::Ending;
use crate::seccomp::{self, ThreadKind};

/// The stack of a thread that rests at a gate, in bytes. Rust's usual 2 MiB are as large as a huge page: where the host
/// gives one, all of it is resident, which doubles what a monitor costs.
const STACK: usize = 256 << 10;

/// What a thread is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Run,
    Rest,
    Stop,
}

/// Between one thread and its machine. The thread calls [`Gate::pass`] wherever it may rest.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    resting: bool,
}

impl Gate {
    #[must_use]
    pub fn new(wanted: Wanted) -> Self {
        Self { state: Mutex::new(State { wanted, resting: false }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the thread; it must then be woken from what it waits for outside of the gate. Nothing
    /// follows after [`Wanted::Stop`].
    pub fn ask(&self, wanted: Wanted) {
        let mut state = self.lock();
        if state.wanted != Wanted::Stop {
            state.wanted = wanted;
        }
        self.changed.notify_all();
    }

    /// What the thread is asked to do.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.lock().wanted
    }

    /// The machine waits until the thread rests or is gone.
    pub fn wait_until_resting(&self) {
        let mut state = self.lock();
        while !state.resting {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread rests as long as it shall. False: it shall stop.
    #[must_use]
    pub fn pass(&self) -> bool {
        let mut state = self.lock();
        while state.wanted == Wanted::Rest {
            state.resting = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.resting = false;
        state.wanted == Wanted::Run
    }

    /// The thread is gone, and counts as resting from now on.
    fn leave(&self) {
        let mut state = self.lock();
        state.wanted = Wanted::Stop;
        state.resting = true;
        self.changed.notify_all();
    }
}

/// Leaves the gate when it is dropped, by a panic, too.
struct Leave<'a>(&'a Gate);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Starts a confined thread that does `work` whenever `gate` lets it pass, until one of these ends the
/// machine, which `ending` is told: `work` by what it returns, or that the thread cannot be confined. `name`
/// is in lower case the thread's name on the host.
///
/// # Errors
/// The host gives no more threads.
pub fn spawn(
    name: &'static str,
    kind: ThreadKind,
    gate: Arc<Gate>,
    ending: Ending,
    mut work: impl FnMut() -> Option<Ended> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_lowercase()).stack_size(STACK).spawn(move || {
        let _leave = Leave(&gate);
        if let Err(error) = seccomp::filter(kind) {
            let message = format!("a thread cannot be confined: {error}");
            return ending.tell(Ended::Failed { message });
        }
        while gate.pass() {
            if let Some(ended) = work() {
                return ending.tell(ended);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_rests_runs_and_stops() {
        let gate = Arc::new(Gate::new(Wanted::Rest));
        let thread = std::thread::spawn({
            let gate = gate.clone();
            move || {
                while gate.pass() {
                    std::thread::yield_now();
                }
                gate.leave();
            }
        });
        gate.wait_until_resting();
        gate.ask(Wanted::Run);
        gate.ask(Wanted::Rest);
        gate.wait_until_resting();
        gate.ask(Wanted::Stop);
        gate.ask(Wanted::Run);
        thread.join().unwrap();
        gate.wait_until_resting();
        assert_eq!(gate.wanted(), Wanted::Stop);
    }
}
