//! One container: what is prepared once for all its runs, and starting a run with libcontainer.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use model::sandbox::{SandboxContainer, SandboxSpec};
use model::spec::ContainerSpec;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use oci_spec::runtime::Capability;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::Cgroup;
use crate::devices::{self, Device};
use crate::exec::Inside;
use crate::executor::{Launch, START_FAILURE};
use crate::image_user::{self, ImageUser};
use crate::oci::{self, Bind, Blueprint};
use crate::sandbox::{Sandbox, USERNS_PATH, protect_from_oom};
use crate::seccomp::Filter;
use crate::volumes::Volume;
use crate::{capabilities, device_rules, etc_files, guest, parameters, process, rootfs};

/// libcontainer's records.
const RECORDS: &str = "/run/containers";
/// Where containers find the sandbox's init.
const INIT_IN_CONTAINER: &str = "/dev/init";
/// On the task's disk, but not the task's: it can only be read and executed.
const INIT_SOURCE: &str = "/disk/init";
/// How Fargate introduces an error of the runtime.
const CANNOT_START: &str = "CannotStartContainerError: ResourceInitializationError: failed to create new container \
     runtime task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
     container process: ";

/// Why a container could not be started.
#[derive(Debug)]
pub struct StartError {
    /// The container's `reason`, in Fargate's words.
    pub reason: String,
    /// 127 when the program is not there, 126 when it cannot be executed (Docker's exit codes).
    pub exit_code: Option<i32>,
}

impl From<anyhow::Error> for StartError {
    fn from(error: anyhow::Error) -> Self {
        let text = format!("{error:#}");
        // libcontainer wraps the executor's text in its own; the part that helps is the innermost.
        let text = match text.rfind(START_FAILURE) {
            Some(at) => &text[at..],
            None => &text,
        };
        let exit_code = if !text.starts_with(START_FAILURE) {
            None
        } else if text.contains("permission denied") || text.contains("is a directory") {
            Some(126)
        } else {
            Some(127)
        };
        Self { reason: format!("{CANNOT_START}{text}"), exit_code }
    }
}

/// Where a container mounts what: for `volumesFrom`, too.
#[derive(Clone)]
pub struct VolumeMount {
    volume: Volume,
    destination: PathBuf,
    read_only: bool,
}

/// What all runs of a container share: its file system, user and identity.
pub struct Prepared {
    /// Names the container in paths of the sandbox.
    key: String,
    rootfs: PathBuf,
    volumes: Vec<VolumeMount>,
    files: Vec<Bind>,
    capabilities: HashSet<Capability>,
    environment: Vec<String>,
    arguments: Vec<String>,
    working_directory: PathBuf,
    user: ImageUser,
    filter: Rc<Filter>,
    devices: Vec<Device>,
    cgroups_path: String,
    pub cgroup: Cgroup,
}

/// The ends of a running container that are the supervisor's.
pub struct Run {
    pub pid: Pid,
    /// Standard output and error, or the terminal.
    pub outputs: Vec<File>,
    /// Holds standard input open.
    _stdin: Option<OwnedFd>,
}

/// The task's root file systems and volumes as far as they exist.
pub struct Builder<'a> {
    pub sandbox: &'a Sandbox,
    pub task: &'a SandboxSpec,
    /// The filter for Fargate's default capabilities, compiled ahead of time.
    pub default_filter: &'a Rc<Filter>,
}

impl Builder<'_> {
    /// Prepares the container at `index` of the task.
    ///
    /// # Errors
    /// A layer is missing, the disk is full, the user is unknown, a parameter is not understood.
    pub fn prepare(&self, index: usize) -> Result<Prepared, StartError> {
        self.try_prepare(index).map_err(StartError::from)
    }

    fn try_prepare(&self, index: usize) -> Result<Prepared> {
        let container = &self.task.containers[index];
        let definition = &container.spec;
        let key = format!("c{index}");
        let is_microvm = self.sandbox.is_microvm();
        let devices = devices::of(definition, is_microvm)?;
        parameters::check(definition, is_microvm)?;
        let rootfs = rootfs::assemble(&key, &container.layers, self.sandbox, definition.privileged)?;
        let name =
            definition.user.as_deref().filter(|user| !user.is_empty()).unwrap_or(&container.image.user);
        let user = image_user::resolve(&rootfs, name)?;
        let volumes = self.volumes(index)?;
        for mount in &volumes {
            mount.volume.fill(&rootfs, &mount.destination)?;
        }
        let working_directory = process::working_directory(container);
        // A volume may bring the directory, or hide it: then it is the volume's business.
        if !volumes.iter().any(|mount| working_directory.starts_with(&mount.destination)) {
            rootfs::make_dir_in_root(&rootfs, &working_directory, self.sandbox.uid_base)?;
        }
        let capabilities = capabilities::bounding_set(definition)?;
        let filter = if definition.privileged {
            Rc::new(Filter::none())
        } else if definition.linux.add_capabilities.is_empty()
            && definition.linux.drop_capabilities.is_empty()
        {
            Rc::clone(self.default_filter)
        } else {
            let names: Vec<String> =
                capabilities.iter().map(|capability| capabilities::name(*capability)).collect();
            Rc::new(Filter::for_capabilities(names.iter().map(String::as_str))?)
        };
        let mut files: Vec<Bind> =
            etc_files::write(&key, self.task, &definition.extra_hosts, self.sandbox.uid_base)?
                .into_iter()
                .map(|file| Bind {
                    source: file.source,
                    destination: file.destination.into(),
                    read_only: false,
                })
                .collect();
        // A volume over such a file, or over /etc, wins.
        files.retain(|file| !volumes.iter().any(|mount| file.destination.starts_with(&mount.destination)));
        if definition.linux.init_process {
            provide_init()?;
            files.push(Bind {
                source: INIT_SOURCE.into(),
                destination: INIT_IN_CONTAINER.into(),
                read_only: true,
            });
        }
        let home = user.home.to_string_lossy().into_owned();
        let parent = match &self.task.cgroup_parent {
            _ if is_microvm => guest::cgroups::TASK,
            Some(parent) => parent.trim_end_matches('/'),
            None => "",
        };
        let cgroups_path = format!("{parent}/{}", cgroup_name(&definition.name));
        Ok(Prepared {
            environment: process::environment(container, &self.task.hostname, &home),
            arguments: process::arguments(container),
            cgroup: Cgroup::at(&cgroups_path),
            key,
            rootfs,
            volumes,
            files,
            capabilities,
            working_directory,
            user,
            filter,
            devices,
            cgroups_path,
        })
    }

    /// The volumes that a container mounts, outermost destination first: those it names, those of
    /// containers it takes them from, and those its image declares and nobody named.
    fn volumes(&self, index: usize) -> Result<Vec<VolumeMount>> {
        let container = &self.task.containers[index];
        let mut mounts = self.own_volumes(index)?;
        for from in &container.spec.volumes_from {
            let other = self
                .task
                .containers
                .iter()
                .position(|other| other.spec.name == from.container)
                .with_context(|| format!("volumesFrom: no container {:?}", from.container))?;
            for mut mount in self.own_volumes(other)? {
                mount.read_only |= from.read_only;
                if !mounts.iter().any(|own| own.destination == mount.destination) {
                    mounts.push(mount);
                }
            }
        }
        mounts.sort_by_key(|mount| mount.destination.components().count());
        Ok(mounts)
    }

    fn own_volumes(&self, index: usize) -> Result<Vec<VolumeMount>> {
        let container = &self.task.containers[index];
        let mut mounts = Vec::new();
        for mount in &container.spec.mounts {
            let number = self
                .task
                .volumes
                .iter()
                .position(|volume| volume.name == mount.volume)
                .with_context(|| format!("no volume {:?}", mount.volume))?;
            mounts.push(VolumeMount {
                volume: Volume::open(&format!("v{number}"), self.sandbox.uid_base)?,
                destination: mount_point(&mount.container_path)?,
                read_only: mount.read_only,
            });
        }
        for (number, path) in container.image.volumes.iter().enumerate() {
            let destination = mount_point(path)?;
            let is_covered = mounts.iter().any(|mount| mount.destination == destination)
                || container
                    .spec
                    .linux
                    .tmpfs
                    .iter()
                    .any(|tmpfs| Path::new(&tmpfs.container_path) == destination);
            if !is_covered {
                let volume = Volume::open(&format!("c{index}-{number}"), self.sandbox.uid_base)?;
                mounts.push(VolumeMount { volume, destination, read_only: false });
            }
        }
        Ok(mounts)
    }
}

/// The last part of a container's control group: its name, except for the one that agents keep for
/// the supervisor itself. No container's name has a dot.
fn cgroup_name(container: &str) -> &str {
    if container == "supervisor" { "supervisor.container" } else { container }
}

/// A path to mount at: absolute, without `..`, not the root.
fn mount_point(path: &str) -> Result<PathBuf> {
    use std::path::Component;
    let mut clean = PathBuf::from("/");
    for component in Path::new("/").join(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => bail!("mount path {path:?} leaves its directory"),
            _ => {}
        }
    }
    if clean == Path::new("/") || clean.starts_with("/proc") {
        bail!("mount path {path:?} is not possible: it is the root directory or inside /proc");
    }
    Ok(clean)
}

/// Copies this program to where containers can mount it from.
fn provide_init() -> Result<()> {
    if !Path::new(INIT_SOURCE).exists() {
        fs::copy("/proc/self/exe", INIT_SOURCE).context("provide the init program")?;
        fs::set_permissions(INIT_SOURCE, Permissions::from_mode(0o555))?;
    }
    Ok(())
}

impl Prepared {
    /// Rewrites what names the task's place, for further runs of the container and for the present
    /// one.
    ///
    /// # Errors
    /// The task's disk cannot be written.
    pub fn move_to(&mut self, old: &SandboxSpec, new: &SandboxSpec) -> Result<()> {
        let name = |task: &SandboxSpec| format!("HOSTNAME={}", task.hostname);
        for variable in self.environment.iter_mut().filter(|variable| **variable == name(old)) {
            *variable = name(new);
        }
        etc_files::rewrite(&self.key, old, new)
    }

    /// Starts run number `run` of the container.
    ///
    /// # Errors
    /// The program cannot be found or executed, or the runtime failed; nothing is left then.
    pub fn start(
        &self,
        sandbox: &Sandbox,
        task: &SandboxSpec,
        container: &SandboxContainer,
        run: u32,
        pid_namespace: Option<&Path>,
    ) -> Result<Run, StartError> {
        let id = format!("{}-{run}", self.key);
        let result = self.try_start(sandbox, task, container, &id, pid_namespace);
        // libcontainer's record is only needed by its own commands.
        let _ = fs::remove_dir_all(format!("{RECORDS}/{id}"));
        if sandbox.is_oom_protected {
            // It has set the supervisor's score, because a child inherits it.
            protect_from_oom();
        }
        result.map_err(|error| {
            // What was created and not started waits forever.
            self.cgroup.kill_all();
            self.cgroup.remove();
            StartError::from(error)
        })
    }

    fn try_start(
        &self,
        sandbox: &Sandbox,
        task: &SandboxSpec,
        container: &SandboxContainer,
        id: &str,
        pid_namespace: Option<&Path>,
    ) -> Result<Run> {
        let definition = &container.spec;
        if self.arguments.is_empty() {
            bail!("{START_FAILURE}no command specified");
        }
        let spec = oci::spec(&Blueprint {
            spec: definition,
            hostname: &task.hostname,
            rootfs: &self.rootfs,
            arguments: self.arguments.clone(),
            environment: self.environment.clone(),
            working_directory: self.working_directory.clone(),
            user: &self.user,
            capabilities: &self.capabilities,
            volumes: self
                .volumes
                .iter()
                .map(|mount| Bind {
                    source: mount.volume.source(),
                    destination: mount.destination.clone(),
                    read_only: mount.read_only,
                })
                .collect(),
            files: self.files.clone(),
            cgroups_path: self.cgroups_path.clone(),
            cgroup: &self.cgroup,
            user_namespace: sandbox.userns().map(|_| Path::new(USERNS_PATH)),
            devices: &self.devices,
            pid_namespace,
            raises_oom_score: sandbox.is_oom_protected,
        })?;
        parameters::set_of_task(definition)?;
        let bundle = format!("/run/bundle-{}", self.key);
        fs::create_dir_all(&bundle)?;
        fs::create_dir_all(RECORDS)?;
        spec.save(format!("{bundle}/config.json"))?;

        let launch = Launch {
            filter: Rc::clone(&self.filter),
            init: definition.linux.init_process.then_some(INIT_IN_CONTAINER),
        };
        let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
            .with_root_path(RECORDS)?
            .with_executor(launch);
        let mut outputs = Vec::new();
        let mut console = None;
        let mut held_stdin = None;
        if definition.tty {
            let path = format!("/run/{id}.console");
            let _ = fs::remove_file(&path);
            let listener = UnixListener::bind(&path)?;
            builder = builder.with_console_socket(Some(&path));
            console = Some((listener, path));
        } else {
            let (stdin, held) = self.standard_input(sandbox, definition.stdin_open)?;
            held_stdin = held;
            builder = builder.with_stdin(stdin);
            if definition.log.is_some() {
                let (out, out_write) = self.output_pipe(sandbox)?;
                let (err, err_write) = self.output_pipe(sandbox)?;
                outputs = vec![out, err];
                builder = builder.with_stdout(out_write).with_stderr(err_write);
            } else {
                builder = builder
                    .with_stdout(sandbox.dev_null.try_clone()?)
                    .with_stderr(sandbox.dev_null.try_clone()?);
            }
        }
        let stay = self.cgroup.enter()?;
        let built = builder.as_init(&bundle).with_systemd(false).with_detach(true).build();
        stay.end()?;
        if let Some((listener, path)) = console {
            let _ = fs::remove_file(path);
            if built.is_ok() {
                outputs = vec![receive_terminal(&listener)?];
            }
        }
        let mut created = built?;
        let pid = created.pid().context("the runtime knows no pid")?.as_raw();
        // The program does not run yet: it waits to be started.
        self.cgroup.adopt(pid)?;
        self.cgroup.limit(definition)?;
        self.limit_devices(sandbox, definition)?;
        parameters::set_of_container(definition, Pid::from_raw(pid), sandbox.uid_base)?;
        created.start()?;
        Ok(Run { pid: Pid::from_raw(pid), outputs, _stdin: held_stdin })
    }

    /// No device node of an image opens, since root file systems are mounted without devices. In a
    /// container sandbox this is the second lock, which a kernel may lack; in a microVM the only one
    /// for nodes that a container makes itself.
    fn limit_devices(&self, sandbox: &Sandbox, definition: &ContainerSpec) -> Result<()> {
        if definition.privileged {
            return Ok(());
        }
        match self.cgroup.limit_devices(&device_rules::of(&self.devices)) {
            Err(error) if self.cgroup.is_unified && !sandbox.is_microvm() => {
                tracing::warn!(error = format!("{error:#}"), "devices not filtered");
                Ok(())
            }
            other => other,
        }
    }

    /// A pipe for output whose end in the container belongs to the container's user, so that it
    /// can be opened again by its name, `/dev/stdout`.
    fn output_pipe(&self, sandbox: &Sandbox) -> Result<(File, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        self.give_to_user(sandbox, &write)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok((read.into(), write))
    }

    fn standard_input(&self, sandbox: &Sandbox, open: bool) -> Result<(OwnedFd, Option<OwnedFd>)> {
        if !open {
            return Ok((sandbox.dev_null.try_clone()?.into(), None));
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        self.give_to_user(sandbox, &read)?;
        Ok((read, Some(write)))
    }

    fn give_to_user(&self, sandbox: &Sandbox, descriptor: &OwnedFd) -> Result<()> {
        let uid = rustix::fs::Uid::from_raw(sandbox.uid_base + self.user.uid);
        let gid = rustix::fs::Gid::from_raw(sandbox.uid_base + self.user.gid);
        Ok(rustix::fs::fchown(descriptor, Some(uid), Some(gid))?)
    }

    /// What further programs in the container run with.
    pub fn inside(&self, sandbox: &Sandbox, definition: &ContainerSpec) -> Inside {
        Inside {
            has_user_namespace: sandbox.userns().is_some(),
            is_privileged: definition.privileged,
            user: self.user.clone(),
            environment: self.environment.clone(),
            working_directory: self.working_directory.clone(),
            capabilities: capabilities::to_caps(&self.capabilities),
            filter: Rc::clone(&self.filter),
            cgroup: self.cgroup.clone(),
        }
    }
}

/// Takes the terminal that the container's first process has sent.
fn receive_terminal(listener: &UnixListener) -> Result<File> {
    listener.set_nonblocking(true)?;
    let (socket, _) = listener.accept().context("the container sent no terminal")?;
    socket.set_nonblocking(true)?;
    let mut byte = [0u8; 4096];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(descriptor) = descriptors.first()
        {
            let master = crate::sys::own(*descriptor);
            rustix::io::ioctl_fionbio(master.as_fd(), true)?;
            return Ok(master.into());
        }
    }
    bail!("the container sent no terminal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_clean() {
        assert_eq!(mount_point("/a//b/./c/").unwrap(), PathBuf::from("/a/b/c"));
        assert_eq!(mount_point("data").unwrap(), PathBuf::from("/data"));
        assert!(mount_point("/").is_err() && mount_point("/a/../b").is_err() && mount_point("").is_err());
        assert!(mount_point("/proc//self").is_err() && mount_point("/process").is_ok());
    }

    #[test]
    fn start_errors_say_what_helps() {
        let wrapped =
            anyhow::anyhow!("exec: \"x\": executable file not found in $PATH").context("libcontainer");
        let error = StartError::from(wrapped);
        assert!(error.reason.ends_with("container process: exec: \"x\": executable file not found in $PATH"));
        assert_eq!(error.exit_code, Some(127));
        let error = StartError::from(anyhow::anyhow!("exec: \"/etc\": is a directory"));
        assert_eq!(error.exit_code, Some(126));
        assert_eq!(StartError::from(anyhow::anyhow!("no room")).exit_code, None);
    }
}
