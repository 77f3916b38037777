"""Limits by force: what a task does to get beyond them, and that its neighbours do not notice."""

import host
import pytest
from host import PATIENCE
from server import instance_of, needs_speed, until
from tasks import idle

TICKS = "i=0; while :; do dd if=/dev/zero of=/tmp/f bs=1M count=4 2>/dev/null && sync -d /tmp/f && echo tick $i; "
TICKS += "i=$((i+1)); sleep 0.1; done"


def group_files(tasks, arn, controller, name):
    """Files of a task's control group, whichever version it is of."""
    group = f"coracle-{instance_of(tasks.server.state_dir)}/{arn.rsplit('/', 1)[1]}"
    top = host.path("/sys/fs/cgroup")
    roots = [top, *top.glob(f"*{controller}*")]
    return [root / group / name for root in roots if (root / group / name).exists()]


@pytest.fixture
def neighbour(tasks):
    """A task that writes to its disk and says so; after the test it must go on."""
    arn = tasks.run(tasks.register(tasks.container(TICKS, stopTimeout=0)))["taskArn"]
    tasks.wait_for_line(arn, "tick")
    yield arn
    last = int(tasks.log(arn)[-1].split()[1])
    tasks.wait_for_line(arn, f"tick {last + 2}")
    assert tasks.describe(arn)["lastStatus"] == "RUNNING"
    tasks.stop(arn)
    tasks.wait(arn, "STOPPED")


@needs_speed
def test_processes(tasks, neighbour):
    # Subshells that wait at a pipe: as many as the limit lets through.
    script = "mkfifo /p; n=0; while :; do (read x < /p) & n=$((n+1)); [ $((n % 500)) = 0 ] && echo $n; done"
    ended = tasks.run_to_end(tasks.container(script, linuxParameters={"initProcessEnabled": False}), timeout=120,
                             cpu="1024", memory="4096")
    assert any("can't fork: Resource temporarily unavailable" in line for line in ended.lines), ended.lines
    assert "4000" in ended.lines and "4500" not in ended.lines and ended.exit_code == 2, ended.lines
    assert not group_files(tasks, ended.task["taskArn"], "pids", "pids.current")


def test_fork_bomb(tasks, neighbour):
    script = "b() { echo one more >&2; b | b & }; b; sleep 1000"
    arn = tasks.run(tasks.register(tasks.container(script, stopTimeout=1), cpu="512", memory="1024"))
    arn = arn["taskArn"]
    tasks.wait(arn, "RUNNING")

    def has_gone_off():
        # More processes than it may have, or more memory: what comes first is the kernel's affair.
        if tasks.server.isolation == "microvm":
            # They are another kernel's.
            many = len(tasks.log(arn)) > 1000 // PATIENCE
        else:
            many = any(int(file.read_text()) > 1000 for file in group_files(tasks, arn, "pids", "pids.current"))
        return many or tasks.describe(arn)["lastStatus"] == "STOPPED"

    until(has_gone_off, "many processes", timeout=60)
    tasks.stop(arn)
    ended = tasks.ended(arn, timeout=60)
    assert ended.exit_code in (2, 137, 143), ended.task
    assert not group_files(tasks, arn, "pids", "pids.current")


def test_disk_full(tasks, neighbour):
    # fallocate takes the room without writing it.
    ended = tasks.run_to_end(
        "fallocate -l 15g /a && echo room; fallocate -l 15g /b || echo full; "
        "dd if=/dev/zero of=/c bs=1M count=6000 || echo full again; echo alive"
    )
    # Standard output and error are two pipes: their order among each other is open.
    assert {"room", "full", "full again", "alive"} <= set(ended.lines), ended.lines
    assert sum("No space left on device" in line for line in ended.lines) == 2, ended.lines


def test_largest_size(tasks):
    script = idle(f"grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ {{print $2, $3}}' /proc/meminfo")
    arn = tasks.run(tasks.register(tasks.container(script), cpu="16 vCPU", memory="32 GB"))["taskArn"]
    task = tasks.wait(arn, "RUNNING")
    assert (task["cpu"], task["memory"]) == ("16384", "32768")
    if tasks.server.isolation == "microvm":
        memory = tasks.wait_for_line(arn, "kB").split()[0]
        assert tasks.log(arn)[0] == "16" and int(memory) > 31 << 20, tasks.log(arn)
    for quota, period in (("cpu.cfs_quota_us", "cpu.cfs_period_us"), ("cpu.max", "cpu.max")):
        for file in group_files(tasks, arn, "cpu", quota):
            limit = [int(word) for word in (file.read_text() + file.with_name(period).read_text()).split()][:2]
            assert limit[0] == 16 * limit[1], limit
    tasks.stop(arn)
    tasks.wait(arn, "STOPPED")


def test_child_killed_for_memory(tasks):
    """ECS says so whatever the container makes of it (amazon-ecs-agent issue 2467)."""
    ended = tasks.run_to_end(tasks.container("tail /dev/zero; echo child $?; exit 0", memory=32))
    assert "child 137" in ended.lines and ended.exit_code == 0
    assert ended.container["reason"] == "OutOfMemoryError: Container killed due to memory usage"
    assert ended.task["stopCode"] == "EssentialContainerExited"
