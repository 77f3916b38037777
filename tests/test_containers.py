"""What a container definition says is what the container gets."""

import host
import pytest
from server import instance_of
from tasks import IDLE, idle


# Begun here, so that it need not be waited for where it is looked at (test_restart_policy.py).
pytestmark = pytest.mark.usefixtures("restarting_task")


def after(name, condition):
    return {"dependsOn": [{"containerName": name, "condition": condition}]}


def mount(volume, path, read_only=False):
    return {"mountPoints": [{"sourceVolume": volume, "containerPath": path, "readOnly": read_only}]}


def test_environment_and_directory(tasks):
    ended = tasks.run_to_end(
        tasks.container(
            "echo $GREETING; pwd; echo $HOME; env | grep -c '^AWS_REGION='",
            environment=[{"name": "GREETING", "value": "two  words = 'x'"}],
            workingDirectory="/var/made/for/me",
        )
    )
    assert ended.lines[1] == "/var/made/for/me"
    assert ended.lines[0] == "two words = 'x'"
    assert ended.lines[2:] == ["/root", "1"]


def test_entry_point(tasks):
    ended = tasks.run_to_end(tasks.container("echo", "a b", "c", entryPoint=["/bin/sh", "-c", '"$0" "<$1>" "<$2>"']))
    assert ended.lines == ["<a b> <c>"]


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        (None, "uid=0(root) gid=0(root)"),
        ("app", "uid=1000(app) gid=1001(apps)"),
        ("1000", "uid=1000(app) gid=1001(apps)"),
        ("1000:1002", "uid=1000(app) gid=1002(extra)"),
        ("app:apps", "uid=1000(app) gid=1001(apps)"),
        ("4321:4322", "uid=4321 gid=4322"),
    ],
)
def test_users(tasks, user, identity):
    ended = tasks.run_to_end(tasks.container("id; id -G; echo $HOME", **({"user": user} if user else {})))
    assert ended.lines[0].startswith(identity), ended.lines
    if user == "app":
        assert ended.lines[1].split() == ["1001", "1002"] and ended.lines[2] == "/home/app"


def test_layers(tasks):
    ended = tasks.run_to_end(
        "cd /layers; ls; cat changed; echo; ls opaque; stat -c '%u %g %a %h' owned; "
        "[ owned -ef owned-too ] && echo same"
    )
    assert ended.lines == ["changed", "opaque", "owned", "owned-too", "new", "above", "1000 1001 640 2", "same"]


def test_containers_share_loopback(tasks):
    served = tasks.container("mkdir /www; echo served > /www/x; exec httpd -f -p 127.0.0.1:8080 -h /www", name="web",
                             essential=False, stopTimeout=2)
    asking = tasks.container("until wget -qO- http://localhost:8080/x; do sleep 0.05; done", **after("web", "START"))
    ended = tasks.run_to_end(served, asking)
    assert ended.logs["main"][-1] == "served"


@pytest.mark.parametrize("condition", ["COMPLETE", "SUCCESS"])
def test_after_the_end_of_another(tasks, condition):
    first = tasks.container("sleep 0.3; echo first > /shared/x", name="first", essential=False) | mount("v", "/shared")
    second = tasks.container("cat /shared/x", **after("first", condition)) | mount("v", "/shared")
    ended = tasks.run_to_end(first, second, volumes=[{"name": "v"}])
    assert ended.logs["main"] == ["first"] and ended.containers["first"]["exitCode"] == 0


def test_dependency_fails(tasks):
    first = tasks.container("exit 3", name="first", essential=False)
    ended = tasks.run_to_end(first, tasks.container("echo never", **after("first", "SUCCESS")))
    assert ended.logs["main"] == []
    assert ended.task["stopCode"] == "TaskFailedToStart", ended.task
    assert "exitCode" not in ended.containers["main"]


def test_healthy(tasks):
    check = {"command": ["CMD-SHELL", "test -e /tmp/ready"], "interval": 5, "timeout": 2, "retries": 2}
    web = tasks.container(idle("touch /tmp/ready"), name="web", healthCheck=check)
    task = tasks.run(tasks.register(web, tasks.container(idle("echo after"), **after("web", "HEALTHY"))))
    arn = task["taskArn"]
    running = tasks.wait(arn, "RUNNING")
    health = {c["name"]: c["healthStatus"] for c in running["containers"]}
    assert health == {"web": "HEALTHY", "main": "UNKNOWN"} and running["healthStatus"] == "HEALTHY"
    tasks.wait_for_line(arn, "after")
    tasks.stop(arn)
    tasks.wait(arn, "STOPPED")


def test_volumes(tasks):
    writer = tasks.container("echo x > /data/file; chmod 600 /data/file; cat /data/file", name="writer")
    reader = tasks.container(
        "while ! [ -s /in/file ]; do sleep 0.02; done; cat /in/file; touch /in/new 2>/dev/null || echo read-only",
    )
    ended = tasks.run_to_end(
        writer | {"essential": False} | mount("data", "/data"), reader | mount("data", "/in", True),
        volumes=[{"name": "data"}],
    )
    assert ended.logs["main"][0] == "x" and ended.logs["main"][-1] == "read-only"


def test_read_only_root(tasks):
    container = tasks.container("touch /new 2>/dev/null || echo no; touch /data/new && echo yes", readonlyRootFilesystem=True)
    ended = tasks.run_to_end(container | mount("data", "/data"), volumes=[{"name": "data"}])
    assert ended.lines[-2:] == ["no", "yes"]


def test_linux_parameters(tasks):
    ended = tasks.run_to_end(
        tasks.container(
            "grep -E ' (/scratch|/dev/shm) ' /proc/self/mounts; df -k /dev/shm | tail -1; "
            "echo first $(cat /proc/1/comm); grep CapEff /proc/self/status; chown 1:1 /tmp 2>/dev/null || echo kept",
            linuxParameters={
                "initProcessEnabled": True,
                "sharedMemorySize": 16,
                "tmpfs": [{"containerPath": "/scratch", "size": 8, "mountOptions": ["noexec"]}],
                "capabilities": {"drop": ["CHOWN"]},
            },
        )
    )
    mounts = {line.split()[1]: line.split() for line in ended.lines if line.count(" ") == 5 and "tmpfs" in line}
    assert mounts["/scratch"][2] == "tmpfs" and "noexec" in mounts["/scratch"][3] and "size=8192k" in mounts["/scratch"][3]
    assert "size=16384k" in mounts["/dev/shm"][3]
    assert "first sh" not in ended.lines, ended.lines
    capabilities = int(next(line for line in ended.lines if line.startswith("CapEff")).split()[1], 16)
    assert not capabilities & 1, "CAP_CHOWN"
    assert "kept" in ended.lines


def test_init_process_reaps(tasks):
    script = "(sleep 0.1 &) ; sleep 0.5; grep -l 'State:.Z' /proc/[0-9]*/status | wc -l"
    ended = tasks.run_to_end(tasks.container(script, linuxParameters={"initProcessEnabled": True}))
    assert ended.lines == ["0"]


def test_ulimits_and_sysctls(tasks):
    ended = tasks.run_to_end(
        tasks.container(
            "ulimit -Sn; ulimit -Hn; cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shmmni fs/mqueue/msg_max",
            ulimits=[{"name": "nofile", "softLimit": 1234, "hardLimit": 2345}],
            systemControls=[{"namespace": "net.ipv4.ip_unprivileged_port_start", "value": "80"},
                            {"namespace": "kernel.shmmni", "value": "99"}, {"namespace": "fs.mqueue.msg_max", "value": "17"}],
        )
    )
    assert ended.lines == ["1234", "2345", "80", "99", "17"]
    no_limit = [{"name": "nofile", "softLimit": -1, "hardLimit": -1}]
    ended = tasks.run_to_end(tasks.container("cat /proc/sys/fs/nr_open; ulimit -Hn", ulimits=no_limit))
    # Some hosts do not let their root raise limits.
    most, given = map(int, ended.lines)
    assert given == most if tasks.server.isolation == "microvm" else 2345 < given <= most, ended.lines


def test_a_parameter_that_older_kernels_have_for_the_host_only(tasks):
    backlog = {"namespace": "net.core.somaxconn", "value": "777"}
    ended = tasks.run_to_end(tasks.container("cat /proc/sys/net/core/somaxconn", systemControls=[backlog]))
    reason = ended.container.get("reason", "")
    assert ended.lines == ["777"] or "sysctl net.core.somaxconn: this host's kernel has no such parameter" in reason, ended.task


def test_limits_that_need_a_kernel_of_ones_own(tasks):
    locked = {"name": "memlock", "softLimit": -1, "hardLimit": -1}
    rank = {"name": "rtprio", "softLimit": 50, "hardLimit": 50}
    ended = tasks.run_to_end(tasks.container("ulimit -r; ulimit -l", ulimits=[rank, locked]))
    if tasks.server.isolation == "microvm":
        assert ended.lines == ["50", "unlimited"]
    else:
        assert "ulimit rtprio: this host allows 0 at most, not 50" in ended.container["reason"], ended.task


def test_terminal(tasks):
    ended = tasks.run_to_end(tasks.container("tty; [ -t 1 ] && echo terminal", pseudoTerminal=True, interactive=True))
    assert ended.lines[0].startswith("/dev/") and ended.lines[1] == "terminal"
    ended = tasks.run_to_end(tasks.container("[ -t 1 ] || echo pipe"))
    assert ended.lines == ["pipe"]


def test_stop_signal_is_heard(tasks):
    script = "trap 'sleep 0.5; echo last words; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    arn = tasks.run(tasks.register(tasks.container(script, stopTimeout=20)))["taskArn"]
    tasks.wait_for_line(arn, "up")
    tasks.stop(arn)
    ended = tasks.ended(arn)
    assert ended.lines == ["up", "last words"] and ended.exit_code == 9


def test_stop_timeout(tasks):
    arn = tasks.run(tasks.register(tasks.container("trap '' TERM; echo up; while :; do sleep 0.05; done", stopTimeout=2)))
    arn = arn["taskArn"]
    tasks.wait_for_line(arn, "up")
    tasks.stop(arn)
    ended = tasks.ended(arn)
    assert ended.exit_code == 137
    waited = ended.task["executionStoppedAt"] - ended.task["stoppingAt"]
    assert waited.total_seconds() >= 1.5, "killed before its time"


def test_non_essential_container_may_end(tasks):
    side = tasks.container("exit 4", name="side", essential=False)
    arn = tasks.run(tasks.register(side, tasks.container(idle("echo up"))))["taskArn"]
    tasks.wait(arn, "RUNNING")
    tasks.wait_for_line(arn, "up")
    tasks.stop(arn)
    ended = tasks.ended(arn)
    assert ended.containers["side"]["exitCode"] == 4 and ended.containers["main"]["exitCode"] == 7


def test_essential_container_ends_the_others(tasks):
    shared = mount("shared", "/shared")
    side = tasks.container(idle("touch /shared/up"), name="side", essential=False, **shared)
    main = tasks.container("while [ ! -e /shared/up ]; do sleep 0.05; done; exit 5", **shared)
    ended = tasks.run_to_end(side, main, volumes=[{"name": "shared"}])
    assert (ended.containers["main"]["exitCode"], ended.containers["side"]["exitCode"]) == (5, 7)


def test_disk_size(tasks):
    ended = tasks.run_to_end(tasks.container("df -k / | tail -1"), ephemeralStorage={"sizeInGiB": 25})
    size = int(ended.lines[0].split()[1]) / (1 << 20)
    assert 23 < size <= 25, ended.lines
    size = int(tasks.run_to_end("df -k / | tail -1").lines[0].split()[1]) / (1 << 20)
    assert 18 < size <= 20


def test_limits_of_a_container(tasks):
    """As the container sees them in its own control group, of either version."""
    files = "cpu.weight memory.max memory.low cpu.shares memory.limit_in_bytes memory.soft_limit_in_bytes"
    script = f"cd /sys/fs/cgroup; for d in . *; do for f in {files}; do [ -e $d/$f ] && echo $f $(cat $d/$f); done; done | sort -u"
    ended = tasks.run_to_end(tasks.container(script, cpu=128, memory=256, memoryReservation=64), cpu="256", memory="512")
    first = ["cpu.shares 128", f"memory.limit_in_bytes {256 << 20}", f"memory.soft_limit_in_bytes {64 << 20}"]
    # Half of what the task has, of the weight that Docker makes of shares.
    second = ["cpu.weight 5", f"memory.low {64 << 20}", f"memory.max {256 << 20}"]
    assert ended.lines in (first, second), ended.lines


def test_limits_of_the_task(tasks):
    arn = tasks.run(tasks.register(tasks.container(IDLE), cpu="512", memory="1024"))["taskArn"]
    tasks.wait(arn, "RUNNING")
    group = f"coracle-{instance_of(tasks.server.state_dir)}/{arn.rsplit('/', 1)[1]}"

    def limit(*names):
        files = [host.path("/sys/fs/cgroup") / name.format(group) for name in names]
        return next(file.read_text().split() for file in files if file.exists())

    # A machine's monitor needs some beside the machine.
    beside = 128 if tasks.server.isolation == "microvm" else 0
    assert 1024 << 20 <= int(limit("memory/{}/memory.limit_in_bytes", "{}/memory.max")[0]) <= (1024 + beside) << 20
    quota = limit("cpu/{}/cpu.cfs_quota_us", "cpu,cpuacct/{}/cpu.cfs_quota_us", "{}/cpu.max")[0]
    period = limit("cpu/{}/cpu.cfs_period_us", "cpu,cpuacct/{}/cpu.cfs_period_us", "{}/cpu.max")[-1]
    assert int(quota) * 2 == int(period)
    assert 100 <= int(limit("pids/{}/pids.max", "{}/pids.max")[0]) <= 10000
    tasks.stop(arn)
    tasks.wait(arn, "STOPPED")


def test_confinement(tasks):
    ended = tasks.run_to_end(
        "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd)' /proc/self/status | tr '\\t' ' '; cat /proc/self/uid_map; "
        "ls /proc | grep -c '^[0-9]'; mount -t tmpfs x /mnt 2>/dev/null || echo no-mount; "
        "unshare -U true 2>/dev/null || echo no-unshare; echo x > /proc/sysrq-trigger || echo no-sysrq; "
        "wc -c < /proc/kcore; ls -d /sys/firmware/* 2>/dev/null | wc -l; { mknod /tmp/disk b 254 16 && head -c 1 /tmp/disk; } || echo no-device; "
        "dmesg >/dev/null 2>&1 || echo no-dmesg"
    )
    text = "\n".join(ended.lines)
    facts = dict(line.split(": ", 1) for line in ended.lines if ": " in line and line.split(": ")[0].isalnum())
    assert facts["NoNewPrivs"] == "1" and facts["Seccomp"] == "2", text
    assert int(facts["CapEff"], 16) & (1 << 21 | 1 << 12 | 1 << 19) == 0, "SYS_ADMIN, NET_ADMIN or SYS_PTRACE"
    inside, outside, count = next(line for line in ended.lines if len(line.split()) == 3 and line.split()[0] == "0").split()
    if tasks.server.isolation == "container":
        assert int(outside) >= 1 << 16 and int(count) <= 1 << 16, text
    for word in ("no-mount", "no-unshare", "no-sysrq", "no-device", "no-dmesg"):
        assert word in ended.lines, text


def test_control_groups_are_read_only(tasks):
    ended = tasks.run_to_end(
        "for f in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $f/x 2>&1; done; find /sys/fs/cgroup -name cgroup.procs; "
        "for f in $(find /sys/fs/cgroup -type f); do (echo 0 > $f) 2>/dev/null && echo wrote $f; done; "
        "awk '$5 ~ \"^/sys\" {print $6, $5}' /proc/self/mountinfo"
    )
    assert any(line.endswith("cgroup.procs") for line in ended.lines), "its own group is visible"
    assert any("Read-only file system" in line for line in ended.lines), ended.lines
    assert not [line for line in ended.lines if line.startswith("wrote")], ended.lines
    # Of mounts at one place the last is seen.
    seen = dict(reversed(line.split()) for line in ended.lines if line.startswith(("ro,", "rw,", "ro ", "rw ")))
    assert "/sys/fs/cgroup" in seen and all(options.startswith("ro") for options in seen.values()), seen


def test_host_is_invisible(tasks):
    secret = tasks.server.base / "secret"
    secret.write_text("host file")
    ended = tasks.run_to_end(f"cat {secret} || echo hidden; echo $$; ps -o comm; ls /var/lib /sys/fs/cgroup")
    # The shell is process 1 of its own world.
    assert {"hidden", "1"} <= set(ended.lines), ended.lines
    assert not [line for line in ended.lines if "coracle" in line and "cat:" not in line]
    processes = set(host.sh("cat /proc/[0-9]*/comm 2>/dev/null", check=False)[1].splitlines())
    assert not (processes - {"sh", "ps"}) & set(ended.lines), ended.lines


def test_restart_policy(tasks):
    script = "n=$(cat /data/n 2>/dev/null || echo 0); n=$((n+1)); echo $n > /data/n; echo run $n; exit $n"
    restarting = tasks.container(script, name="again", essential=False,
                                 restartPolicy={"enabled": True, "ignoredExitCodes": [2], "restartAttemptPeriod": 60})
    arn = tasks.run(
        tasks.register(restarting | mount("data", "/data"), tasks.container(IDLE), volumes=[{"name": "data"}])
    )["taskArn"]
    tasks.wait_for_line(arn, "run 1", "again")
    tasks.stop(arn)
    ended = tasks.ended(arn)
    # Restarted only after it ran for the attempt period; the first exit was too early.
    assert ended.logs["again"] == ["run 1"] and ended.containers["again"]["exitCode"] == 1


def test_two_tasks_do_not_share(tasks):
    first = tasks.run(tasks.register(tasks.container(idle("touch /tmp/mine; ln -s x /dev/shm/mine; echo up"))))
    tasks.wait_for_line(first["taskArn"], "up")
    ended = tasks.run_to_end("ls /tmp /dev/shm")
    assert not any("mine" in line for line in ended.lines)
    tasks.stop(first["taskArn"])
