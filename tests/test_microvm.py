"""What only a task with a kernel of its own can do, and what it cannot do to others even then."""

import datetime

import host
import pytest
from host import REMOTE
from server import instance_of
from tasks import idle

pytestmark = pytest.mark.skipif(not REMOTE, reason="needs a server whose KVM runs Linux: make test-microvm")
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture
def privileged(tasks):
    """Runs a script in a privileged container, to its end."""
    def run(script, **more):
        return tasks.run_to_end(tasks.container(script, privileged=True, **more))

    return run


def test_a_kernel_of_its_own(tasks):
    first, second = (tasks.run_to_end(f"{BOOT_ID}; uname -s; cat /proc/sys/kernel/random/uuid; date +%s") for _ in range(2))
    assert first.lines[1] == second.lines[1] == "Linux"
    # Nothing that a copy of a template would have in common with another.
    assert len({first.lines[0], second.lines[0], first.lines[2], second.lines[2]}) == 4
    for ended in (first, second):
        attributes = {a["name"]: a["value"] for a in ended.task["attributes"]}
        assert attributes["coracle.isolation"] == "microvm"
        # The clock of a copy is not the template's.
        began, stopped = (ended.task[name] - datetime.timedelta(seconds=2) for name in ("createdAt", "stoppedAt"))
        seconds = int(ended.lines[3])
        assert began.timestamp() <= seconds <= stopped.timestamp() + 4, (ended.lines, ended.task)


def test_size(tasks):
    ended = tasks.run_to_end("nproc; grep MemTotal /proc/meminfo", cpu="2048", memory="4096")
    assert ended.lines[0] == "2"
    assert 3900 << 10 < int(ended.lines[1].split()[1]) < 4300 << 10, ended.lines


def test_a_kernel_that_crashes_takes_nobody_along(tasks):
    neighbour = tasks.run(tasks.register(tasks.container(idle(BOOT_ID))))["taskArn"]
    before = tasks.wait_for_line(neighbour, "-")
    crashing = tasks.container("echo going; sync; sleep 2; echo c > /proc/sysrq-trigger; sleep 1000", privileged=True)
    ended = tasks.ended(tasks.run(tasks.register(crashing))["taskArn"])
    assert ended.task["stopCode"] == "EssentialContainerExited"
    assert "its kernel crashed" in ended.task["stoppedReason"], ended.task["stoppedReason"]
    assert ended.exit_code == 137
    assert ended.lines == ["going"]
    assert tasks.describe(neighbour)["lastStatus"] == "RUNNING"
    assert tasks.log(neighbour) == [before]
    tasks.stop(neighbour)
    assert tasks.ended(neighbour).exit_code == 7


def test_privileged(privileged):
    ended = privileged(
        "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status | tr -d '\\t'; "
        "mkdir /mnt && mount -t tmpfs none /mnt && echo mounted; "
        "echo 1 > /proc/sys/vm/overcommit_memory && cat /proc/sys/vm/overcommit_memory; "
        "exec 3<>/dev/fuse; mkdir /served; mount -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 nobody /served && grep -o ' fuse ' /proc/mounts; "
        "unshare -mpf sh -c 'echo inner $$'; ip link add v0 type veth peer name v1 && echo veth"
    )
    facts = dict(line.split(":", 1) for line in ended.lines if ":" in line)
    assert int(facts["CapEff"], 16) & (1 << 21 | 1 << 12 | 1 << 19) == 1 << 21 | 1 << 12 | 1 << 19, ended.lines
    assert facts["Seccomp"] == "0" and facts["NoNewPrivs"] == "0"
    for line in ("mounted", "1", " fuse ", "inner 1", "veth"):
        assert line in ended.lines, ended.lines


def test_a_container_in_the_container(privileged):
    """An overlay, namespaces and a control group of its own: what a container engine needs."""
    ended = privileged(
        "mkdir -p /x && mount -t tmpfs none /x && mkdir /x/up /x/work /x/root && "
        "mount -t overlay none -o lowerdir=/,upperdir=/x/up,workdir=/x/work /x/root && "
        "mkdir /sys/fs/cgroup/inner && "
        "unshare -mpfui sh -c 'hostname nested; mount -t proc proc /x/root/proc; "
        "chroot /x/root sh -c \"hostname; echo \\$\\$; touch /new && ls /new\"'; ls /x/up/new"
    )
    assert ended.lines == ["nested", "1", "/new", "/x/up/new"], ended.lines


def test_a_capability_more(tasks):
    script = "mkdir /new && mount -t tmpfs none /new && grep -c /new /proc/mounts; date -s 2000-01-01 2>&1 | grep -o 'not permitted'"
    added = {"capabilities": {"add": ["SYS_ADMIN"]}}
    ended = tasks.run_to_end(tasks.container(script, linuxParameters=added))
    assert ended.lines == ["1", "not permitted"]


def test_a_monitor_that_is_killed_takes_nobody_along(tasks):
    neighbour, arn = (tasks.run(tasks.register(tasks.container(idle("echo up"))))["taskArn"] for _ in range(2))
    for each in (neighbour, arn):
        tasks.wait_for_line(each, "up")
    # The task's processes are in another kernel: all that is in its group here is its monitor.
    group = f"coracle-{instance_of(tasks.server.state_dir)}/{arn.rsplit('/', 1)[1]}/supervisor"
    monitor, = (host.path("/sys/fs/cgroup") / group / "cgroup.procs").read_text().split()
    assert "coracle-vmm" in host.path(f"/proc/{monitor}/cmdline").read_text()
    host.sh(f"kill -KILL {monitor}")
    ended = tasks.ended(arn)
    assert ended.task["stoppedReason"].endswith("the task's microVM was killed"), ended.task
    assert ended.exit_code == 137 and ended.lines == ["up"]
    assert tasks.describe(neighbour)["lastStatus"] == "RUNNING"
    tasks.stop(neighbour)
    assert tasks.ended(neighbour).exit_code == 7


def test_an_interface_that_is_removed_is_an_end(tasks):
    neighbour, arn = (tasks.run(tasks.register(tasks.container(idle("echo up"))))["taskArn"] for _ in range(2))
    for each in (neighbour, arn):
        tasks.wait_for_line(each, "up")
    address = tasks.address(tasks.describe(arn))
    routers = f"/run/netns/coracle-{instance_of(tasks.server.state_dir)}-*"
    host.sh(
        f"for router in {routers}; do in=\"nsenter --net=$router\"\n"
        f"link=$($in ip -o route show {address} | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p'); [ -n \"$link\" ] && $in ip link delete $link && exit; done; false")
    ended = tasks.ended(arn)
    assert ended.task["stoppedReason"].endswith("the task's microVM ended: its network interface is gone from the host"), ended.task
    assert tasks.describe(neighbour)["lastStatus"] == "RUNNING"
    tasks.stop(neighbour)
    assert tasks.ended(neighbour).exit_code == 7


def test_any_kernel_parameter(tasks):
    control = {"namespace": "vm.max_map_count", "value": "262144"}
    ended = tasks.run_to_end(tasks.container("cat /proc/sys/vm/max_map_count", systemControls=[control]))
    assert ended.lines == ["262144"]


def test_a_device(tasks):
    device = {"hostPath": "/dev/fuse", "permissions": ["read", "write"]}
    ended = tasks.run_to_end(tasks.container("ls -l /dev/fuse | cut -c1", linuxParameters={"devices": [device]}))
    assert ended.lines == ["c"]


def test_a_container_where_it_is_insisted_on(tasks):
    tags = [{"key": "coracle.isolation", "value": "container"}]
    ended = tasks.run_to_end("cat /proc/self/uid_map", run={"tags": tags})
    assert int(ended.lines[0].split()[1]) >= 1 << 16
    attributes = {a["name"]: a["value"] for a in ended.task["attributes"]}
    assert attributes["coracle.isolation"] == "container"


def test_powering_off_is_an_end(privileged):
    ended = privileged("echo off; sync; sleep 2; echo o > /proc/sysrq-trigger; sleep 1000")
    assert "its kernel shut down" in ended.task["stoppedReason"], ended.task["stoppedReason"]
    assert ended.lines == ["off"]
