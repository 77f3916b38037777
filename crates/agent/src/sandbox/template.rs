//! Templates: machines that were booted once, up to an idle supervisor, and are copied for each
//! task, so that no task waits for a kernel to boot.
//!
//! There is one per guest kernel, supervisor, monitor and [`Size`], made when the first task of its
//! kind needs it: `DIR/<key>/{state,memory,memory.sum}`. A template that is damaged is made anew; one
//! that cannot be restored all the same (another processor) is thrown away, for the next task to make anew.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use model::microvm::{MachineConfig, Request};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::microvm::{Backing, MicrovmError, Size, await_supervisor, pause_and_save};
use super::monitor::{Files, Monitor};
use super::process::{self, ProcessId};
use crate::memory_sum;

/// No console, no probing of what is not there; a reset (`reboot=k`: by the keyboard controller) at
/// once when the kernel panics, which is how the monitor hears of it.
const COMMAND_LINE: &str = "quiet loglevel=1 reboot=k panic=-1 pci=off 8250.nr_uarts=0 \
                            i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd \
                            random.trust_cpu=on net.ifnames=0 rdinit=/init";

/// How a restored machine's memory comes in from the template's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loading {
    /// Mapped privately: the kernel reads what is touched, and shares what is only read.
    #[default]
    Mapped,
    /// Read by the monitor when it is first touched (userfaultfd(2), Linux 6.1): a file that becomes
    /// unreadable ends the task with a reason, but nothing is shared.
    OnDemand,
}

/// What [`Loading::OnDemand`] needs of the host.
pub const USERFAULTFD: &str = "/dev/userfaultfd";

/// What machines are made of.
#[derive(Clone, Debug)]
pub struct MachineFiles {
    pub jailer: PathBuf,
    pub monitor: PathBuf,
    /// An ELF `vmlinux` or a bzImage.
    pub kernel: PathBuf,
    /// With the supervisor as `/init`.
    pub initramfs: PathBuf,
    pub loading: Loading,
}

/// The digests (SHA-256, hexadecimal) of what machines are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    pub monitor: String,
    pub kernel: String,
    pub initramfs: String,
}

impl MachineFiles {
    fn programs(&self) -> Result<Programs, MicrovmError> {
        let digest = |path: &Path| -> Result<String, MicrovmError> {
            let bytes = std::fs::read(path).map_err(MicrovmError::io("read", path))?;
            Ok(hex::encode(ring::digest::digest(&SHA256, &bytes)))
        };
        Ok(Programs {
            monitor: digest(&self.monitor)?,
            kernel: digest(&self.kernel)?,
            initramfs: digest(&self.initramfs)?,
        })
    }
}

impl Programs {
    /// Changes with any of the programs, and with what the kernel is told.
    fn digest(&self) -> [u8; 32] {
        let mut digest = Context::new(&SHA256);
        for part in [&self.monitor, &self.kernel, &self.initramfs] {
            digest.update(part.as_bytes());
        }
        digest.update(COMMAND_LINE.as_bytes());
        let mut value = [0; 32];
        value.copy_from_slice(digest.finish().as_ref());
        value
    }
}

/// A machine that can be copied.
#[derive(Debug)]
pub struct Template {
    dir: PathBuf,
    pub state: File,
    pub memory: File,
    pub loading: Loading,
}

impl Template {
    fn open(dir: PathBuf, loading: Loading) -> io::Result<Self> {
        let (state, memory) = (File::open(dir.join("state"))?, File::open(dir.join("memory"))?);
        Ok(Self { dir, state, memory, loading })
    }

    /// One that an earlier agent has made. Blocks for reading all of it.
    fn open_whole(dir: PathBuf, loading: Loading) -> io::Result<Self> {
        let found = Self::open(dir, loading)?;
        let expected = std::fs::read_to_string(found.dir.join(SUM))?;
        if format!("{:08x}", memory_sum::of(&found.memory)?) != expected {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the checksum of its memory does not hold",
            ));
        }
        Ok(found)
    }
}

/// The file with the checksum of a template's memory.
const SUM: &str = "memory.sum";

type Place = Arc<tokio::sync::Mutex<Option<Arc<Template>>>>;

/// The templates of this host.
#[derive(Debug)]
pub struct Templates {
    dir: PathBuf,
    files: MachineFiles,
    programs: Programs,
    digest: [u8; 32],
    /// The host user that monitors of machines without a task run as.
    uid: u32,
    places: Mutex<HashMap<Size, Place>>,
}

impl Templates {
    /// Templates of these files, kept in `dir`; those of other files are removed. Blocks for reading
    /// the files.
    ///
    /// # Errors
    /// The directory or a file cannot be used.
    pub fn open(dir: PathBuf, files: MachineFiles, uid: u32) -> Result<Self, MicrovmError> {
        let programs = files.programs()?;
        let digest = programs.digest();
        std::fs::create_dir_all(&dir).map_err(MicrovmError::io("create", &dir))?;
        for (_, left_over) in process::find_below(&dir) {
            // Was making a template when its agent was killed.
            left_over.kill_now();
        }
        let prefix = hex::encode(&digest[..8]);
        for entry in std::fs::read_dir(&dir).map_err(MicrovmError::io("read", &dir))?.flatten() {
            let name = entry.file_name();
            let is_ours = name.to_str().is_some_and(|n| n.starts_with(&prefix) && !n.ends_with(".new"));
            if !is_ours {
                let path = entry.path();
                std::fs::remove_dir_all(&path).map_err(MicrovmError::io("remove", &path))?;
            }
        }
        Ok(Self { dir, files, programs, digest, uid, places: Mutex::default() })
    }

    #[must_use]
    pub fn files(&self) -> &MachineFiles {
        &self.files
    }

    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The template for this size, made now if there is none: the first task of a size pays for a
    /// boot, and those that come meanwhile wait for it.
    ///
    /// # Errors
    /// There is none and it cannot be made.
    pub async fn get(&self, size: Size) -> Result<Arc<Template>, MicrovmError> {
        let place =
            self.places.lock().unwrap_or_else(PoisonError::into_inner).entry(size).or_default().clone();
        let mut template = place.lock().await;
        if let Some(template) = &*template {
            return Ok(template.clone());
        }
        let dir =
            self.dir.join(format!("{}-{}-{}", hex::encode(&self.digest[..8]), size.vcpus, size.memory_mib));
        let (there, loading) = (dir.clone(), self.files.loading);
        let found = tokio::task::spawn_blocking(move || Template::open_whole(there, loading)).await;
        let found = match found.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
            Ok(found) => found,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(dir = %dir.display(), error = &error as &dyn std::error::Error, "a template is made anew");
                }
                remove(&dir)?;
                self.make(size, &dir).await?;
                Template::open(dir.clone(), loading).map_err(MicrovmError::io("open", &dir))?
            }
        };
        Ok(template.insert(Arc::new(found)).clone())
    }

    /// Throws away a template that could not be restored; the next [`get`](Self::get) makes it anew.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn discard(&self, size: Size, damaged: &Arc<Template>) -> Result<(), MicrovmError> {
        let place =
            self.places.lock().unwrap_or_else(PoisonError::into_inner).entry(size).or_default().clone();
        let mut template = place.lock().await;
        if template.as_ref().is_some_and(|current| Arc::ptr_eq(current, damaged)) {
            *template = None;
            let dir = &damaged.dir;
            std::fs::remove_dir_all(dir).map_err(MicrovmError::io("remove", dir))?;
        }
        Ok(())
    }

    async fn make(&self, size: Size, dir: &Path) -> Result<(), MicrovmError> {
        tracing::info!(vcpus = size.vcpus, memory_mib = size.memory_mib, "making a microVM template");
        let new = dir.with_extension("new");
        remove(&new)?;
        std::fs::create_dir_all(&new).map_err(MicrovmError::io("create", &new))?;
        let process = process::start_monitor(&self.files.jailer, &self.files.monitor, &new, self.uid).await?;
        let made = self.boot_and_save(size, &new, process).await;
        process.kill().await?;
        if made.is_err() {
            std::fs::remove_dir_all(&new).map_err(MicrovmError::io("remove", &new))?;
        }
        made?;
        std::fs::rename(&new, dir).map_err(MicrovmError::io("rename", &new))
    }

    async fn boot_and_save(&self, size: Size, dir: &Path, process: ProcessId) -> Result<(), MicrovmError> {
        let mut monitor = Monitor::open(dir)?;
        drop(boot(&self.files, size, dir, &mut monitor).await?);

        let create = |name: &str| {
            let path = dir.join(name);
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(MicrovmError::io("create", &path))
        };
        let (state, memory) = (create("state")?, create("memory")?);
        pause_and_save(&mut monitor, process, &state, &memory, || std::future::ready(())).await?;
        for (file, name) in [(&state, "state"), (&memory, "memory")] {
            file.sync_all().map_err(MicrovmError::io("write", &dir.join(name)))?;
        }
        let path = dir.join(SUM);
        tokio::task::spawn_blocking(move || {
            let sum = memory_sum::of(&memory)?;
            let mut file = File::create_new(&path)?;
            file.write_all(format!("{sum:08x}").as_bytes())?;
            file.sync_all()
        })
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
        .map_err(MicrovmError::io("write", &dir.join(SUM)))
    }
}

/// Removes a directory, if it is there.
fn remove(dir: &Path) -> Result<(), MicrovmError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MicrovmError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Makes the waiting monitor in `dir` boot a machine without a task, and waits for its supervisor:
/// what a task would wait for if there were no templates.
///
/// # Errors
/// A file cannot be opened, or the machine does not come up.
pub async fn boot(
    machine: &MachineFiles,
    size: Size,
    dir: &Path,
    monitor: &mut Monitor,
) -> Result<Connection, MicrovmError> {
    let open = |path: &Path| File::open(path).map_err(MicrovmError::io("open", path));
    let (kernel, initramfs) = (open(&machine.kernel)?, open(&machine.initramfs)?);
    let backing = Backing::empty(dir)?;
    let mut files = Files::default();
    let request = Request::Boot(Box::new(MachineConfig {
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        kernel: files.attach(&kernel)?,
        initramfs: Some(files.attach(&initramfs)?),
        command_line: COMMAND_LINE.to_owned(),
        // A copy gets its own with its task.
        devices: backing.devices([0x02, 0xc0, 0xff, 0xff, 0xff, 0xff], &mut files)?,
        console: None,
    }));
    monitor.ask(&request, &files).await?;
    await_supervisor(dir, None).await
}
