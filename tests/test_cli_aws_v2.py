"""Version 2 of the `aws` command, as Debian packages it. It knows no AWS_ENDPOINT_URL (that came with 2.13)."""

import json
import os
import re
import signal
import subprocess

import pytest
from server import clean_environment, until
from tasks import GROUP, LISTENING

# By its path: the tests' own environment has version 1.
AWS = "/usr/bin/aws"


@pytest.fixture
def aws(server, tmp_path):
    """Starts the command; `.wait()` and `.output` are its end."""
    assert os.path.exists(AWS), "scripts/setup installs it"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    settings = {name: server.settings[name] for name in names}
    environment = clean_environment(
        **settings, AWS_CONFIG_FILE=str(tmp_path / "none"), AWS_PAGER="", HOME=str(tmp_path), PYTHONUNBUFFERED="1"
    )
    # Its program is Debian's Python's, whatever Python the tests run in.
    environment["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    started = []

    def start(*arguments):
        output = tmp_path / f"output-{len(started)}"
        with output.open("wb") as file:
            command = [AWS, "--endpoint-url", server.url, *arguments]
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment,
                # A shell that starts the tests in the background has them, and all they start, ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        started.append(process)
        process.read = lambda: output.read_text(errors="replace")
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def run(aws, *arguments):
    process = aws(*arguments)
    status = process.wait(120)
    assert status == 0, process.read()
    return process.read()


def test_is_version_2(aws):
    assert run(aws, "--version").startswith("aws-cli/2.")


def test_tail_follow(aws, tasks):
    script = "i=0; trap 'exit 7' TERM; while :; do echo line $i of the task; i=$((i+1)); sleep 0.2 & wait $!; done"
    arn = tasks.run(tasks.register(tasks.container(script)))["taskArn"]
    before = int(tasks.wait_for_line(arn, "line").split()[1])
    following = aws("logs", "tail", GROUP, "--follow", "--format", "short", "--log-stream-name-prefix", tasks.stream(arn))

    def numbers():
        return [int(number) for number in re.findall(r"line (\d+) of the task", following.read())]

    def follows():
        assert following.poll() is None, following.read()
        # It asks every five seconds: lines of more than one answer.
        return len(numbers()) > 0 and max(numbers()) - before > 60

    until(follows, lambda: f"lines after {before}: {following.read()}", timeout=90)
    assert numbers() == list(range(max(numbers()) + 1)), "each line once, in order"
    following.send_signal(signal.SIGINT)
    following.wait(30)
    assert "Traceback" not in following.read()
    tasks.stop(arn)
    tasks.wait(arn, "STOPPED")


def test_run_wait_and_describe(aws, tasks):
    definition = tasks.register(tasks.container(LISTENING))
    network = f"awsvpcConfiguration={{subnets=[{tasks.server.settings['CORACLE_SUBNET']}],assignPublicIp=ENABLED}}"
    arn = run(aws, "ecs", "run-task", "--task-definition", definition, "--launch-type", "FARGATE",
              "--network-configuration", network, "--query", "tasks[0].taskArn", "--output", "text").strip()
    run(aws, "ecs", "wait", "tasks-running", "--tasks", arn)
    tasks.wait_for_line(arn, "listening")
    waiting = aws("ecs", "wait", "tasks-stopped", "--tasks", arn)
    run(aws, "ecs", "stop-task", "--task", arn)
    assert waiting.wait(60) == 0, waiting.read()
    stopped = json.loads(run(aws, "ecs", "describe-tasks", "--tasks", arn))["tasks"][0]
    assert stopped["lastStatus"] == "STOPPED" and stopped["containers"][0]["exitCode"] == 7
    assert len(run(aws, "ecr", "get-login-password").strip()) > 20
