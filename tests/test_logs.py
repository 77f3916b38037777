"""What a container writes, and how it is read through CloudWatch Logs."""

import subprocess
import threading
import time

import boto3
import pytest
from botocore.config import Config
from server import CORACLE, clean_environment, until
from tasks import GROUP, unique


def test_every_line_once_in_order(tasks):
    ended = tasks.run_to_end("i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done")
    assert ended.lines == [f"line {i}" for i in range(500)]


def test_last_words(tasks):
    ended = tasks.run_to_end("echo one; echo two >&2; printf 'no newline'; kill -9 $$; exit 1")
    assert sorted(ended.lines) == ["no newline", "one", "two"]
    ended = tasks.run_to_end("yes 0123456789 | head -n 5000; printf last; exit 3")
    assert ended.exit_code == 3 and len(ended.lines) == 5001 and ended.lines[-1] == "last"


def test_long_and_odd_lines(tasks):
    ended = tasks.run_to_end(
        "head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'caf\\303\\251 \\360\\237\\233\\266\\n'; printf 'bad \\377 byte\\n'; "
        "printf '\\n'; echo '\ttab \"quoted\" \\back'; printf 'return\\r\\n'"
    )
    text = "".join(ended.lines[:-5]) if len(ended.lines) > 6 else ended.lines[0]
    assert text.startswith("x" * 1000) and sum(line.count("x") for line in ended.lines if set(line) == {"x"}) == 40000
    assert "café 🛶" in ended.lines
    assert any(line.startswith("bad ") and line.endswith(" byte") for line in ended.lines)
    assert '\ttab "quoted" \\back' in ended.lines


def test_lines_beyond_the_size_of_an_event(tasks):
    """CloudWatch's events hold 256 KiB less 26 bytes: a longer line becomes several, nothing is lost."""
    ended = tasks.run_to_end(
        "echo first; head -c 1572864 /dev/zero | tr '\\0' x; echo; echo between; head -c 1100000 /dev/zero | tr '\\0' y", timeout=60
    )
    most = 262144 - 26
    assert ended.lines[0] == "first"
    at = ended.lines.index("between")
    for letter, lines, size in (("x", ended.lines[1:at], 1572864), ("y", ended.lines[at + 1 :], 1100000)):
        assert [len(line) for line in lines] == [most] * (size // most) + [size % most]
        assert all(set(line) == {letter} for line in lines)


def test_group_must_exist(tasks):
    options = {"awslogs-group": unique("/nowhere"), "awslogs-region": tasks.server.region, "awslogs-stream-prefix": "x"}
    container = tasks.container("echo x", log=False) | {"logConfiguration": {"logDriver": "awslogs", "options": options}}
    ended = tasks.run_to_end(container)
    assert ended.task["stopCode"] == "TaskFailedToStart"
    assert "ResourceInitializationError: failed to validate logger args" in ended.task["stoppedReason"]
    tasks.cloudwatch.create_log_group(logGroupName=options["awslogs-group"])
    ended = tasks.run_to_end(container)
    assert ended.exit_code == 0
    stream = f"x/main/{ended.task['taskArn'].rsplit('/', 1)[1]}"
    events = tasks.cloudwatch.get_log_events(logGroupName=options["awslogs-group"], logStreamName=stream)["events"]
    assert [event["message"] for event in events] == ["x"]


def test_without_log_configuration(tasks):
    ended = tasks.run_to_end(tasks.container("echo lost; exit 6", log=False))
    assert ended.exit_code == 6 and ended.lines == []


def test_group_in_another_region(tasks):
    """`awslogs-region` may be any; whoever asks for that region finds the group there, and only there."""
    group, elsewhere = unique("/elsewhere"), "eu-west-3"
    options = {"awslogs-group": group, "awslogs-region": elsewhere, "awslogs-stream-prefix": "x",
               "awslogs-create-group": "true"}
    container = tasks.container("echo there", log=False) | {"logConfiguration": {"logDriver": "awslogs", "options": options}}
    arn = tasks.run_to_end(container).task["taskArn"]
    settings = tasks.server.settings
    there = boto3.client("logs", endpoint_url=tasks.server.url, region_name=elsewhere,
                         aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
                         aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"], config=Config(proxies={}))
    assert [event["message"] for event in there.filter_log_events(logGroupName=group)["events"]] == ["there"]
    assert f":logs:{elsewhere}:" in there.describe_log_groups(logGroupNamePrefix=group)["logGroups"][0]["arn"]
    assert tasks.cloudwatch.describe_log_groups(logGroupNamePrefix=group)["logGroups"] == []
    command = [CORACLE, "logs", arn]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60,
                           env=clean_environment(CORACLE_STATE_DIR=str(tasks.server.client_dir())))
    assert (shown.returncode, shown.stdout) == (0, "there\n"), shown


def found(tasks, **filters):
    pages = tasks.cloudwatch.get_paginator("filter_log_events").paginate(logGroupName=GROUP, **filters)
    return [event["message"] for page in pages for event in page["events"]]


def test_filters(tasks):
    word = unique("word")
    ended = tasks.run_to_end(
        f"echo ERROR {word} one; echo WARN {word} two; echo '{{\"word\":\"{word}\",\"code\":503}}'; "
        f"echo '127.0.0.1 {word} 404'; echo other"
    )
    stream = [tasks.stream(ended.task["taskArn"])]
    at = {"logStreamNames": stream}
    assert len(found(tasks, **at)) == 5
    assert found(tasks, filterPattern=f'"{word}" ERROR', **at) == [f"ERROR {word} one"]
    assert found(tasks, filterPattern="?ERROR ?WARN", **at) == [f"ERROR {word} one", f"WARN {word} two"]
    assert found(tasks, filterPattern=f'"{word}" -ERROR -WARN -127', **at)[0].startswith("{")
    assert found(tasks, filterPattern="{ $.code >= 500 }", **at) == [f'{{"word":"{word}","code":503}}']
    assert found(tasks, filterPattern="[ip, word, code = 4*]", **at) == [f"127.0.0.1 {word} 404"]
    assert found(tasks, logStreamNamePrefix="test/nobody") == []
    with pytest.raises(tasks.cloudwatch.exceptions.InvalidParameterException):
        found(tasks, filterPattern="{ $.code >= }", **at)


def test_times_of_events(tasks):
    before = tasks.now() * 1000
    ended = tasks.run_to_end("echo a; sleep 0.3; echo b")
    first, second = tasks.events(ended.task["taskArn"])
    assert before <= first["timestamp"] < second["timestamp"] < (tasks.now() + 1) * 1000
    assert second["timestamp"] - first["timestamp"] >= 250
    assert first["ingestionTime"] >= first["timestamp"]
    stream = tasks.stream(ended.task["taskArn"])
    only = found(tasks, logStreamNames=[stream], startTime=second["timestamp"])
    assert only == ["b"]
    described = tasks.cloudwatch.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=stream)["logStreams"][0]
    assert described["firstEventTimestamp"] == first["timestamp"]


def test_tail_follow(tasks):
    """`aws logs tail --follow`: FilterLogEvents again and again from the last event's time, without those seen."""
    script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); [ $((i % 20)) = 0 ] && sleep 0.1; done"
    arn = tasks.run(tasks.register(tasks.container(script)))["taskArn"]
    stream, since, seen, lines = tasks.stream(arn), int(time.time() * 1000) - 60_000, set(), []

    def poll():
        nonlocal since
        try:
            pages = tasks.cloudwatch.get_paginator("filter_log_events").paginate(
                logGroupName=GROUP, logStreamNamePrefix=stream, startTime=since
            )
            events = [event for page in pages for event in page["events"]]
        except tasks.cloudwatch.exceptions.ResourceNotFoundException:
            return False
        for event in events:
            if event["eventId"] not in seen:
                seen.add(event["eventId"])
                lines.append(event["message"])
                since = max(since, event["timestamp"])
        return len(lines) >= 300

    until(poll, lambda: f"300 lines, not {len(lines)}")
    assert lines == [f"line {i}" for i in range(300)]
    tasks.wait(arn, "STOPPED")


def test_live_tail(tasks):
    tasks.run_to_end("echo there is a group")
    live = tasks.server.client("logs", inject_host_prefix=False)
    arn = f"arn:aws:logs:{tasks.server.region}:{tasks.server.account}:log-group:{GROUP}"
    word = unique("live")
    answer = live.start_live_tail(logGroupIdentifiers=[arn], logEventFilterPattern=f'"{word}"')
    stream = answer["responseStream"]
    got, ready = [], threading.Event()

    def read():
        for event in stream:
            if "sessionStart" in event:
                ready.set()
            for result in event.get("sessionUpdate", {}).get("sessionResults", []):
                got.append(result["message"])
            if len(got) >= 3:
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert ready.wait(10), "no session"
    tasks.run_to_end(f"for i in 1 2 3; do echo {word} $i; echo other; done")
    reader.join(15)
    stream.close()
    assert got == [f"{word} {i}" for i in (1, 2, 3)]


def test_awslogs_needs_a_role(tasks):
    with pytest.raises(tasks.ecs.exceptions.ClientException, match="execution role"):
        tasks.ecs.register_task_definition(
            family=unique("family"), requiresCompatibilities=["FARGATE"], networkMode="awsvpc", cpu="256", memory="512",
            containerDefinitions=[tasks.container("true")],
        )
