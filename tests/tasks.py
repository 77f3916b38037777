"""Runs tasks through boto3, as a user's program does."""

import base64
import email.utils
import itertools
import os
from dataclasses import dataclass

import oci_image
from host import REMOTE
from server import until

GROUP = "/tests"
ROLE = "arn:aws:iam::000000000000:role/execution"
# A quarter of an emulated processor would have tests wait for what they do not test.
CPU, MEMORY = ("512", "1024") if REMOTE else ("256", "512")
_numbers = itertools.count(1)


def idle(*first):
    """A script that does these commands and then runs until it is stopped. A first process without a handler for
    SIGTERM would be waited for, so the handler comes first: who has seen what the script says may stop it."""
    return "; ".join(["trap 'exit 7' TERM", *first, "sleep 1000 & wait"])


IDLE = idle()
# Says when it listens: a container is RUNNING before its shell has come that far.
LISTENING = idle("echo listening")


def unique(prefix="t"):
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


@dataclass
class Ended:
    """A task that has stopped."""

    task: dict
    logs: dict

    @property
    def lines(self):
        """Of the only container, or of all, one container after the other."""
        return [line for lines in self.logs.values() for line in lines]

    @property
    def container(self):
        return self.containers[self.task["containers"][0]["name"]]

    @property
    def containers(self):
        return {c["name"]: c for c in self.task["containers"]}

    @property
    def exit_code(self):
        return self.container.get("exitCode")


class Tasks:
    """What tests do with one server."""

    def __init__(self, server):
        self.server = server
        self.image = None

    @property
    def ecs(self):
        return self.server.client("ecs")

    @property
    def cloudwatch(self):
        return self.server.client("logs")

    def now(self):
        """The server's clock, which need not be this host's, to the second below."""
        headers = self.ecs.list_clusters(maxResults=1)["ResponseMetadata"]["HTTPHeaders"]
        return email.utils.parsedate_to_datetime(headers["date"]).timestamp()

    def registry_credentials(self):
        data = self.server.client("ecr").get_authorization_token()["authorizationData"][0]
        return base64.b64decode(data["authorizationToken"]).decode()

    def push(self, image, repository, tag="latest"):
        return oci_image.push(image, self.server.registry, repository, tag, self.registry_credentials())

    def network(self):
        configuration = {"subnets": [self.server.settings["CORACLE_SUBNET"]], "assignPublicIp": "ENABLED"}
        return {"awsvpcConfiguration": configuration}

    def container(self, *command, name="main", log=True, **more):
        """A container definition; one string is a shell script."""
        made = {"name": name, "image": self.image, "essential": True}
        if command:
            made["command"] = ["sh", "-c", command[0]] if len(command) == 1 else list(command)
        if log:
            options = {"awslogs-group": GROUP, "awslogs-region": self.server.region,
                       "awslogs-stream-prefix": "test", "awslogs-create-group": "true"}
            made["logConfiguration"] = {"logDriver": "awslogs", "options": options}
        return made | more

    def register(self, *containers, family=None, cpu=CPU, memory=MEMORY, **more):
        definition = self.ecs.register_task_definition(
            family=family or unique("family"),
            requiresCompatibilities=["FARGATE"],
            networkMode="awsvpc",
            cpu=cpu,
            memory=memory,
            executionRoleArn=ROLE,
            containerDefinitions=list(containers),
            **more,
        )["taskDefinition"]
        return f"{definition['family']}:{definition['revision']}"

    def run(self, definition, **more):
        """Starts one task and returns it as RunTask does."""
        request = {"launchType": "FARGATE", "networkConfiguration": self.network()} | more
        answer = self.ecs.run_task(taskDefinition=definition, **request)
        assert not answer["failures"], answer["failures"]
        return answer["tasks"][0]

    def describe(self, arn, **more):
        answer = self.ecs.describe_tasks(tasks=[arn], **more)
        assert not answer["failures"], answer["failures"]
        return answer["tasks"][0]

    def wait(self, arn, status, timeout=60):
        """Until the task has this status."""
        seen = {}

        def reached():
            seen.update(self.describe(arn))
            assert seen["lastStatus"] != "STOPPED" or status == "STOPPED", f"stopped early: {seen}"
            return seen["lastStatus"] == status

        until(reached, lambda: f"{status} of {seen}\n{self.server.tail()}", timeout)
        return seen

    def ended(self, arn, timeout=60):
        task = self.wait(arn, "STOPPED", timeout)
        return Ended(task, {c["name"]: self.log(arn, c["name"]) for c in task["containers"]})

    def run_to_end(self, *containers, timeout=30, run=None, **definition):
        """Registers a definition, runs it once, and waits for its end. A string is the script of a
        container."""
        made = [self.container(c) if isinstance(c, str) else c for c in containers]
        task = self.run(self.register(*made, **definition), **(run or {}))
        return self.ended(task["taskArn"], timeout)

    def stop(self, arn, reason="the test is over"):
        self.ecs.stop_task(task=arn, reason=reason)

    def stream(self, arn, container="main"):
        return f"test/{container}/{arn.rsplit('/', 1)[1]}"

    def events(self, arn, container="main", group=GROUP):
        """All events of a container's stream so far; none when it has no stream."""
        events, token = [], None
        while True:
            more = {"nextToken": token} if token else {}
            try:
                page = self.cloudwatch.get_log_events(
                    logGroupName=group, logStreamName=self.stream(arn, container), startFromHead=True, **more
                )
            except self.cloudwatch.exceptions.ResourceNotFoundException:
                return events
            events += page["events"]
            if page["nextForwardToken"] == token:
                return events
            token = page["nextForwardToken"]

    def log(self, arn, container="main", group=GROUP):
        return [event["message"] for event in self.events(arn, container, group)]

    def wait_for_line(self, arn, text, container="main", timeout=30):
        """Until the container has logged a line that contains `text`, and that line."""
        def line():
            return next((line for line in self.log(arn, container) if text in line), None)

        return until(line, lambda: f"{text!r} in {self.log(arn, container)}\n{self.server.tail()}", timeout)

    def address(self, task):
        details = {d["name"]: d["value"] for d in task["attachments"][0]["details"]}
        return details["privateIPv4Address"]
