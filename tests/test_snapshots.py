"""Tasks that are written down while they run, and tasks that go on from there."""

import json
import time

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session
from host import REMOTE
from server import until
from tasks import IDLE

# Counts in its memory and on its disk, and says who and where it is.
COUNT = (
    "trap 'exit 7' TERM; mkdir /www; httpd -p 0.0.0.0:8080 -h /www; n=0; while true; do "
    "n=$((n+1)); echo x >> /kept; hostname > /www/new; mv /www/new /www/name; "
    "echo n=$n kept=$(wc -l < /kept) host=$(hostname) etc=$(cat /etc/hostname) address=$(hostname -i) "
    "uuid=$(cat /proc/sys/kernel/random/uuid) boot=$(cat /proc/sys/kernel/random/boot_id) at=$(date +%s); "
    "sleep 1 & wait $!; done"
)


def own_call(server, method, path):
    """Calls one of Coracle's own paths; the status and the body."""
    request = AWSRequest(method, server.url + path)
    credentials = Credentials(server.settings["AWS_ACCESS_KEY_ID"], server.settings["AWS_SECRET_ACCESS_KEY"])
    SigV4Auth(credentials, "ecs", server.settings["AWS_REGION"]).add_auth(request)
    answer = URLLib3Session(timeout=60).send(request.prepare())
    return answer.status_code, answer.text


def snapshot(tasks, arn):
    """Makes a snapshot and waits until it is READY."""
    status, body = own_call(tasks.server, "POST", f"/_coracle/tasks/{arn.rsplit('/', 1)[1]}/snapshots")
    assert status == 200, body
    made = json.loads(body)
    assert made["status"] == "PENDING" and made["taskArn"] == arn, made
    seen = {}

    def is_made():
        seen.update(json.loads(own_call(tasks.server, "GET", f"/_coracle/snapshots/{made['snapshotId']}")[1]))
        return seen["status"] != "PENDING"

    until(is_made, lambda: f"a snapshot: {seen}\n{tasks.server.tail()}", timeout=60)
    assert seen["status"] == "READY", seen
    return seen


def restored(tasks, definition, snapshot_id, count=1, **more):
    """Starts tasks from a snapshot."""
    request = {"launchType": "FARGATE", "networkConfiguration": tasks.network(), "count": count,
               "tags": [{"key": "coracle.snapshot", "value": snapshot_id}]} | more
    return tasks.ecs.run_task(taskDefinition=definition, **request)["tasks"]


def facts(tasks, arn):
    """What the counter of a task has said, line by line."""
    return [dict(word.split("=", 1) for word in line.split()) for line in tasks.log(arn)]


def said(tasks, arn, least):
    """The same, once it has said so much."""
    until(lambda: len(facts(tasks, arn)) >= least, lambda: f"{tasks.log(arn)}\n{tasks.server.tail()}", timeout=60)
    return facts(tasks, arn)


def counts_on(lines, first):
    """Whether the lines go on from a number, without a gap, in memory and on the disk."""
    numbers = [str(first + at) for at in range(len(lines))]
    assert [line["n"] for line in lines] == numbers, lines
    assert [line["kept"] for line in lines] == numbers, lines


@pytest.mark.skipif(not REMOTE, reason="needs a server whose KVM runs Linux: make test-microvm")
def test_tasks_go_on_from_a_snapshot(tasks):
    definition = tasks.register(tasks.container(COUNT))
    original = tasks.run(definition)["taskArn"]
    said(tasks, original, 3)
    made = snapshot(tasks, original)
    print("paused for", made["pausedMs"], "ms; memory", made["memoryBytes"], "disk", made["diskBytes"])
    assert 0 < made["memoryBytes"] < 1 << 30 and 0 < made["diskBytes"] < 1 << 30

    copies = [task["taskArn"] for task in restored(tasks, definition, made["snapshotId"], count=2)]
    lines = {arn: said(tasks, arn, 4) for arn in copies}
    at_snapshot = int(lines[copies[0]][0]["n"]) - 1
    assert at_snapshot >= 3
    for arn, task in ((arn, tasks.wait(arn, "RUNNING")) for arn in copies):
        counts_on(lines[arn], at_snapshot + 1)
        address = tasks.address(task)
        # The line that it was at when it was written down may be half the original's.
        lines[arn] = lines[arn][1:]
        for line in lines[arn]:
            name = f"ip-{address.replace('.', '-')}."
            assert line["host"].startswith(name) and line["etc"] == line["host"] and line["address"] == address, line
            assert abs(int(line["at"]) - time.time()) < 60, line
        attributes = {a["name"]: a["value"] for a in task["attributes"]}
        assert attributes["coracle.snapshot"] == made["snapshotId"] and attributes["coracle.isolation"] == "microvm"
        container = task["containers"][0]
        assert container["imageDigest"] and container["runtimeId"].startswith(arn.rsplit("/", 1)[1])
        assert task["startedAt"] >= task["createdAt"]

    # The original has gone on, undisturbed and as itself.
    own = said(tasks, original, at_snapshot + 3)
    counts_on(own, 1)
    for fact in ("host", "address", "boot"):
        values = [{line[fact] for line in of} for of in (own, *lines.values())]
        assert all(len(value) == 1 for value in values) and len(set.union(*values)) == 3, (fact, values)
    uuids = [line["uuid"] for of in (own, *lines.values()) for line in of]
    assert len(set(uuids)) == len(uuids), "random numbers come twice"

    # Each can be reached at its own address, by the process that was listening before.
    for arn in (original, *copies):
        task = tasks.describe(arn)
        url = f"http://{tasks.address(task)}:8080/name"
        asked = tasks.run_to_end(f"for i in 1 2 3; do wget -qO- {url} && exit; sleep 1; done; echo cannot reach it", timeout=60)
        assert facts(tasks, arn)[-1]["host"] in asked.lines, (asked.lines, asked.task)

    # A copy of a copy, when the first snapshot is gone.
    status, body = own_call(tasks.server, "DELETE", f"/_coracle/snapshots/{made['snapshotId']}")
    assert status == 204, body
    with pytest.raises(ClientError, match="there is no snapshot"):
        restored(tasks, definition, made["snapshotId"])
    again = snapshot(tasks, copies[0])
    # It comes with the definition's tags, so whoever starts tasks of that definition need not know of it.
    described = tasks.ecs.describe_task_definition(taskDefinition=definition)["taskDefinition"]
    tasks.ecs.tag_resource(resourceArn=described["taskDefinitionArn"], tags=[{"key": "coracle.snapshot", "value": again["snapshotId"]}])
    third = tasks.run(definition, propagateTags="TASK_DEFINITION")["taskArn"]
    lines = said(tasks, third, 2)
    counts_on(lines, int(lines[0]["n"]))
    assert int(lines[0]["n"]) > at_snapshot + 3
    assert own_call(tasks.server, "DELETE", f"/_coracle/snapshots/{again['snapshotId']}")[0] == 204

    # Signals reach the processes of copies, too.
    for arn in (original, *copies, third):
        tasks.stop(arn)
    for arn in (original, *copies, third):
        ended = tasks.ended(arn)
        assert ended.exit_code == 7 and ended.task["stopCode"] == "UserInitiated", ended.task
    counts_on(facts(tasks, original), 1)


@pytest.mark.skipif(not REMOTE, reason="needs a server whose KVM runs Linux: make test-microvm")
def test_what_does_not_fit_a_snapshot_is_refused(tasks):
    definition = tasks.register(tasks.container(COUNT))
    task = tasks.run(definition)["taskArn"]
    said(tasks, task, 1)
    made = snapshot(tasks, task)["snapshotId"]
    command = {"containerOverrides": [{"name": "main", "command": ["true"]}]}
    container = {"key": "coracle.isolation", "value": "container"}
    tag = {"key": "coracle.snapshot", "value": made}
    for wrong, text in (
        ({"overrides": command}, "Overrides .* do not apply"),
        ({"overrides": {"cpu": "2048", "memory": "4096"}}, "Overrides .* do not apply"),
        ({"tags": [tag, container]}, "cannot go on in a container"),
    ):
        with pytest.raises(ClientError, match=text):
            restored(tasks, definition, made, **wrong)
    with pytest.raises(ClientError, match="is of a task of"):
        restored(tasks, tasks.register(tasks.container(IDLE)), made)
    tasks.stop(task)
    tasks.ended(task)
    status, body = own_call(tasks.server, "POST", f"/_coracle/tasks/{task.rsplit('/', 1)[1]}/snapshots")
    assert (status, "only a RUNNING task" in body) == (409, True), body
    # The snapshot outlives its task.
    copy = restored(tasks, definition, made)[0]["taskArn"]
    said(tasks, copy, 2)
    tasks.stop(copy)
    assert tasks.ended(copy).exit_code == 7
    assert own_call(tasks.server, "DELETE", f"/_coracle/snapshots/{made}")[0] == 204


def test_only_what_there_is_can_be_snapshotted(tasks):
    status, body = own_call(tasks.server, "POST", f"/_coracle/tasks/{'0' * 32}/snapshots?cluster=default")
    assert (status, body) == (404, f"there is no task {'0' * 32} in the cluster default")
    assert own_call(tasks.server, "POST", "/_coracle/tasks/x/snapshots")[0] == 400
    assert own_call(tasks.server, "GET", "/_coracle/snapshots/snap-01234567")[0] == 404
    assert own_call(tasks.server, "DELETE", "/_coracle/snapshots/x")[0] == 404
    with pytest.raises(ClientError, match="there is no snapshot snap-01234567"):
        restored(tasks, tasks.register(tasks.container(IDLE)), "snap-01234567")
    insisting = [{"key": "coracle.isolation", "value": "container"}]
    task = tasks.run(tasks.register(tasks.container(IDLE)), tags=insisting)["taskArn"]
    tasks.wait(task, "RUNNING")
    status, body = own_call(tasks.server, "POST", f"/_coracle/tasks/{task.rsplit('/', 1)[1]}/snapshots")
    assert (status, "runs in a container sandbox" in body) == (409, True), body
    snapshots = json.loads(own_call(tasks.server, "GET", "/_coracle/snapshots")[1])
    assert task not in [snapshot["taskArn"] for snapshot in snapshots]
    tasks.stop(task)
    tasks.ended(task)


def test_nobody_else_asks_for_snapshots(server):
    import urllib.error
    import urllib.request

    for method, path in (("GET", "/_coracle/snapshots"), ("POST", f"/_coracle/tasks/{'0' * 32}/snapshots"),
                         ("DELETE", "/_coracle/snapshots/snap-01234567")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(server.url + path, method=method), timeout=30)
        assert refused.value.code == 403
