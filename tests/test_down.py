"""`coracle down`: what a stopped server leaves on this machine goes, and its state stays."""

import json
import os
import signal
import subprocess

import host
import oci_image
import pytest
from server import CORACLE, clean_environment, leaks, needs_own_host, until
from tasks import Tasks

POLITE = "trap 'echo last words; exit 7' TERM; echo up; sleep 1000 & wait"


def down(server, *arguments):
    done = server.coracle("down", "--state-dir", str(server.state_dir), *arguments)
    assert done.returncode == 0, done.stderr
    assert "panicked" not in done.stderr
    until(lambda: not leaks(server.state_dir), lambda: f"left behind: {leaks(server.state_dir)}", timeout=10)
    return done


@pytest.fixture
def running(own_server):
    """A server with a running task that ends politely: the tasks' helper and the task's ARN."""
    tasks = Tasks(own_server.start())
    tasks.image = tasks.push(oci_image.build(), "busybox")
    arn = tasks.run(tasks.register(tasks.container(POLITE)))["taskArn"]
    tasks.wait_for_line(arn, "up")
    return tasks, arn


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_takes_tasks_down_and_keeps_the_state(running, end):
    tasks, arn = running
    server = tasks.server
    server.signal(end)
    server.wait(30)
    assert leaks(server.state_dir), "the task goes on running"
    done = down(server)
    assert "1 task stopped" in done.stdout and "is kept" in done.stdout, done.stdout
    # Once more has nothing to do.
    assert "0 tasks stopped" in down(server).stdout
    server.start()
    task = tasks.wait(arn, "STOPPED")
    assert task["stoppedReason"] == "Stopped with coracle down" and task["stopCode"] == "UserInitiated"
    assert task["containers"][0]["exitCode"] == 7
    assert tasks.log(arn) == ["up", "last words"]
    assert tasks.run_to_end("echo goes on").lines == ["goes on"]


def test_kills_what_does_not_end(running):
    tasks, _ = running
    deaf = tasks.run(tasks.register(tasks.container("trap '' TERM; echo up; sleep 1000", stopTimeout=600)))
    tasks.wait_for_line(deaf["taskArn"], "up")
    tasks.server.stop()
    done = down(tasks.server, "--timeout", "1", "--output", "json")
    assert "are killed" in done.stderr
    assert json.loads(done.stdout)["stopped_tasks"] == 2
    tasks.server.start()
    assert tasks.wait(deaf["taskArn"], "STOPPED")["stoppedReason"] == "Stopped with coracle down"


@needs_own_host
def test_removes_the_state_when_told(running):
    server = running[0].server
    foreign = server.state_dir / "not Coracle's"
    foreign.touch()
    server.stop()
    assert "is removed" in down(server, "--remove-state").stdout
    assert [path.name for path in server.state_dir.iterdir()] == [foreign.name]


def test_after_the_state_was_deleted(running):
    """`rm -rf` of the state directory leaves its tasks: the path is enough to find them."""
    server = running[0].server
    server.kill()
    assert leaks(server.state_dir)
    host.remove_tree(server.state_dir)
    assert leaks(server.state_dir)
    down(server)
    assert not server.state_dir.exists()


@needs_own_host
def test_refuses_while_a_server_runs(running):
    tasks, arn = running
    done = tasks.server.coracle("down", "--state-dir", str(tasks.server.state_dir))
    assert done.returncode == 1
    assert f"(pid {tasks.server.pid})" in done.stderr and "stopped server" in done.stderr, done.stderr
    assert tasks.describe(arn)["lastStatus"] == "RUNNING"


def test_ephemeral_does_not_take_a_directory_with_files(tmp_path):
    tmp_path.joinpath("thesis.tex").write_text("years of work")
    command = [CORACLE, "up", "--ephemeral", "--state-dir", str(tmp_path), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_environment())
    assert done.returncode == 1 and "files that are not Coracle's" in done.stderr, done.stderr
    assert "thesis.tex" in os.listdir(tmp_path)
