"""ECS as boto3 sees it. Usage: ecs_boto3.py ENDPOINT SUBNET SECURITY_GROUP"""

import sys

import boto3
from botocore.config import Config

endpoint, subnet, group = sys.argv[1:]
ecs = boto3.client("ecs", endpoint_url=endpoint, config=Config(retries={"max_attempts": 0}))
failed = ecs.exceptions


def refused(kind, text, operation, **arguments):
    try:
        operation(**arguments)
    except kind as error:
        assert text in error.response["Error"]["Message"], error
        return error.response
    raise AssertionError(f"{operation.__name__} was not refused")


# Clusters.
cluster = ecs.create_cluster(
    clusterName="prod",
    tags=[{"key": "team", "value": "a"}],
    capacityProviders=["FARGATE", "FARGATE_SPOT"],
    defaultCapacityProviderStrategy=[{"capacityProvider": "FARGATE", "weight": 1}],
)["cluster"]
assert cluster["status"] == "ACTIVE" and cluster["clusterArn"].endswith(":cluster/prod")
arns = [arn for page in ecs.get_paginator("list_clusters").paginate(PaginationConfig={"PageSize": 1})
        for arn in page["clusterArns"]]
assert [arn.rsplit("/")[-1] for arn in arns] == ["default", "prod"], arns
refused(failed.ClusterNotFoundException, "Cluster not found.", ecs.list_tasks, cluster="gone")
ecs.update_cluster_settings(cluster="prod", settings=[{"name": "containerInsights", "value": "enabled"}])
described = ecs.describe_clusters(clusters=["prod", "gone"], include=["SETTINGS", "TAGS", "STATISTICS"])
assert described["clusters"][0]["settings"] == [{"name": "containerInsights", "value": "enabled"}]
assert described["failures"][0]["reason"] == "MISSING"

# Task definitions.
web = {
    "family": "web",
    "requiresCompatibilities": ["FARGATE"],
    "networkMode": "awsvpc",
    "cpu": "256",
    "memory": "512",
    "executionRoleArn": "arn:aws:iam::123456789012:role/ecsTaskExecutionRole",
    "containerDefinitions": [{
        "name": "app",
        "image": "localhost:4566/app:1",
        "portMappings": [{"containerPort": 80}],
        "environment": [{"name": "A", "value": "1"}],
        "logConfiguration": {"logDriver": "awslogs", "options": {
            "awslogs-group": "/ecs/web", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "web"}},
    }],
}
first = ecs.register_task_definition(**web)["taskDefinition"]
assert first["revision"] == 1 and "FARGATE" in first["compatibilities"]
# What deploy tools do: describe, drop what only the service writes, register again.
again = {k: v for k, v in ecs.describe_task_definition(taskDefinition="web")["taskDefinition"].items()
         if k not in ("taskDefinitionArn", "revision", "status", "requiresAttributes", "compatibilities",
                      "registeredAt", "registeredBy")}
second = ecs.register_task_definition(**again)["taskDefinition"]
assert second["revision"] == 2 and second["containerDefinitions"] == first["containerDefinitions"]
refused(failed.ClientException, "No Fargate configuration exists", ecs.register_task_definition,
        **{**web, "memory": "4096"})
listed = ecs.get_paginator("list_task_definitions").paginate(familyPrefix="web", sort="DESC",
                                                             PaginationConfig={"PageSize": 1}).build_full_result()
assert [arn.rsplit(":")[-1] for arn in listed["taskDefinitionArns"]] == ["2", "1"]

# Tasks, with the waiters.
run = {
    "cluster": "prod",
    "taskDefinition": "web",
    "launchType": "FARGATE",
    "startedBy": "ci",
    "networkConfiguration": {"awsvpcConfiguration": {"subnets": [subnet], "securityGroups": [group]}},
    "tags": [{"key": "run", "value": "1"}],
}
started = ecs.run_task(**run, count=3, clientToken="once")
assert started["failures"] == [] and len(started["tasks"]) == 3
arns = [task["taskArn"] for task in started["tasks"]]
assert {task["lastStatus"] for task in started["tasks"]} == {"PROVISIONING"}
assert [task["taskArn"] for task in ecs.run_task(**run, count=3, clientToken="once")["tasks"]] == arns
conflict = refused(failed.ConflictException, "already in use", ecs.run_task, **run, count=1, clientToken="once")
assert conflict["resourceIds"] == arns
wait = {"Delay": 1, "MaxAttempts": 60}
ecs.get_waiter("tasks_running").wait(cluster="prod", tasks=arns, WaiterConfig=wait)
task = ecs.describe_tasks(cluster="prod", tasks=arns[:1], include=["TAGS"])["tasks"][0]
assert task["connectivity"] == "CONNECTED" and task["startedAt"] >= task["createdAt"]
assert task["tags"] == [{"key": "run", "value": "1"}]
address = {detail["name"]: detail["value"] for detail in task["attachments"][0]["details"]}["privateIPv4Address"]
assert task["containers"][0]["networkInterfaces"][0]["privateIpv4Address"] == address
counts = ecs.describe_clusters(clusters=["prod"])["clusters"][0]
assert counts["runningTasksCount"] == 3 and counts["pendingTasksCount"] == 0
pages = ecs.get_paginator("list_tasks").paginate(cluster="prod", startedBy="ci", PaginationConfig={"PageSize": 2})
assert sorted(pages.build_full_result()["taskArns"]) == sorted(arns)
refused(failed.ClusterContainsTasksException, "Tasks are active", ecs.delete_cluster, cluster="prod")
stopped = ecs.stop_task(cluster="prod", task=arns[0].rsplit("/")[-1], reason="enough")["task"]
assert stopped["desiredStatus"] == "STOPPED" and stopped["stopCode"] == "UserInitiated"
for arn in arns[1:]:
    ecs.stop_task(cluster="prod", task=arn)
ecs.get_waiter("tasks_stopped").wait(cluster="prod", tasks=arns, WaiterConfig=wait)
task = ecs.describe_tasks(cluster="prod", tasks=arns[:1])["tasks"][0]
assert task["stoppedReason"] == "enough" and task["containers"][0]["exitCode"] == 143
assert ecs.list_tasks(cluster="prod")["taskArns"] == []
assert len(ecs.list_tasks(cluster="prod", desiredStatus="STOPPED")["taskArns"]) == 3
missing = ecs.describe_tasks(cluster="prod", tasks=["0" * 32])
assert missing["tasks"] == [] and missing["failures"][0]["reason"] == "MISSING"
refused(failed.InvalidParameterException, "taskId length should be one of [32,36]", ecs.describe_tasks,
        cluster="prod", tasks=["None"])
refused(failed.InvalidParameterException, "The subnet ID 'subnet-0' does not exist", ecs.run_task, **{
    **run, "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-0"]}}})

# Tags and settings.
ecs.tag_resource(resourceArn=second["taskDefinitionArn"], tags=[{"key": "a", "value": "b"}])
assert ecs.list_tags_for_resource(resourceArn=second["taskDefinitionArn"])["tags"] == [{"key": "a", "value": "b"}]
ecs.untag_resource(resourceArn=second["taskDefinitionArn"], tagKeys=["a"])
ecs.put_account_setting(name="containerInsights", value="enhanced")
settings = ecs.get_paginator("list_account_settings").paginate(effectiveSettings=True).build_full_result()["settings"]
assert {s["name"]: s["value"] for s in settings}["containerInsights"] == "enhanced"
assert [p["name"] for p in ecs.describe_capacity_providers()["capacityProviders"]] == ["FARGATE", "FARGATE_SPOT"]

# The end.
for revision in (1, 2):
    ecs.deregister_task_definition(taskDefinition=f"web:{revision}")
refused(failed.ClientException, "TaskDefinition not found.", ecs.run_task, **run)
assert len(ecs.delete_task_definitions(taskDefinitions=["web:1", "web:2"])["taskDefinitions"]) == 2
assert ecs.delete_cluster(cluster="prod")["cluster"]["status"] == "INACTIVE"
refused(failed.ClientError, "does not serve", ecs.list_services, cluster="default")
