"""A `coracle up` of our own, and what it may leave on this machine."""

import atexit
import hashlib
import itertools
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import boto3
import host
import pytest
from botocore.config import Config
from host import PATIENCE, REMOTE

ROOT = pathlib.Path(__file__).resolve().parent.parent
CORACLE = os.environ.get("CORACLE") or str(ROOT / "target/debug/coracle")
_numbers = itertools.count(1)

needs_own_host = pytest.mark.skipif(bool(REMOTE), reason="what it looks at is on this host, or has nothing to do with tasks")
needs_speed = pytest.mark.skipif(
    bool(REMOTE) and not os.environ.get("SLOW"), reason="it takes an emulated processor minutes: make e2e-microvm SLOW=1")


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
            pytest.skip("needs a server on this host")
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="coracle-e2e-"))
        self.begin(free_port(), state_dir)
        self.ephemeral = ephemeral
        self.arguments = ["--isolation", "container", *arguments]
        self.environment = environment or {}
        self.process = None

    def begin(self, port, state_dir=None):
        self.state_dir = state_dir or self.base / "state"
        self.log = self.base / "server.log"
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.clients = {}
        self.settings = None

    def command(self, address="127.0.0.1"):
        mode = ["--ephemeral"] if self.ephemeral else []
        listen = ["--listen", f"{address}:{self.port}"]
        return ["up", "--state-dir", str(self.state_dir), *listen, *mode, *self.arguments]

    def launch(self):
        """Starts the process and does not wait for it to be ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [CORACLE, *self.command()], stdout=log, stderr=log, env=clean_environment(**self.environment),
                start_new_session=True,
            )

    def ended(self):
        """Its exit status, once it has one."""
        return 0 if self.process is None else self.process.poll()

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        self.process.send_signal(number)

    def coracle(self, *arguments):
        """A command of the program on the server's host."""
        return subprocess.run([CORACLE, *arguments], capture_output=True, text=True, timeout=120, env=clean_environment())

    def start(self):
        before = self.log.read_text(errors="replace") if self.log.exists() else ""
        self.launch()

        def is_ready():
            assert self.ended() is None, f"coracle up ended with {self.ended()}\n{self.tail()}"
            return "coracle is ready at" in self.log.read_text(errors="replace")[len(before):]

        until(is_ready, lambda: f"the ready line\n{self.tail()}", timeout=60)
        self.settings = self.env()
        self.clients.clear()
        return self

    def env(self):
        done = self.coracle("env", "--state-dir", str(self.state_dir), "--output", "json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)

    def wait(self, timeout=90):
        """Until it has ended; its exit status."""
        until(lambda: self.ended() is not None, lambda: f"the end of coracle up\n{self.tail()}", timeout)
        return self.ended()

    def stop(self):
        """SIGTERM, and the exit status."""
        if self.ended() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self):
        self.signal(signal.SIGKILL)
        return self.wait(10)

    def tail(self, lines=60):
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(["--- the server's log ends with:", *text.splitlines()[-lines:]])

    def client_dir(self):
        """A state directory on this machine by which commands find the server."""
        return self.state_dir

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
        if self.ended() is None:
            self.kill()
        # A lasting state's tasks go with a reset by an ephemeral server: that is how users do it, too.
        if (self.state_dir / "state.db").exists():
            (self.state_dir / "ephemeral").touch()
            self.ephemeral = True
            try:
                self.start()
                self.stop()
            except AssertionError as error:
                print(f"cleaning up {self.state_dir} failed: {error}\n{self.tail()}")
                self.kill()
        # Processes and mounts below it would make this fail; the leak checker tells of them.
        host.remove_tree(self.base)


class ServerThere(Server):
    """A server on the emulated host, where every task gets a microVM."""

    def client_dir(self):
        made = pathlib.Path(tempfile.mkdtemp(prefix="coracle-client-"))
        atexit.register(shutil.rmtree, made)
        for name in ("endpoint.json", "credentials"):
            made.joinpath(name).touch(0o600)
            made.joinpath(name).write_text((self.state_dir / name).read_text())
        return made


class SharedServerThere(ServerThere):
    """The one that the emulated host starts and stops."""

    def __init__(self):
        self.base = host.path("/state")
        self.begin(int(REMOTE["CORACLE_REGISTRY"].rpartition(":")[2]), self.base / "coracle")
        self.log = host.path("/results/server.log")
        self.settings = REMOTE

    @property
    def pid(self):
        return int((self.base / "pid").read_text())

    def ended(self):
        return None if host.sh(f"kill -0 {self.pid}", check=False)[0] == 0 else 1


class OwnServerThere(ServerThere):
    """One that the test may kill; one at a time for each process of tests."""

    def __init__(self):
        self.base = host.path(f"/state/own-{os.getpid()}-{next(_numbers)}.")
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        self.begin(REMOTE["OWN_PORTS"][worker])
        self.ephemeral = False
        self.arguments = ["--isolation", "microvm", *shlex.split(REMOTE["OWN_ARGUMENTS"])]
        # With a guest kernel and, as soon as there are any, templates: to make them takes long there.
        made, templates = "/state/coracle/agent/templates", f"{self.state_dir}/agent/templates"
        host.sh(
            f"set -e; mkdir {self.base}; cp -al /pristine {self.state_dir}; mkdir -p {templates}\n"
            f"for name in $(ls {made} | grep -v new); do cp -al {made}/$name {templates}; done"
        )

    def launch(self):
        command = shlex.join(["coracle", *self.command("0.0.0.0")])
        host.sh(
            f"cd {self.base}; rm -f status pid; export CORACLE_LOG=info,agent::task=debug,agent::sandbox=debug\n"
            f"(sh -c 'echo $$ >pid; exec \"$@\"' sh {command}; echo $? >status) >>server.log 2>&1 &\n"
            "until [ -s pid ]; do sleep 0.1; done"
        )

    def ended(self):
        status, said = host.sh(f"cd {self.base}; cat status 2>/dev/null || ! test -e pid", check=False)
        return int(said or 0) if status == 0 else None

    @property
    def pid(self):
        return int((self.base / "pid").read_text())

    def signal(self, number):
        host.sh(f"cd {self.base}; kill -{int(number)} $(cat pid) 2>/dev/null || test -e status")

    def coracle(self, *arguments):
        error = self.base / "error"
        status, output = host.sh(f"{shlex.join(['coracle', *arguments])} 2>{error}", check=False)
        return subprocess.CompletedProcess(arguments, status, output, error.read_text())


def own_server():
    return OwnServerThere() if REMOTE else Server()


def instance_of(state_dir):
    """What names of kernel objects of a server contain."""
    return hashlib.sha256(os.fsencode(os.path.realpath(state_dir))).hexdigest()[:6]


def leaks(state_dir):
    """Everything on the server's host that belongs to the server with this state directory."""
    script = pathlib.Path(__file__).with_name("leaks.sh").read_text()
    return host.sh(f"STATE={shlex.quote(str(state_dir))}\n{script}", check=False)[1].splitlines()
