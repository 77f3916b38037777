"""The `coracle` commands of daily use: what they print, for people and programs, and how they end."""

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request

import oci_image
import pytest
from host import PATIENCE
from server import CORACLE, Server, clean_environment, free_port, needs_own_host, until
from tasks import IDLE, Tasks, idle, unique


class Cli:
    """Runs commands against one server, found through the environment as in a user's shell."""

    def __init__(self, server):
        self.environment = clean_environment(CORACLE_STATE_DIR=str(server.client_dir()))

    def start(self, *arguments, **more):
        # In a session of its own, so that signals to it reach no other.
        return subprocess.Popen([CORACLE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                start_new_session=True, env=self.environment | more,
                                # A shell that runs the tests in the background has it ignored.
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def run(self, *arguments, code=0, **more):
        process = self.start(*arguments, **more)
        try:
            output, error = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == code, (arguments, process.returncode, output, error)
        assert "panicked" not in error
        process.output, process.error = output, error
        return process

    def json(self, *arguments):
        return json.loads(self.run("--output", "json", *arguments).output)


@pytest.fixture
def cli(server):
    return Cli(server)


@pytest.fixture
def shown(tasks):
    """A running task, and its id."""
    arn = tasks.run(tasks.register(tasks.container(idle("echo one; echo two")), family=unique("shown")))["taskArn"]
    tasks.wait_for_line(arn, "two")
    tasks.wait(arn, "RUNNING")
    yield arn.rsplit("/", 1)[1]
    tasks.stop(arn)
    tasks.ended(arn)


def rows(text):
    head, *lines = (line.split() for line in text.splitlines())
    return [dict(zip(head, line)) for line in lines]


def test_run_passes_output_and_exit_code(cli, image):
    done = cli.run("run", image, "sh", "-c", "echo out; echo $0 -$1-; exit 42", "name", "a b", code=42)
    assert done.output == "out\nname -a b-\n"


def test_run_prints_all_of_it(cli, image):
    """More than waits in a container's buffer, as fast as it comes."""
    lines = 240000 // PATIENCE ** 2
    done = cli.run("run", image, "seq", str(lines))
    assert done.output.splitlines() == [str(number) for number in range(1, lines + 1)], done.output[-200:]


def test_run_for_programs(cli, image):
    """A line of JSON for every line of output, as `logs` has it, and one for the end."""
    lines = cli.run("--output", "json", "run", "--name", "spoken", image, "sh", "-c", "echo out; exit 3", code=3).output.splitlines()
    out, end = (json.loads(line) for line in lines)
    assert (out["container"], out["message"]) == ("spoken", "out") and out["timestamp"] > 0, out
    assert end["exitCode"] == 3 and end["stopCode"] == "EssentialContainerExited" and "/default/" in end["taskArn"], end
    never = cli.run("--output", "json", "run", image, "/no/such/program", code=127).output
    assert "no such file" in json.loads(never)["reason"].lower(), never


def test_run_with_options(cli, image, tasks):
    name = unique("named")
    options = ["--quiet", "--cpu", "512", "--memory", "1024", "--name", name, "--env", "GIVEN=a=b", "-e", "FROM_HERE"]
    done = cli.run("run", *options, image, "sh", "-c", "echo $GIVEN $FROM_HERE", FROM_HERE="here")
    assert (done.output, done.error) == ("a=b here\n", "")
    arn = tasks.ecs.list_tasks(family=name, desiredStatus="STOPPED")["taskArns"][0]
    task = tasks.describe(arn)
    assert (task["cpu"], task["memory"], task["containers"][0]["name"]) == ("512", "1024", name)


@needs_own_host
def test_run_publishes_a_port(cli, image):
    port = free_port()
    script = idle("mkdir /w; echo hello > /w/index.html; httpd -p 80 -h /w")
    process = cli.start("run", "--publish", f"{port}:80", image, "sh", "-c", script)
    try:
        def answer():
            assert process.poll() is None, process.communicate()
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read()
            except (urllib.error.URLError, ConnectionError):
                # The server in the task does not listen yet.
                return None

        assert until(answer, "an answer through the port") == b"hello\n"
        # Taken by the one that runs: refused before a task is started.
        refused = cli.run("run", "-p", f"{port}:80", image, "true", code=125)
        assert f"port {port} is in use" in refused.error
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 7
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_stops_the_task(cli, image, tasks, number):
    name = unique("interrupted")
    process = cli.start("run", "--name", name, image, "sh", "-c", idle("echo up"))
    try:
        assert process.stdout.readline() == "up\n"
        arn = tasks.ecs.list_tasks(family=name)["taskArns"][0]
        process.send_signal(number)
        assert process.wait(60) == 7
        task = tasks.describe(arn)
        assert (task["lastStatus"], task["stopCode"]) == ("STOPPED", "UserInitiated")
    finally:
        process.kill()


def test_run_that_cannot(cli, image, server):
    missing = cli.run("run", f"{server.registry}/no-such-image:1", code=125)
    assert "CannotPullContainerError" in missing.error and missing.output == ""
    # As docker and shells have it.
    assert "CannotStartContainerError" in cli.run("run", image, "no-such-command", code=127).error
    assert "CannotStartContainerError" in cli.run("run", image, "/etc/passwd", code=126).error
    size = cli.run("run", "--cpu", "256", "--memory", "300", image, code=125)
    assert "memory" in size.error


def test_detached_run_ps_logs_inspect_stop(cli, image, tasks):
    task = cli.run("run", "--detach", "--name", unique("detached"), image, "sh", "-c", idle("echo up")).output.strip()
    follower = cli.start("logs", "--follow", task)
    try:
        assert follower.stdout.readline() == "up\n"
        tasks.wait(task, "RUNNING")
        listed = {row["TASK"]: row for row in rows(cli.run("ps").output)}
        assert listed[task[:12]]["STATUS"] == "RUNNING" and listed[task[:12]]["IMAGE"] == image
        assert cli.json("inspect", task[:12])["task"]["lastStatus"] == "RUNNING"
        assert cli.run("stop", "--reason", "enough", task[:12]).output.strip() == task[:12]
        assert follower.wait(60) == 0, "it follows until the task's end"
    finally:
        follower.kill()
    assert task[:12] not in cli.run("ps").output
    row = next(line for line in cli.run("ps", "--all").output.splitlines() if line.startswith(task[:12]))
    assert "STOPPED (7)" in row
    assert json.loads(cli.run("inspect", task).output)["task"]["stoppedReason"] == "enough"


def test_output_for_programs(cli, shown, image, server):
    assert shown in [t["taskArn"].rsplit("/", 1)[1] for t in cli.json("ps")]
    lines = cli.run("--output", "json", "logs", shown).output.splitlines()
    assert [(e["container"], e["message"]) for e in map(json.loads, lines)] == [("main", "one"), ("main", "two")]
    images = cli.json("images")
    assert image in {f"{server.registry}/{i['repositoryName']}:{tag}" for i in images for tag in i.get("imageTags", [])}
    assert cli.json("env")["AWS_ENDPOINT_URL"] == server.url
    coverage = cli.json("api-coverage")
    assert 0 < coverage["ecs"]["served"] < coverage["ecs"]["total"]
    checks = {check["name"]: check for check in cli.json("doctor")["checks"]}
    assert {"kvm", "guest-kernel", "cgroups", "nftables", "overlayfs", "disk"} <= checks.keys()
    detached = cli.json("run", "--detach", image, "true")
    assert detached["taskArn"].startswith("arn:aws:ecs:")


def test_names_that_mean_nothing(cli, shown):
    for command in (["logs", "nothing"], ["inspect", "nothing"], ["stop", shown, "nothing"]):
        assert "nothing" in cli.run(*command, code=1).error, command
    assert cli.json("inspect", shown)["task"]["lastStatus"] == "RUNNING", "a mistake in the last name stops none"


@pytest.mark.parametrize("kind", ["layout", "docker-archive"])
def test_push_from_a_file(cli, server, tmp_path, kind):
    repository = unique("pushed")
    # Docker's archives have no zstd.
    image = oci_image.build([(oci_image.base_layer(), "gzip")], Cmd=["echo", kind])
    source = image.write_layout(tmp_path / "layout", "1")
    if kind == "docker-archive":
        archive = tmp_path / "image.tar"
        copy = ["skopeo", "copy", "-q", "--insecure-policy", f"oci:{source}:1", f"docker-archive:{archive}:{repository}:1"]
        subprocess.run(copy, check=True, env=clean_environment())
        source = archive
    cli.run("push", str(source), f"{repository}:1")
    assert f"{server.registry}/{repository}" in [row["IMAGE"] for row in rows(cli.run("images").output)]
    assert cli.run("run", "--quiet", f"{server.registry}/{repository}:1").output == f"{kind}\n"


def test_push_of_what_is_no_image(cli, tmp_path):
    assert str(tmp_path / "none") in cli.run("push", str(tmp_path / "none"), "any:1", code=1).error
    (tmp_path / "text").write_text("not an image")
    assert str(tmp_path / "text") in cli.run("push", str(tmp_path / "text"), "any:1", code=1).error


def test_a_reader_that_goes_away(cli, image):
    """`coracle run … | head -1` ends, and its task too."""
    script = f"exec {CORACLE} run --quiet {image} sh -c 'while :; do echo line; sleep 0.05; done' | head -n 1"
    done = subprocess.run(["bash", "-c", script], env=cli.environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "line\n"


def test_reset_empties_an_ephemeral_server(cli):
    running = Server(ephemeral=True)
    try:
        own, made = Cli(running.start()), Tasks(running)
        made.image = made.push(oci_image.build(), "busybox")
        arn = made.run(made.register(made.container(IDLE)))["taskArn"]
        made.wait(arn, "RUNNING")
        made.ecs.create_cluster(clusterName="more")
        own.run("reset")
        assert own.json("ps") == [] and own.json("images") == []
        assert [a.rsplit("/", 1)[1] for a in made.ecs.list_clusters()["clusterArns"]] == ["default"]
        assert made.ecs.describe_tasks(tasks=[arn])["failures"][0]["reason"] == "MISSING"
        # And it serves on, with the same key.
        made.image = made.push(oci_image.build(), "busybox")
        assert own.run("run", made.image, "echo", "again").output == "again\n"
        assert running.stop() == 0
    finally:
        running.destroy()


@needs_own_host
def test_reset_refuses_a_lasting_server(own_server):
    own_server.start().client("ecs").create_cluster(clusterName="kept")
    assert "ephemeral" in Cli(own_server).run("reset", code=1).error
    assert len(own_server.client("ecs").list_clusters()["clusterArns"]) == 2


def test_isolation_that_this_machine_cannot_give(tmp_path):
    if {c["name"]: c for c in json.loads(subprocess.run(
            [CORACLE, "doctor", "--output", "json"], capture_output=True, text=True).stdout)["checks"]}["kvm"]["status"] == "ok":
        pytest.skip("this machine's KVM is usable")
    done = subprocess.run([CORACLE, "up", "--isolation", "microvm", "--state-dir", str(tmp_path / "s"), "--listen", "127.0.0.1:0"],
                          capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == 1 and "microvm" in done.stderr.lower(), done


def test_without_a_server(tmp_path):
    environment = clean_environment(CORACLE_STATE_DIR=str(tmp_path))
    for command in ("ps", "env", "images", "reset"):
        done = subprocess.run([CORACLE, command], capture_output=True, text=True, env=environment, timeout=30)
        assert done.returncode == 1 and "no Coracle runs" in done.stderr and "coracle up" in done.stderr, done
