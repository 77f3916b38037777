"""What a reader of the README types, with the `aws` command."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from server import CORACLE, ROOT, clean_environment
from tasks import GROUP, ROLE, idle, unique

BESIDE_PYTHON = os.path.join(os.path.dirname(sys.executable), "aws")
AWS = BESIDE_PYTHON if os.path.exists(BESIDE_PYTHON) else shutil.which("aws")


@pytest.fixture
def aws(server, tmp_path):
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    settings = {name: server.settings[name] for name in names}
    environment = clean_environment(**settings, AWS_CONFIG_FILE=str(tmp_path / "none"), AWS_PAGER="", HOME=str(tmp_path))

    def run(*arguments, fails=False):
        done = subprocess.run([AWS, *arguments], capture_output=True, text=True, env=environment, timeout=60)
        if fails:
            assert done.returncode != 0
            return done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_first_task_of_the_readme(tasks, tmp_path):
    """Its lines as they stand there, but for the first, which starts a server, and the last, which needs another aws CLI."""
    text = (ROOT / "README.md").read_text()
    lines = re.search("^## Your first task$.*?^```sh$(.*?)^```$", text, re.M | re.S)[1].strip().splitlines()
    assert lines[0].startswith("coracle up &") and lines[-1].startswith("aws logs tail /ecs/hello ")
    script = "\n".join(lines[1:-1]).replace("/tmp/", f"{tmp_path}/")
    path = os.pathsep.join([os.path.dirname(CORACLE), os.path.dirname(AWS), os.environ["PATH"]])
    environment = clean_environment(
        PATH=path, CORACLE_STATE_DIR=str(tasks.server.client_dir()), HOME=str(tmp_path), AWS_PAGER="")
    done = subprocess.run(["bash", "-euxc", script + '\necho "$task"'], capture_output=True, text=True, env=environment,
                          cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    ended = tasks.describe(done.stdout.splitlines()[-1])
    assert ended["containers"][0]["exitCode"] == 0, ended
    events = tasks.cloudwatch.filter_log_events(logGroupName="/ecs/hello")["events"]
    assert any(event["message"].startswith("hello from ip-") for event in events), events


def test_first_task(aws, tasks, tmp_path):
    identity = json.loads(aws("sts", "get-caller-identity"))
    assert identity["Account"] == tasks.server.account
    family = unique("cli")
    definition = tmp_path / "task.json"
    definition.write_text(json.dumps({
        "family": family, "requiresCompatibilities": ["FARGATE"], "networkMode": "awsvpc", "cpu": "256", "memory": "512",
        "executionRoleArn": ROLE, "containerDefinitions": [tasks.container(idle("echo hello from the cli"))],
    }))
    aws("ecs", "register-task-definition", "--cli-input-json", f"file://{definition}")
    network = f"awsvpcConfiguration={{subnets=[{tasks.server.settings['CORACLE_SUBNET']}],assignPublicIp=ENABLED}}"
    arn = aws(
        "ecs", "run-task", "--task-definition", family, "--launch-type", "FARGATE", "--network-configuration", network,
        "--query", "tasks[0].taskArn", "--output", "text",
    ).strip()
    assert arn in aws("ecs", "list-tasks", "--family", family)
    tasks.wait(arn, "RUNNING")
    aws("ecs", "wait", "tasks-running", "--tasks", arn)
    tasks.wait_for_line(arn, "hello")
    text = aws("logs", "get-log-events", "--log-group-name", GROUP, "--log-stream-name", tasks.stream(arn), "--output", "text")
    assert "hello from the cli" in text
    aws("ecs", "stop-task", "--task", arn, "--reason", "typed")
    tasks.wait(arn, "STOPPED")
    aws("ecs", "wait", "tasks-stopped", "--tasks", arn)
    stopped = json.loads(aws("ecs", "describe-tasks", "--tasks", arn))["tasks"][0]
    assert stopped["stoppedReason"] == "typed" and stopped["stoppedAt"]
    assert family in aws("ecs", "list-task-definition-families", "--family-prefix", family)


def test_clusters(aws):
    name = unique("cli-cluster")
    aws("ecs", "create-cluster", "--cluster-name", name, "--tags", "key=a,value=b")
    described = json.loads(aws("ecs", "describe-clusters", "--clusters", name, "--include", "TAGS"))["clusters"][0]
    assert described["status"] == "ACTIVE" and described["tags"] == [{"key": "a", "value": "b"}]
    aws("ecs", "delete-cluster", "--cluster", name)
    assert "ClusterNotFoundException" in aws("ecs", "list-tasks", "--cluster", "nowhere", fails=True)


def test_registry(aws):
    assert len(aws("ecr", "get-login-password").strip()) > 20
    name = unique("cli/repository")
    created = json.loads(aws("ecr", "create-repository", "--repository-name", name))["repository"]
    assert created["repositoryArn"].endswith(f":repository/{name}") and created["repositoryUri"].endswith(name)
    assert "RepositoryAlreadyExistsException" in aws("ecr", "create-repository", "--repository-name", name, fails=True)
    assert json.loads(aws("ecr", "list-images", "--repository-name", name))["imageIds"] == []
    aws("ecr", "delete-repository", "--repository-name", name)


def test_logs(aws):
    name = unique("/cli")
    aws("logs", "create-log-group", "--log-group-name", name)
    aws("logs", "put-retention-policy", "--log-group-name", name, "--retention-in-days", "7")
    group = json.loads(aws("logs", "describe-log-groups", "--log-group-name-prefix", name))["logGroups"][0]
    assert group["retentionInDays"] == 7
    aws("logs", "filter-log-events", "--log-group-name", name, "--filter-pattern", "ERROR")
    aws("logs", "delete-log-group", "--log-group-name", name)
    assert "ResourceNotFoundException" in aws("logs", "describe-log-streams", "--log-group-name", name, fails=True)


def test_not_served_yet(aws):
    error = aws("ecs", "create-service", "--service-name", "x", "--task-definition", "y", fails=True)
    assert "CreateService" in error
