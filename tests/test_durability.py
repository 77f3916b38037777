"""SIGKILL at random moments: tasks go on, nothing acknowledged is lost, nothing runs twice, nothing leaks."""

import collections
import os
import random
import threading
import time

import host
import oci_image
from botocore.exceptions import BotoCoreError, ClientError
from host import PATIENCE, REMOTE
from server import leaks, until
from tasks import Tasks, idle, unique

# A machine that emulates a machine does not start as many tasks.
ROUNDS, TASKS = (5, 10) if REMOTE else (10, 40)
STOP_TIMEOUT = 20 if REMOTE else 10
TICK = "1" if REMOTE else "0.2"
# Says once that it started, counts, and ends by itself or when stopped.
SCRIPT = (
    f"TICK={TICK}; trap 'echo stopped; exit 9' TERM; echo started; i=0; "
    "while [ $i -lt $COUNT ]; do echo tick $i; i=$((i+1)); sleep $TICK; done; echo ended; exit 5"
)


class Client(threading.Thread):
    """Runs and stops tasks while the server comes and goes; remembers what was acknowledged."""

    def __init__(self, tasks, definitions, chance):
        super().__init__(daemon=True)
        self.tasks, self.definitions, self.chance = tasks, definitions, chance
        self.started, self.asked_to_stop, self.done = {}, set(), threading.Event()

    def run(self):
        while not self.done.is_set():
            try:
                kind = self.chance.choice(list(self.definitions))
                if len(self.started) < TASKS:
                    self.started[self.tasks.run(self.definitions[kind])["taskArn"]] = kind
                if self.chance.random() < 0.3:
                    arn = self.chance.choice(list(self.started))
                    # Also when the answer is lost, it may have been heard.
                    self.asked_to_stop.add(arn)
                    self.tasks.stop(arn, "by the test")
            except (BotoCoreError, ClientError, IndexError):
                pass
            self.done.wait(self.chance.uniform(0, 0.15) * PATIENCE)


def test_killed_at_any_moment(own_server):
    seed = int(os.environ.get("CORACLE_TEST_SEED") or random.randrange(1 << 32))
    print(f"CORACLE_TEST_SEED={seed}")
    chance = random.Random(seed)
    tasks = Tasks(own_server.start())
    tasks.image = tasks.push(oci_image.build(), "busybox")
    tasks.run_to_end("true")
    at_first = at_rest(own_server)
    definitions = {
        kind: tasks.register(
            tasks.container(SCRIPT, environment=[{"name": "COUNT", "value": str(count)}], stopTimeout=STOP_TIMEOUT)
        )
        for kind, count in {"instant": 0, "short": 5, "long": 100000}.items()
    }
    client = Client(tasks, definitions, random.Random(seed + 1))
    client.start()
    try:
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0.05, 1.0) * PATIENCE)
            own_server.kill()
            # Tasks go on, and end, while nobody looks.
            time.sleep(chance.uniform(0, 0.5) * PATIENCE)
            if chance.random() < 0.4:
                # Killed again before it is ready, or just then.
                own_server.launch()
                time.sleep(chance.uniform(0, 0.5) * PATIENCE)
                own_server.kill()
            own_server.start()
    finally:
        client.done.set()
        client.join(60 * PATIENCE)
    started = client.started
    assert len(started) >= 10 / PATIENCE, "the client hardly came through"

    def described():
        arns, found = list(started), {}
        for at in range(0, len(arns), 50):
            answer = tasks.ecs.describe_tasks(tasks=arns[at : at + 50])
            assert not answer["failures"], f"acknowledged and lost: {answer['failures']}"
            found |= {task["taskArn"]: task for task in answer["tasks"]}
        return found

    def settled():
        """Everything that shall end has ended, and the rest runs."""
        return all(
            task["lastStatus"] == "STOPPED"
            or (kind(task) == "long" and task["lastStatus"] == "RUNNING" and task["desiredStatus"] == "RUNNING")
            for task in described().values()
        )

    def kind(task):
        return started[task["taskArn"]]

    until(settled, lambda: [(t["lastStatus"], t["desiredStatus"], kind(t)) for t in described().values()], timeout=60)
    for arn, task in described().items():
        lines = tasks.log(arn)
        if task["lastStatus"] == "RUNNING":
            ticks = len(lines)
            until(lambda arn=arn, ticks=ticks: len(tasks.log(arn)) > ticks, f"{arn} goes on")
            tasks.stop(arn)
    tasks_left = [arn for arn in started if described()[arn]["lastStatus"] != "STOPPED"]
    for arn in tasks_left:
        tasks.wait(arn, "STOPPED")
    for arn, task in described().items():
        lines, code = tasks.log(arn), task["containers"][0].get("exitCode")
        if not lines:
            # Stopped before it started.
            assert arn in client.asked_to_stop, f"{task['stopCode']}: {task['stoppedReason']}: {task}"
            continue
        ticks = [line for line in lines if line.startswith("tick")]
        assert lines[0] == "started" and lines.count("started") == 1, lines[:5]
        assert ticks == [f"tick {i}" for i in range(len(ticks))], f"{arn} lost or repeated lines: {lines}"
        if code == 137:
            # The stop came before the shell had set its trap, and a first process without a handler never sees
            # the signal (pid_namespaces(7)): it is killed a stop timeout later, and lived hardly longer.
            times = [event["timestamp"] / 1000 for event in tasks.events(arn)]
            assert arn in client.asked_to_stop and times[-1] - times[0] < STOP_TIMEOUT + 2 * PATIENCE, (task, lines)
            continue
        assert code == {"ended": 5, "stopped": 9}[lines[-1]], (lines[-1], task)
        # One that was asked to stop may have ended by itself before it heard.
        expected = "UserInitiated" if arn in client.asked_to_stop or code == 9 else "EssentialContainerExited"
        assert task["stopCode"] == expected or arn in client.asked_to_stop, task
        assert len(lines) == len(ticks) + 2
    assert "panicked" not in own_server.log.read_text(), own_server.tail(300)
    # While the server runs: later, all goes with it.
    until(lambda: on_host(own_server) == at_first, lambda: f"left behind, beside {at_first}: {leaks(own_server.state_dir)}")


def on_host(server):
    """How many things of each kind the server and its stock of sandboxes have on their host."""
    return collections.Counter(line.split()[0] for line in leaks(server.state_dir))


def at_rest(server):
    """The same, once it no longer changes."""
    seen = []
    until(lambda: seen.append(on_host(server)) or len(seen) > 2 and seen[-1] == seen[-2] == seen[-3], lambda: seen, pause=0.5)
    return seen[-1]


def ends(command):
    """Waits until a task's process with this in its command line has ended, without asking a server."""
    if REMOTE:
        # It is a process of another kernel.
        time.sleep(8)
    else:
        # Not the command line of the one that looks.
        looking = f"grep -ls '[{command[0]}]{command[1:]}' /proc/[0-9]*/cmdline"
        until(lambda: not host.sh(looking, check=False)[1], "the container's end")


def test_exit_while_down(own_server):
    tasks = Tasks(own_server.start())
    tasks.image = tasks.push(oci_image.build(), "busybox")
    down = unique("down")
    arn = tasks.run(tasks.register(tasks.container(f"echo up; sleep 1; echo {down}; exit 42")))["taskArn"]
    tasks.wait_for_line(arn, "up")
    own_server.kill()
    ends(down)
    own_server.start()
    ended = tasks.ended(arn)
    assert ended.exit_code == 42 and ended.lines == ["up", down]
    assert ended.task["stopCode"] == "EssentialContainerExited"


def test_ends_without_a_word_after_a_restart(own_server):
    """All that the task wrote was stored before the restart: nothing is to be waited for at its end."""
    tasks = Tasks(own_server.start())
    tasks.image = tasks.push(oci_image.build(), "busybox")
    arn = tasks.run(tasks.register(tasks.container(idle("echo up"))))["taskArn"]
    tasks.wait_for_line(arn, "up")
    own_server.stop()
    own_server.start()
    tasks.stop(arn)
    ended = tasks.ended(arn)
    assert ended.exit_code == 7 and ended.lines == ["up"]


def test_stopped_in_an_orderly_way_tasks_go_on(own_server):
    tasks = Tasks(own_server.start())
    tasks.image = tasks.push(oci_image.build(), "busybox")
    arn = tasks.run(tasks.register(tasks.container(f"echo started $$; while :; do date +%s; sleep {TICK}; done", stopTimeout=2)))
    arn = arn["taskArn"]
    runtime = tasks.wait(arn, "RUNNING")["containers"][0]["runtimeId"]
    assert own_server.stop() == 0
    own_server.start()
    count = len(tasks.log(arn))
    until(lambda: len(tasks.log(arn)) > count + 1, "more lines")
    again = tasks.describe(arn)
    assert again["lastStatus"] == "RUNNING" and again["containers"][0]["runtimeId"] == runtime
    assert sum(line.startswith("started") for line in tasks.log(arn)) == 1
    tasks.stop(arn)
    assert tasks.ended(arn).exit_code == 137
