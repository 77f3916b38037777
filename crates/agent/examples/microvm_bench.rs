//! Measures microVMs, driven as the agent drives them: how soon a supervisor is ready, in machines that are booted and
//! in copies of a template, and what a machine costs the host beside its memory. `make bench-microvm` runs it.
//!
//! ```text
//! microvm_bench --state-dir DIR --programs DIR [--rounds N] [--clones N] [--ratios]
//! ```
//!
//! The kernels are those installed in the state directory (`coracle kernel install`), the programs are `coracle-jailer`,
//! `coracle-vmm` and `coracle-supervisor`. `--ratios` is for a host whose clock means nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent::guest::KernelStore;
use agent::sandbox::connection::Connection;
use agent::sandbox::microvm::{self, Origin, Size, TaskDevices};
use agent::sandbox::monitor::Monitor;
use agent::sandbox::process::{self, ProcessId};
use agent::sandbox::template::{self, Loading, MachineFiles, Template, Templates};
use agent::scratch::ScratchDir;
use agent::slot::{DEFAULT_SCRATCH_GIB, TEMPLATE_UID};
use futures_util::StreamExt;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The name of the lean kernel's package (`scripts/lean-kernel`).
const LEAN_PACKAGE: &str = "linux-image-coracle-lean";
/// Without the jailer's start: a task finds a monitor that waits for its machine.
const FROM_REQUEST: &str = "  of that, the monitor waiting already";
/// How long the clones are left alone before they are looked at.
const IDLE: Duration = Duration::from_secs(5);

struct Options {
    state_dir: PathBuf,
    programs: PathBuf,
    rounds: usize,
    clones: usize,
    ratios: bool,
}

impl Options {
    fn parse() -> Result<Self, Error> {
        let mut values = BTreeMap::new();
        let mut words = std::env::args().skip(1).peekable();
        while let Some(word) = words.next() {
            let value = words.next_if(|next| !next.starts_with("--")).unwrap_or_default();
            values.insert(word, value);
        }
        let mut take = |name: &str| values.remove(name);
        let number = |text: Option<String>, default| text.map_or(Ok(default), |text| text.parse::<usize>());
        let options = Self {
            rounds: number(take("--rounds"), 20)?,
            clones: number(take("--clones"), 20)?,
            ratios: take("--ratios").is_some(),
            state_dir: take("--state-dir").ok_or("--state-dir is missing")?.into(),
            programs: take("--programs").ok_or("--programs is missing")?.into(),
        };
        match values.first_key_value() {
            Some((unknown, _)) => Err(format!("{unknown} is not known").into()),
            None if options.rounds == 0 || options.clones == 0 => Err("nothing to measure".into()),
            None => Ok(options),
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("microvm_bench: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let options = Options::parse()?;
    // The machines' taps are in a network namespace that goes with this process.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let work = tempfile::Builder::new().prefix("coracle-bench-").tempdir_in(&options.state_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(&options, work.path()));
    // Of a measurement that was broken off.
    for dir in std::fs::read_dir(work.path())?.flatten().map(|entry| entry.path()).chain([work.path().into()])
    {
        for (_, left_over) in process::find_below(&dir) {
            left_over.kill_now();
        }
    }
    print!("{}", measured?.table(options.ratios));
    Ok(())
}

/// A monitor and what it runs.
struct Machine {
    dir: PathBuf,
    process: ProcessId,
    connection: Connection,
    /// From the jailer's start, and from the request to the waiting monitor.
    took: Duration,
    took_from_request: Duration,
}

impl Machine {
    async fn end(self) -> Result<(), Error> {
        drop(self.connection);
        self.process.kill().await?;
        std::fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

/// Starts machines of one kernel.
struct Starter {
    work: PathBuf,
    /// Of the next monitor: as with tasks, each has its own.
    uid: AtomicU32,
    files: MachineFiles,
    size: Size,
    scratch: ScratchDir,
}

impl Starter {
    async fn monitor(&self, dir: &Path) -> Result<(ProcessId, Monitor), Error> {
        let uid = self.uid.fetch_sub(1, Ordering::Relaxed);
        let process = process::start_monitor(&self.files.jailer, &self.files.monitor, dir, uid).await?;
        Ok((process, Monitor::open(dir)?))
    }

    async fn boot(&self, name: &str) -> Result<Machine, Error> {
        let dir = self.work.join(name);
        std::fs::create_dir(&dir)?;
        let begun = Instant::now();
        let (process, mut monitor) = self.monitor(&dir).await?;
        let requested = Instant::now();
        let connection = template::boot(&self.files, self.size, &dir, &mut monitor).await?;
        let (took, took_from_request) = (begun.elapsed(), requested.elapsed());
        Ok(Machine { dir, process, connection, took, took_from_request })
    }

    /// A copy with a disk and an interface of its own, like a task's.
    async fn restore(&self, name: &str, template: &Template) -> Result<Machine, Error> {
        let dir = self.work.join(name);
        std::fs::create_dir(&dir)?;
        let disk = self.scratch.create(name, DEFAULT_SCRATCH_GIB.into())?;
        let tap = agent::net::tap::create(name)?;
        let devices =
            TaskDevices { layers: Vec::new(), scratch: disk.path, tap, mac: [0x02, 0xc0, 0, 0, 0, 1] };
        let begun = Instant::now();
        let (process, mut monitor) = self.monitor(&dir).await?;
        let requested = Instant::now();
        let origin = Origin {
            state: &template.state,
            memory: &template.memory,
            task: None,
            loading: template.loading,
        };
        let connection = microvm::start(&dir, &mut monitor, origin, devices).await?;
        let (took, took_from_request) = (begun.elapsed(), requested.elapsed());
        Ok(Machine { dir, process, connection, took, took_from_request })
    }
}

/// What a monitor's process holds of the host's memory, in KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Footprint {
    /// All but the guest's memory.
    own_resident: u64,
    own_proportional: u64,
    /// Of the guest's memory: pages that nobody else has, and all pages by their share.
    guest_private: u64,
    guest_proportional: u64,
}

impl Footprint {
    /// From proc_pid_smaps(5). The guest's memory is the only mapping that is as large.
    fn of(pid: i32, guest_mib: u32) -> Result<Self, Error> {
        let mut sum = Self::default();
        let mut is_guest = false;
        for line in std::fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            let Some(field) = first.strip_suffix(':') else {
                let range = first.split_once('-').ok_or("a line of smaps makes no sense")?;
                let (start, end) = (u64::from_str_radix(range.0, 16)?, u64::from_str_radix(range.1, 16)?);
                is_guest = end - start >= u64::from(guest_mib) << 20;
                continue;
            };
            let kib = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            match (field, is_guest) {
                ("Rss", false) => sum.own_resident += kib,
                ("Pss", false) => sum.own_proportional += kib,
                ("Pss", true) => sum.guest_proportional += kib,
                ("Private_Clean" | "Private_Dirty", true) => sum.guest_private += kib,
                _ => {}
            }
        }
        Ok(sum)
    }
}

/// Durations of one way to start.
struct Starts {
    name: String,
    took: Vec<Duration>,
}

impl Starts {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), took: Vec::new() }
    }

    /// In milliseconds; the nearest rank.
    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(rank).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

struct Measured {
    rounds: usize,
    size: Size,
    starts: Vec<Starts>,
    /// The place in `starts` of the quickest kernel's cold starts. Behind them are the same from the
    /// request on, and then both of its copies.
    cold: usize,
    /// The largest that were seen.
    booted: Footprint,
    copied: Footprint,
    at_once: usize,
    starts_per_second: f64,
    /// Means of idle copies.
    clones: usize,
    clone_private_kib: u64,
    clone_proportional_kib: u64,
    clone_monitor_kib: u64,
}

fn say(what: &str) {
    println!("{what}");
    let _ = std::io::stdout().flush();
}

async fn measure(options: &Options, work: &Path) -> Result<Measured, Error> {
    // A task of Fargate's least size.
    let size = Size::of(256, 512);
    let supervisor = options.programs.join("coracle-supervisor");
    let mut kernels = KernelStore::new(options.state_dir.join("agent/guest")).list()?;
    // The lean one last: the other parts are measured with it.
    kernels.sort_by_key(|kernel| kernel.description().package == LEAN_PACKAGE);
    let mut measured = Measured {
        rounds: options.rounds,
        size,
        starts: Vec::new(),
        cold: 0,
        booted: Footprint::default(),
        copied: Footprint::default(),
        at_once: std::thread::available_parallelism()?.get(),
        starts_per_second: 0.0,
        clones: options.clones,
        clone_private_kib: 0,
        clone_proportional_kib: 0,
        clone_monitor_kib: 0,
    };
    let mut last = None;
    for kernel in &kernels {
        let about = kernel.description();
        let name = if about.package == LEAN_PACKAGE { "lean kernel" } else { "Debian's kernel" };
        say(&format!("{name}: {}, package {} {}", about.release, about.package, about.version));
        let files = MachineFiles {
            jailer: options.programs.join("coracle-jailer"),
            monitor: options.programs.join("coracle-vmm"),
            kernel: kernel.vmlinux(),
            initramfs: kernel.initramfs(&supervisor)?,
            loading: Loading::Mapped,
        };
        let work = work.join(about.digest.get(..8).unwrap_or_default());
        std::fs::create_dir(&work)?;
        let scratch = ScratchDir::open(&work.join("scratch"))?;
        let starter = Starter {
            work: work.clone(),
            uid: AtomicU32::new(TEMPLATE_UID - 1),
            files: files.clone(),
            size,
            scratch,
        };
        let templates = Templates::open(work.join("templates"), files, TEMPLATE_UID)?;
        measure_starts(&starter, &templates, name, &mut measured).await?;
        last = Some((starter, templates));
    }
    let (starter, templates) = last.ok_or("no kernel is installed in the state directory")?;
    measure_clones(&starter, &templates, &mut measured).await?;
    Ok(measured)
}

fn during(round: usize, what: &str, error: &Error) -> Error {
    format!("{what} {round}: {error}").into()
}

/// Boots and copies in turns, so that what else the host does falls on both alike.
async fn measure_starts(
    starter: &Starter,
    templates: &Templates,
    kernel: &str,
    measured: &mut Measured,
) -> Result<(), Error> {
    let template = templates.get(starter.size).await?;
    let mut cold = Starts::new(format!("booted, {kernel}"));
    let mut cold_requested = Starts::new(FROM_REQUEST);
    let mut restored = Starts::new(format!("copied from a template, {kernel}"));
    let mut requested = Starts::new(FROM_REQUEST);
    // The first of each finds nothing in the page cache, and is not counted.
    for round in 0..=measured.rounds {
        let machine =
            starter.boot(&format!("boot{round}")).await.map_err(|error| during(round, "boot", &error))?;
        let booted = Footprint::of(machine.process.pid, starter.size.memory_mib)?;
        let (took, took_from_request) = (machine.took, machine.took_from_request);
        machine.end().await?;
        let machine = starter.restore(&format!("copy{round}"), &template).await;
        let machine = machine.map_err(|error| during(round, "copy", &error))?;
        let copied = Footprint::of(machine.process.pid, starter.size.memory_mib)?;
        if round > 0 {
            cold.took.push(took);
            cold_requested.took.push(took_from_request);
            restored.took.push(machine.took);
            requested.took.push(machine.took_from_request);
        }
        machine.end().await?;
        starter.scratch.remove(&format!("copy{round}"))?;
        measured.booted = measured.booted.larger(booted);
        measured.copied = measured.copied.larger(copied);
    }
    say(&format!("  {} boots and as many copies", measured.rounds));
    measured.cold = measured.starts.len();
    measured.starts.extend([cold, cold_requested, restored, requested]);
    Ok(())
}

impl Footprint {
    fn larger(self, other: Self) -> Self {
        Self {
            own_resident: self.own_resident.max(other.own_resident),
            own_proportional: self.own_proportional.max(other.own_proportional),
            ..self
        }
    }
}

/// Starts many, some at a time, and looks at them when they have been idle.
async fn measure_clones(
    starter: &Starter,
    templates: &Templates,
    measured: &mut Measured,
) -> Result<(), Error> {
    let template = templates.get(starter.size).await?;
    let begun = Instant::now();
    let starting = (0..measured.clones).map(|number| {
        let template = &template;
        async move { starter.restore(&format!("clone{number}"), template).await }
    });
    let machines: Vec<_> =
        futures_util::stream::iter(starting).buffer_unordered(measured.at_once).collect().await;
    measured.starts_per_second = measured.clones as f64 / begun.elapsed().as_secs_f64();
    let machines = machines.into_iter().collect::<Result<Vec<_>, _>>()?;
    tokio::time::sleep(IDLE).await;
    let footprints =
        machines.iter().map(|machine| Footprint::of(machine.process.pid, starter.size.memory_mib));
    let footprints = footprints.collect::<Result<Vec<_>, _>>()?;
    let mean =
        |field: fn(&Footprint) -> u64| footprints.iter().map(field).sum::<u64>() / footprints.len() as u64;
    measured.clone_private_kib = mean(|one| one.guest_private);
    measured.clone_proportional_kib = mean(|one| one.guest_proportional);
    measured.clone_monitor_kib = mean(|one| one.own_proportional);
    say(&format!("  {} copies at a time, {} in all", measured.at_once, measured.clones));
    for machine in machines {
        machine.end().await?;
    }
    Ok(())
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

impl Measured {
    fn table(&self, ratios: bool) -> String {
        let unit = |percentile: f64| {
            if ratios { percentile / self.starts[self.cold].percentile(50) } else { percentile }
        };
        let digits = if ratios { 3 } else { 1 };
        let mut text = format!(
            "\n(a) start to supervisor ready, {} rounds{:>10} {:>11}\n",
            self.rounds,
            if ratios { "p50 ratio" } else { "p50 ms" },
            if ratios { "p95 ratio" } else { "p95 ms" },
        );
        for starts in &self.starts {
            let (p50, p95) = (unit(starts.percentile(50)), unit(starts.percentile(95)));
            text += &format!("{:<46}{p50:>9.digits$} {p95:>11.digits$}\n", starts.name);
        }
        let cold = &self.starts[self.cold];
        for (name, from) in [("a copy is faster than a boot by", self.cold), (FROM_REQUEST, self.cold + 1)] {
            let (boot, copy) = (&self.starts[from], &self.starts[from + 2]);
            let faster = |percent| boot.percentile(percent) / copy.percentile(percent);
            text += &format!("{name:<46}{:>8.1}x {:>10.1}x\n", faster(50), faster(95));
        }
        text += &format!(
            "\n(b) the monitor beside the guest's {} MiB      resident MiB  proportional MiB\n",
            self.size.memory_mib
        );
        for (name, footprint) in [("after a boot", self.booted), ("after a copy", self.copied)] {
            text += &format!(
                "{name:<46}{:>12.2} {:>17.2}\n",
                mib(footprint.own_resident),
                mib(footprint.own_proportional)
            );
        }
        let (per_second, what) = if ratios {
            (self.starts_per_second * cold.percentile(50) / 1e3, "starts in the time of a boot")
        } else {
            (self.starts_per_second, "starts a second")
        };
        text += &format!("\n(c) {what:<42}{per_second:>9.1}   from a template, {} at a time\n", self.at_once);
        text += &format!("\n(d) host memory of each of {} idle copies{:>24}\n", self.clones, "MiB");
        for (name, kib) in [
            ("guest memory that only this copy has", self.clone_private_kib),
            ("guest memory, shared pages by their share", self.clone_proportional_kib),
            ("monitor, shared pages by their share", self.clone_monitor_kib),
        ] {
            text += &format!("{name:<46}{:>18.2}\n", mib(kib));
        }
        text
    }
}
