"""Starting and ending `coracle up`, and what it refuses."""

import json
import os
import signal
import socket
import subprocess

import oci_image
import pytest
from server import CORACLE, Server, clean_environment, free_port, leaks, needs_own_host, until
from tasks import IDLE, Tasks


def up(*arguments, prefix=(), **environment):
    """Runs `coracle up` where it is expected to refuse."""
    command = [*prefix, CORACLE, "up", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=clean_environment(**environment))
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "panicked" not in done.stderr
    return done.stderr


@pytest.fixture
def ephemeral_server():
    running = Server(ephemeral=True)
    try:
        yield running.start()
    finally:
        running.destroy()


@needs_own_host
def test_ready_line_and_notice(server):
    assert f"coracle is ready at {server.url}" in server.log.read_text().splitlines()
    notice = json.loads((server.state_dir / "endpoint.json").read_text())
    assert notice["url"] == server.url and notice["pid"] == server.pid
    assert server.state_dir.stat().st_mode & 0o777 == 0o700
    credentials = server.state_dir / "credentials"
    assert credentials.stat().st_mode & 0o777 == 0o600
    assert server.settings["AWS_SECRET_ACCESS_KEY"] in credentials.read_text()
    assert server.settings["AWS_SECRET_ACCESS_KEY"] not in server.log.read_text()


def test_ready_line_for_programs(tmp_path):
    port = free_port()
    command = [CORACLE, "--output", "json", "up", "--ephemeral", "--isolation", "container",
               "--state-dir", str(tmp_path / "state"), "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean_environment())
    try:
        ready = json.loads(process.stdout.readline())
        assert (ready["url"], ready["pid"]) == (f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        assert process.wait(60) == 0


@needs_own_host
def test_env_for_the_shell(server):
    script = f'eval "$({CORACLE} env --state-dir {server.state_dir})" && echo $AWS_ENDPOINT_URL $AWS_ACCESS_KEY_ID'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env=clean_environment())
    assert done.stdout.split() == [server.url, server.settings["AWS_ACCESS_KEY_ID"]]


def test_ephemeral_leaves_nothing(ephemeral_server):
    tasks = Tasks(ephemeral_server)
    tasks.image = tasks.push(oci_image.build(), "busybox")
    arn = tasks.run(tasks.register(tasks.container(IDLE)))["taskArn"]
    tasks.wait(arn, "RUNNING")
    assert leaks(ephemeral_server.state_dir), "the checker sees a running task"
    assert ephemeral_server.stop() == 0
    assert not ephemeral_server.state_dir.exists()
    until(lambda: not leaks(ephemeral_server.state_dir), lambda: leaks(ephemeral_server.state_dir), timeout=10)


@needs_own_host
def test_state_lasts(own_server):
    own_server.start()
    key = own_server.settings["AWS_ACCESS_KEY_ID"]
    own_server.client("ecs").create_cluster(clusterName="lasting")
    assert own_server.stop() == 0
    assert "no Coracle runs" in refused_env(own_server)
    own_server.start()
    assert own_server.settings["AWS_ACCESS_KEY_ID"] == key
    names = [c["clusterName"] for c in own_server.client("ecs").describe_clusters(clusters=["lasting"])["clusters"]]
    assert names == ["lasting"]
    # Nor may it be emptied by an ephemeral one, nor served twice.
    port = f"127.0.0.1:{free_port()}"
    error = up("--state-dir", str(own_server.state_dir), "--listen", port)
    assert "another Coracle" in error and str(own_server.pid) in error and "--state-dir" in error
    own_server.stop()
    error = up("--state-dir", str(own_server.state_dir), "--listen", port, "--ephemeral")
    assert "--ephemeral would remove it" in error
    assert (own_server.state_dir / "state.db").exists()


def refused_env(server):
    command = [CORACLE, "env", "--state-dir", str(server.state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 1
    return done.stderr


def test_fixed_root_key():
    given = {"CORACLE_ROOT_ACCESS_KEY_ID": "AKIAFIXEDFIXEDFIXED1", "CORACLE_ROOT_SECRET_ACCESS_KEY": "fixed-secret-for-tests"}
    running = Server(ephemeral=True, environment=given, arguments=["--region", "eu-central-1", "--account", "123456789012"])
    try:
        running.start()
        assert running.settings["AWS_ACCESS_KEY_ID"] == given["CORACLE_ROOT_ACCESS_KEY_ID"]
        assert running.settings["AWS_SECRET_ACCESS_KEY"] == given["CORACLE_ROOT_SECRET_ACCESS_KEY"]
        identity = running.client("sts").get_caller_identity()
        assert identity["Account"] == "123456789012"
        clusters = running.client("ecs").list_clusters()["clusterArns"]
        assert all(arn.startswith("arn:aws:ecs:eu-central-1:123456789012:") for arn in clusters)
        assert running.stop() == 0
    finally:
        running.destroy()


def test_half_a_key(tmp_path):
    error = up("--state-dir", str(tmp_path / "s"), "--listen", "127.0.0.1:0", CORACLE_ROOT_ACCESS_KEY_ID="AKIAFIXEDFIXEDFIXED1")
    assert "go together" in error


def test_port_in_use(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = up("--state-dir", str(tmp_path / "s"), "--listen", f"127.0.0.1:{port}")
        assert f"cannot listen on 127.0.0.1:{port}" in error and "--listen" in error
    assert not leaks(tmp_path / "s")


def test_state_directory_unusable(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    error = up("--state-dir", str(file / "state"), "--listen", "127.0.0.1:0")
    assert "cannot create the state directory" in error and str(file) in error
    # Root may write everywhere but to a file system without writing.
    error = up("--state-dir", "/proc/coracle", "--listen", "127.0.0.1:0")
    assert "cannot create the state directory /proc/coracle" in error


def as_nobody(*arguments):
    """Runs the program as a user without rights. The binary may be where only root can look."""
    with open(CORACLE, "rb") as binary:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"/proc/self/fd/{binary.fileno()}"]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, pass_fds=[binary.fileno()],
                              env=clean_environment(HOME="/nonexistent"), timeout=60)


def test_not_root(tmp_path):
    os.chmod(tmp_path, 0o777)
    done = as_nobody("up", "--state-dir", str(tmp_path / "s"))
    assert done.returncode == 1, done.stderr
    assert "needs root" in done.stderr and "sudo coracle up" in done.stderr
    assert not (tmp_path / "s").exists()


def test_doctor_without_root(tmp_path):
    done = as_nobody("doctor", "--state-dir", str(tmp_path / "s"))
    assert "panicked" not in done.stderr and done.returncode in (0, 1)
    assert "sudo coracle doctor" in done.stderr, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "FAIL" in lines["privileges"] and "run Coracle as root" in lines["privileges"], done.stdout
    # What could not be tried is not said to be missing.
    for name in ("nftables", "overlayfs", "loop-devices"):
        assert "warn" in lines[name] and "only root can" in lines[name], done.stdout
    checks = json.loads(as_nobody("doctor", "--state-dir", str(tmp_path / "s"), "--output", "json").stdout)["checks"]
    assert all(check["status"] == "ok" or check["advice"] for check in checks), checks


@needs_own_host
def test_other_commands_without_root(server):
    """A state directory belongs to root, its key too: the commands say so."""
    for command in ("env", "ps", "images"):
        done = as_nobody(command, "--state-dir", str(server.state_dir))
        assert done.returncode == 1 and "panicked" not in done.stderr, (command, done)
        assert "ermission denied" in done.stderr and str(server.state_dir) in done.stderr, done.stderr


def test_interrupt_ends_it():
    running = Server(ephemeral=True)
    try:
        running.start()
        running.signal(signal.SIGINT)
        assert running.wait(30) == 0
    finally:
        running.destroy()
