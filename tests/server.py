"""A `coracle up` of our own, and what it may leave on this machine."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import boto3
import pytest
from botocore.config import Config

ROOT = pathlib.Path(__file__).resolve().parent.parent
CORACLE = os.environ.get("CORACLE") or str(ROOT / "target/debug/coracle")

# The settings of a server on another host, as `coracle env --output json` says them there, for tests against it
# (emulated-host/machine.py --serve).
REMOTE = json.loads(os.environ.get("CORACLE_E2E_REMOTE", "null"))
# How many times longer things may take: there, every instruction is emulated.
PATIENCE = 6 if REMOTE else 1

needs_own_host = pytest.mark.skipif(bool(REMOTE), reason="what it looks at is on this host, and the server is not")
needs_speed = pytest.mark.skipif(bool(REMOTE), reason="an emulated processor is too slow for it")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def clean_environment(**more):
    """This process's environment without what would point clients or the server elsewhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "CORACLE_"))}
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    kept = {k: v for k, v in kept.items() if k.lower() not in proxies}
    return kept | more


def until(condition, what, timeout=30.0, pause=0.03):
    """Waits until `condition()` is true and returns its value. `what` may be callable."""
    timeout *= PATIENCE
    if REMOTE:
        # Being asked costs the emulated processor time, which it had better spend on what is waited for.
        pause *= 2 * PATIENCE
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(pause)


class Server:
    """One `coracle up`. It can be stopped, killed and started again on the same state."""

    def __init__(self, *, ephemeral=False, state_dir=None, arguments=(), environment=None):
        if REMOTE:
            pytest.skip("needs a server of its own")
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="coracle-e2e-"))
        self.state_dir = pathlib.Path(state_dir or self.base / "state")
        self.log = self.base / "server.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ephemeral = ephemeral
        self.arguments = list(arguments)
        self.environment = environment or {}
        self.process = None
        self.clients = {}
        self.settings = None

    def command(self):
        mode = ["--ephemeral"] if self.ephemeral else []
        listen = ["--listen", f"127.0.0.1:{self.port}"]
        return [CORACLE, "up", "--state-dir", str(self.state_dir), "--isolation", "container", *listen, *mode, *self.arguments]

    def launch(self):
        """Starts the process and does not wait for it to be ready."""
        start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env=clean_environment(**self.environment),
                start_new_session=True,
            )
        return start

    def start(self):
        start = self.launch()

        def is_ready():
            assert self.process.poll() is None, f"coracle up ended with {self.process.returncode}\n{self.tail()}"
            return b"coracle is ready at" in self.log.read_bytes()[start:]

        until(is_ready, lambda: f"the ready line\n{self.tail()}", timeout=60)
        self.settings = self.env()
        self.clients.clear()
        return self

    def env(self):
        command = [CORACLE, "env", "--state-dir", str(self.state_dir), "--output", "json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, env=clean_environment()).stdout)

    def stop(self, timeout=90):
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self):
        self.process.kill()
        return self.process.wait(10)

    def tail(self, lines=60):
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(["--- the server's log ends with:", *text.splitlines()[-lines:]])

    def client(self, service, **config):
        key = (service, tuple(sorted(config.items())))
        if key not in self.clients:
            self.clients[key] = boto3.client(
                service,
                endpoint_url=self.url,
                region_name=self.settings["AWS_REGION"],
                aws_access_key_id=self.settings["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=self.settings["AWS_SECRET_ACCESS_KEY"],
                config=Config(retries={"total_max_attempts": 1}, proxies={}, read_timeout=60, **config),
            )
        return self.clients[key]

    @property
    def registry(self):
        return self.settings["CORACLE_REGISTRY"]

    @property
    def account(self):
        return self.settings["CORACLE_ACCOUNT"]

    @property
    def region(self):
        return self.settings["AWS_REGION"]

    @property
    def isolation(self):
        """Of tasks that do not say."""
        return "microvm" if REMOTE else "container"

    def destroy(self):
        """Ends the server and its tasks, whatever state they are in."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        # A lasting state's tasks go with a reset by an ephemeral server: that is how users do it, too.
        if (self.state_dir / "state.db").exists():
            (self.state_dir / "ephemeral").touch()
            self.ephemeral = True
            try:
                self.start()
                self.stop()
            except (AssertionError, subprocess.SubprocessError) as error:
                print(f"cleaning up {self.state_dir} failed: {error}\n{self.tail()}")
                self.process.kill()
        # Processes and mounts below it would make this fail; the leak checker tells of them.
        shutil.rmtree(self.base, ignore_errors=True)


class RemoteServer(Server):
    """A server on another host, which others start and stop. What can only be seen there is not tested."""

    def __init__(self):
        self.settings = REMOTE
        self.port = int(self.registry.rpartition(":")[2])
        self.url = f"http://127.0.0.1:{self.port}"
        self.clients = {}

    @property
    def state_dir(self):
        pytest.skip("looks at the server's own host")

    process = log = base = state_dir

    def tail(self, lines=60):
        return "--- the server's log is on its host"


def instance_of(state_dir):
    """What names of kernel objects of a server contain."""
    return hashlib.sha256(os.fsencode(os.path.realpath(state_dir))).hexdigest()[:6]


def leaks(state_dir):
    """Everything on this machine that belongs to the server with this state directory."""
    state_dir = os.path.realpath(state_dir)
    instance = instance_of(state_dir)
    found = []

    def output(*command):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()

    netns = pathlib.Path("/run/netns")
    if netns.is_dir():
        found += [f"netns {p.name}" for p in netns.iterdir() if p.name.startswith(f"coracle-{instance}-")]
    found += [f"nft {line}" for line in output("nft", "list", "tables") if f"coracle_{instance}" in line]
    found += [f"link {line}" for line in output("ip", "-o", "link") if f"crcl-{instance}" in line]
    for pattern in ("", "*/", "*/*/"):
        cgroups = pathlib.Path("/sys/fs/cgroup").glob(f"{pattern}coracle-{instance}/*/")
        found += [f"cgroup {p}" for p in cgroups if p.is_dir()]
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{state_dir}/" in command or re.search(rf"{re.escape(state_dir)}( |$)", command):
            found.append(f"process {process.name}: {command}")
    mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if state_dir in line]
    found += [f"loop {line}" for line in output("losetup", "-n", "-O", "NAME,BACK-FILE") if state_dir in line]
    return found
