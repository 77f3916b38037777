"""The life of a task, seen through boto3."""

import contextlib

import pytest
from botocore.exceptions import ClientError
from server import free_port, needs_speed
from tasks import IDLE, LISTENING, unique

FAST = {"Delay": 0.1, "MaxAttempts": 300}
NO_SUCH_TASK = "0" * 32


@contextlib.contextmanager
def refused(code, *words):
    with pytest.raises(ClientError) as caught:
        yield
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    for word in words:
        assert word in error["Message"], error


def test_a_task_runs_and_ends(tasks):
    definition = tasks.register(tasks.container(LISTENING))
    started = tasks.run(definition)
    arn = started["taskArn"]
    assert started["lastStatus"] == "PROVISIONING" and started["desiredStatus"] == "RUNNING"
    tasks.ecs.get_waiter("tasks_running").wait(tasks=[arn], WaiterConfig=FAST)
    running = tasks.describe(arn)
    container = running["containers"][0]
    assert container["lastStatus"] == "RUNNING"
    assert container["imageDigest"].startswith("sha256:") and container["runtimeId"]
    assert running["connectivity"] == "CONNECTED" and running["launchType"] == "FARGATE"
    assert {"name": "coracle.isolation", "value": tasks.server.isolation} in running["attributes"]
    tasks.wait_for_line(arn, "listening")
    stopping = tasks.ecs.stop_task(task=arn, reason="enough of it")["task"]
    assert stopping["desiredStatus"] == "STOPPED"
    tasks.ecs.get_waiter("tasks_stopped").wait(tasks=[arn], WaiterConfig=FAST)
    stopped = tasks.describe(arn)
    assert stopped["stopCode"] == "UserInitiated" and stopped["stoppedReason"] == "enough of it"
    assert stopped["containers"][0]["exitCode"] == 7
    assert tasks.log(arn) == ["listening"]


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_codes(tasks, code):
    ended = tasks.run_to_end(f"exit {code}")
    assert ended.exit_code == code
    assert ended.task["stopCode"] == "EssentialContainerExited"
    assert ended.task["stoppedReason"] == "Essential container in task exited"


def test_exit_by_a_signal(tasks):
    ended = tasks.run_to_end(tasks.container("sh -c 'kill -SEGV $$'; exit $?"))
    assert ended.exit_code == 139


def test_times_are_in_order(tasks):
    before = tasks.now()
    task = tasks.run_to_end("sleep 0.1").task
    names = ["createdAt", "pullStartedAt", "pullStoppedAt", "startedAt", "stoppingAt", "executionStoppedAt", "stoppedAt"]
    missing = [name for name in [*names, "connectivityAt"] if name not in task]
    assert not missing, task
    times = {name: task[name].timestamp() for name in names}
    first = ["createdAt", "pullStartedAt", "pullStoppedAt", "startedAt", "executionStoppedAt", "stoppedAt"]
    assert [times[n] for n in first] == sorted(times[n] for n in first), times
    assert times["startedAt"] <= times["stoppingAt"] <= times["stoppedAt"], times
    assert before <= times["createdAt"] and times["stoppedAt"] < tasks.now() + 1


def test_network_interface(tasks):
    task = tasks.run_to_end("hostname; ip -o -4 addr show eth0; cat /sys/class/net/eth0/address").task
    attachment = task["attachments"][0]
    assert attachment["type"] == "ElasticNetworkInterface" and attachment["status"] == "DELETED"
    details = {d["name"]: d["value"] for d in attachment["details"]}
    assert details["subnetId"] == tasks.server.settings["CORACLE_SUBNET"]
    assert details["networkInterfaceId"].startswith("eni-")
    name, address, mac = tasks.log(task["taskArn"])
    assert name == details["privateDnsName"]
    assert f" {details['privateIPv4Address']}/" in address
    assert mac == details["macAddress"]
    interface = task["containers"][0]["networkInterfaces"][0]
    assert interface["privateIpv4Address"] == details["privateIPv4Address"]
    assert interface["attachmentId"] == attachment["id"]


def test_ten_at_once(tasks):
    definition = tasks.register(tasks.container(IDLE))
    answer = tasks.ecs.run_task(
        taskDefinition=definition, launchType="FARGATE", count=10, networkConfiguration=tasks.network()
    )
    arns = [task["taskArn"] for task in answer["tasks"]]
    assert len(set(arns)) == 10 and not answer["failures"]
    tasks.ecs.get_waiter("tasks_running").wait(tasks=arns, WaiterConfig=FAST)
    addresses = {tasks.address(task) for task in tasks.ecs.describe_tasks(tasks=arns)["tasks"]}
    assert len(addresses) == 10
    for arn in arns:
        tasks.stop(arn)
    tasks.ecs.get_waiter("tasks_stopped").wait(tasks=arns, WaiterConfig=FAST)


def test_count_is_bounded(tasks):
    definition = tasks.register(tasks.container("true"))
    for count in (0, 11):
        with refused("InvalidParameterException"):
            tasks.run(definition, count=count)


def test_overrides(tasks):
    definition = tasks.register(tasks.container("echo $A-$B", environment=[{"name": "A", "value": "1"}]))
    override = {"name": "main", "command": ["sh", "-c", "echo over $A $B"],
                "environment": [{"name": "A", "value": "x"}, {"name": "B", "value": "y"}]}
    task = tasks.run(definition, overrides={"containerOverrides": [override], "cpu": "512", "memory": "1024"})
    ended = tasks.ended(task["taskArn"])
    assert ended.lines == ["over x y"]
    assert ended.task["cpu"] == "512" and ended.task["memory"] == "1024"
    assert ended.task["overrides"]["containerOverrides"][0]["command"] == override["command"]
    with refused("InvalidParameterException"):
        tasks.run(definition, overrides={"containerOverrides": [{"name": "other", "command": ["x"]}]})


def test_tags(tasks):
    definition = tasks.register(
        tasks.container("true"), tags=[{"key": "of", "value": "definition"}, {"key": "kept", "value": "yes"}]
    )
    task = tasks.run(definition, propagateTags="TASK_DEFINITION", tags=[{"key": "of", "value": "task"}])
    arn = task["taskArn"]
    assert tasks.describe(arn)["tags"] == []
    seen = {tag["key"]: tag["value"] for tag in tasks.describe(arn, include=["TAGS"])["tags"]}
    assert seen == {"of": "task", "kept": "yes"}
    tasks.ecs.tag_resource(resourceArn=arn, tags=[{"key": "more", "value": "1"}])
    tasks.ecs.untag_resource(resourceArn=arn, tagKeys=["of"])
    seen = {tag["key"]: tag["value"] for tag in tasks.ecs.list_tags_for_resource(resourceArn=arn)["tags"]}
    assert seen == {"kept": "yes", "more": "1"}
    tasks.wait(arn, "STOPPED")


def test_listing(tasks):
    family, by = unique("listed"), unique("me")
    definition = tasks.register(tasks.container(IDLE), family=family)
    arns = {tasks.run(definition, startedBy=by, group="batch")["taskArn"] for _ in range(3)}
    other = tasks.run(tasks.register(tasks.container(IDLE)))["taskArn"]

    def listed(**filters):
        pages = tasks.ecs.get_paginator("list_tasks").paginate(PaginationConfig={"PageSize": 2}, **filters)
        return {arn for page in pages for arn in page["taskArns"]}

    assert listed(family=family) == arns == listed(startedBy=by)
    assert listed() >= arns | {other}
    assert listed(family=family, launchType="EC2") == set()
    assert {task["group"] for task in tasks.ecs.describe_tasks(tasks=list(arns))["tasks"]} == {"batch"}
    assert tasks.describe(other)["group"].startswith("family:")
    gone = arns.pop()
    tasks.stop(gone)
    assert listed(family=family) == arns
    assert listed(family=family, desiredStatus="STOPPED") == {gone}
    for arn in [*arns, other]:
        tasks.stop(arn)
    for arn in [*arns, other, gone]:
        tasks.wait(arn, "STOPPED")
    assert listed(family=family) == set()
    with refused("InvalidParameterException"):
        listed(family=family, startedBy=by)


def test_client_token(tasks):
    definition = tasks.register(tasks.container(IDLE))
    token = unique("token")
    first = tasks.run(definition, clientToken=token)["taskArn"]
    assert tasks.run(definition, clientToken=token)["taskArn"] == first
    with refused("ConflictException"):
        tasks.run(definition, clientToken=token, startedBy="someone")
    assert tasks.run(definition, clientToken=token + "-2")["taskArn"] != first
    for arn in tasks.ecs.list_tasks(family=definition.split(":")[0])["taskArns"]:
        tasks.stop(arn)


def test_missing_tasks(tasks):
    ended = tasks.run_to_end("true").task
    answer = tasks.ecs.describe_tasks(tasks=[NO_SUCH_TASK, ended["taskArn"]])
    assert [task["taskArn"] for task in answer["tasks"]] == [ended["taskArn"]]
    assert [(f["reason"], f["arn"].endswith(NO_SUCH_TASK)) for f in answer["failures"]] == [("MISSING", True)]
    with refused("InvalidParameterException", "The referenced task was not found."):
        tasks.ecs.stop_task(task=NO_SUCH_TASK)
    # A task that has ended can be stopped again, and stays as it was.
    tasks.stop(ended["taskArn"])
    assert tasks.describe(ended["taskArn"])["stopCode"] == "EssentialContainerExited"


def failed_to_start(ended, *words):
    assert ended.task["stopCode"] == "TaskFailedToStart", ended.task
    said = ended.task["stoppedReason"] + " " + str(ended.container.get("reason"))
    for word in words:
        assert word in said, said
    assert "exitCode" not in ended.container or ended.exit_code in (126, 127, 128), ended.container


def test_image_missing(tasks):
    ended = tasks.run_to_end(tasks.container("true", image=f"{tasks.server.registry}/nothing:here"))
    failed_to_start(ended, "CannotPullContainerError", "nothing")
    assert "CannotPullContainerError" in ended.container["reason"]
    ended = tasks.run_to_end(tasks.container("true", image=tasks.image.replace(":latest", ":other")))
    failed_to_start(ended, "CannotPullContainerError", "not found")


def test_registry_down(tasks):
    ended = tasks.run_to_end(tasks.container("true", image=f"127.0.0.1:{free_port()}/a/b:1"))
    failed_to_start(ended, "CannotPullContainerError", "refused")


def test_command_not_found(tasks):
    ended = tasks.run_to_end(tasks.container("no-such-program", "x"))
    failed_to_start(ended, "CannotStartContainerError", "no-such-program", "not found")


def test_command_not_executable(tasks):
    ended = tasks.run_to_end(tasks.container("/opt/not-executable", "x"))
    failed_to_start(ended, "CannotStartContainerError", "/opt/not-executable", "ermission denied")


def test_user_not_in_image(tasks):
    ended = tasks.run_to_end(tasks.container("true", user="stranger"))
    failed_to_start(ended, "CannotStartContainerError", "stranger")


def test_out_of_memory(tasks):
    ended = tasks.run_to_end(tasks.container("tail", "/dev/zero", memory=32))
    assert ended.exit_code == 137
    assert ended.container["reason"] == "OutOfMemoryError: Container killed due to memory usage"
    assert ended.task["stopCode"] == "EssentialContainerExited"


@needs_speed
def test_memory_of_the_whole_task(tasks):
    ended = tasks.run_to_end(tasks.container("tail", "/dev/zero"), timeout=100, cpu="256", memory="512")
    assert ended.exit_code == 137 and "OutOfMemoryError" in ended.container["reason"]


def test_refused_requests(tasks):
    definition = tasks.register(tasks.container("true"))
    network = {"awsvpcConfiguration": {"subnets": ["subnet-0123456789abcdef0"]}}
    with refused("ClientException", "TaskDefinition not found."):
        tasks.run("no-such-family")
    with refused("ClientException", "TaskDefinition not found."):
        tasks.run(definition.replace(":1", ":2"))
    with refused("InvalidParameterException", "InvalidSubnetID.NotFound", "subnet-0123456789abcdef0"):
        tasks.run(definition, networkConfiguration=network)
    with refused("InvalidParameterException", "Network Configuration must be provided"):
        tasks.ecs.run_task(taskDefinition=definition, launchType="FARGATE")
    with refused("ClusterNotFoundException", "Cluster not found."):
        tasks.run(definition, cluster="nowhere")
    with refused("ClusterNotFoundException", "Cluster not found."):
        tasks.ecs.describe_tasks(cluster="nowhere", tasks=[NO_SUCH_TASK])
    groups = {"awsvpcConfiguration": {**tasks.network()["awsvpcConfiguration"], "securityGroups": ["sg-01234567"]}}
    with refused("InvalidParameterException", "InvalidGroup.NotFound"):
        tasks.run(definition, networkConfiguration=groups)
    tasks.ecs.deregister_task_definition(taskDefinition=definition)
    with refused("InvalidParameterException", "TaskDefinition is inactive"):
        tasks.run(definition)


def test_refused_definitions(tasks):
    small = {"cpu": "256", "memory": "512"}
    for size in ({"cpu": "300"}, {"cpu": "256", "memory": "4096"}, {"memory": "100"}):
        with refused("ClientException"):
            tasks.register(tasks.container("true"), **size)
    for size in ({"cpu": "16384", "memory": "30720"}, {"cpu": "16384", "memory": "33792"}, {"cpu": "8192", "memory": "17408"}):
        with refused("ClientException", "No Fargate configuration exists"):
            tasks.register(tasks.container("true"), **size)
    with refused("ClientException", "greater than for the task"):
        tasks.register(tasks.container("true", memory=513), **small)
    with refused("ClientException", "sum of the memory"):
        tasks.register(tasks.container("true", memory=300), tasks.container("true", name="side", memory=300), **small)
    with refused("ClientException", "sum of all container 'cpu' values"):
        tasks.register(tasks.container("true", cpu=200), tasks.container("true", name="side", cpu=100), **small)
    with refused("ClientException"):
        tasks.register(tasks.container("true"), tasks.container("true"))
    with refused("ClientException"):
        tasks.register(tasks.container("true") | {"dependsOn": [{"containerName": "x", "condition": "START"}]})


def test_another_cluster(tasks):
    cluster = unique("cluster")
    tasks.ecs.create_cluster(clusterName=cluster)
    definition = tasks.register(tasks.container(IDLE))
    arn = tasks.run(definition, cluster=cluster)["taskArn"]
    assert f":task/{cluster}/" in arn
    assert tasks.ecs.describe_tasks(tasks=[arn.rsplit("/", 1)[1]])["failures"][0]["reason"] == "MISSING"
    tasks.ecs.get_waiter("tasks_running").wait(cluster=cluster, tasks=[arn], WaiterConfig=FAST)
    counted = tasks.ecs.describe_clusters(clusters=[cluster])["clusters"][0]
    assert counted["runningTasksCount"] == 1
    with refused("ClusterContainsTasksException"):
        tasks.ecs.delete_cluster(cluster=cluster)
    tasks.ecs.stop_task(cluster=cluster, task=arn)
    tasks.ecs.get_waiter("tasks_stopped").wait(cluster=cluster, tasks=[arn], WaiterConfig=FAST)
    assert tasks.ecs.delete_cluster(cluster=cluster)["cluster"]["status"] == "INACTIVE"
