"""Drives CloudWatch Logs with boto3. Run by logs_boto3.rs; the argument is the endpoint."""

import sys
import threading
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint = sys.argv[1]
logs = boto3.client("logs", endpoint_url=endpoint, config=Config(retries={"max_attempts": 1}))
GROUP = "/ecs/web"
ARN = f"arn:aws:logs:eu-central-1:123456789012:log-group:{GROUP}"
now = int(time.time() * 1000)


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return error.response["Error"]["Message"]
    raise AssertionError(f"{call.__name__} was not refused")


def put(stream, *messages):
    events = [{"timestamp": now + i, "message": m} for i, m in enumerate(messages)]
    answer = logs.put_log_events(logGroupName=GROUP, logStreamName=stream, logEvents=events)
    assert "rejectedLogEventsInfo" not in answer, answer
    return answer


# Groups, streams, tags, retention.
logs.create_log_group(logGroupName=GROUP, tags={"team": "blue"})
refused("ResourceAlreadyExistsException", logs.create_log_group, logGroupName=GROUP)
refused("InvalidParameterException", logs.create_log_group, logGroupName="with space")
for i in range(7):
    logs.create_log_group(logGroupName=f"many/{i}")
pages = logs.get_paginator("describe_log_groups").paginate(PaginationConfig={"PageSize": 3})
names = [g["logGroupName"] for page in pages for g in page["logGroups"]]
assert names == [GROUP] + [f"many/{i}" for i in range(7)], names
assert len(logs.describe_log_groups(logGroupNamePattern="y/3")["logGroups"]) == 1
assert logs.list_log_groups(logGroupNamePattern="^many")["logGroups"][0]["logGroupArn"].endswith(":many/0")
logs.put_retention_policy(logGroupName=GROUP, retentionInDays=30)
group = logs.describe_log_groups(logGroupNamePrefix=GROUP)["logGroups"][0]
assert group["retentionInDays"] == 30 and group["arn"] == ARN + ":*", group
logs.delete_retention_policy(logGroupName=GROUP)
logs.tag_resource(resourceArn=ARN, tags={"stage": "test"})
logs.untag_resource(resourceArn=ARN, tagKeys=["team"])
assert logs.list_tags_for_resource(resourceArn=ARN)["tags"] == {"stage": "test"}
logs.tag_log_group(logGroupName=GROUP, tags={"a": "b"})
logs.untag_log_group(logGroupName=GROUP, tags=["stage"])
assert logs.list_tags_log_group(logGroupName=GROUP)["tags"] == {"a": "b"}
for stream in ["web/1", "web/2", "db/1"]:
    logs.create_log_stream(logGroupName=GROUP, logStreamName=stream)
refused("ResourceAlreadyExistsException", logs.create_log_stream, logGroupName=GROUP, logStreamName="db/1")

# Events: what is put is read at once, from both ends, and found.
put("web/1", *[f"GET /{i} 200" for i in range(25)])
put("web/2", "ERROR one", '{"level":"ERROR","latency":12.5,"user":{"id":7}}')
put("db/1", "ERROR db")
message = refused(
    "ResourceNotFoundException",
    logs.put_log_events,
    logGroupName=GROUP,
    logStreamName="missing",
    logEvents=[{"timestamp": now, "message": "x"}],
)
assert message == "The specified log stream does not exist.", message
rejected = logs.put_log_events(
    logGroupName=GROUP,
    logStreamName="db/1",
    logEvents=[
        {"timestamp": now - 15 * 86_400_000, "message": "old"},
        {"timestamp": now + 10, "message": "in time"},
        {"timestamp": now + 3 * 3_600_000, "message": "early"},
    ],
)["rejectedLogEventsInfo"]
assert rejected == {"tooNewLogEventStartIndex": 2, "tooOldLogEventEndIndex": 1}, rejected

page = logs.get_log_events(logGroupName=GROUP, logStreamName="web/1", startFromHead=True, limit=10)
seen = []
while True:
    seen += [e["message"] for e in page["events"]]
    token = page["nextForwardToken"]
    page = logs.get_log_events(
        logGroupIdentifier=ARN, logStreamName="web/1", startFromHead=True, limit=10, nextToken=token
    )
    if page["nextForwardToken"] == token:
        break
assert seen == [f"GET /{i} 200" for i in range(25)], seen
refused(
    "InvalidParameterException",
    logs.get_log_events,
    logGroupName=GROUP,
    logStreamName="web/1",
    nextToken="f/made-up",
)


def search(**arguments):
    pages = logs.get_paginator("filter_log_events").paginate(
        logGroupName=GROUP, PaginationConfig={"PageSize": 4}, **arguments
    )
    return [e for page in pages for e in page["events"]]


assert len(search()) == 29
assert len({e["eventId"] for e in search()}) == 29
assert {e["logStreamName"] for e in search(filterPattern="ERROR")} == {"web/2", "db/1"}
assert len(search(filterPattern="{ $.latency > 1.2e1 && $.user.id = 7 }")) == 1
assert len(search(filterPattern="[method=GET, path=*/2*, status=2*]")) == 6
assert len(search(filterPattern="%/1[0-9] %", logStreamNamePrefix="web/")) == 10
refused("InvalidParameterException", logs.filter_log_events, logGroupName=GROUP, filterPattern="{ $.a")
streams = logs.describe_log_streams(logGroupName=GROUP, orderBy="LastEventTime", descending=True)
assert [s["logStreamName"] for s in streams["logStreams"]] == ["web/1", "db/1", "web/2"], streams
matches = logs.test_metric_filter(filterPattern="[a, b=2]", logEventMessages=["1 2", "1 3"])["matches"]
assert matches == [
    {"eventNumber": 1, "eventMessage": "1 2", "extractedValues": {"$a": "1", "$b": "2"}}
], matches

# Following as `aws logs tail --follow` does it: search from the last time on, drop ids seen there.
followed, last, at_last = [], now, set()
for round in range(3):
    put("db/1", f"follow {round}")
    for event in search(startTime=last, filterPattern="follow", interleaved=True):
        if event["timestamp"] == last and event["eventId"] in at_last:
            continue
        if event["timestamp"] > last:
            last, at_last = event["timestamp"], set()
        at_last.add(event["eventId"])
        followed.append(event["message"])
assert followed == ["follow 0", "follow 1", "follow 2"], followed

# Live tail. The endpoint has one name: the caller sets AWS_DISABLE_HOST_PREFIX_INJECTION, so that `stream-`
# is not put before it.
response = logs.start_live_tail(logGroupIdentifiers=[ARN], logEventFilterPattern="ERROR")
live = []
for event in response["responseStream"]:
    if "sessionStart" in event:
        assert event["sessionStart"]["logGroupIdentifiers"] == [ARN], event
        threading.Thread(target=put, args=("web/2", "fine", "live ERROR")).start()
    else:
        live += [e["message"] for e in event["sessionUpdate"]["sessionResults"]]
        assert event["sessionUpdate"]["sessionMetadata"] == {"sampled": False}, event
        if live:
            break
response["responseStream"].close()
assert live == ["live ERROR"], live
refused("ResourceNotFoundException", logs.start_live_tail, logGroupIdentifiers=[ARN + "x"])

logs.delete_log_stream(logGroupName=GROUP, logStreamName="db/1")
refused("ResourceNotFoundException", logs.delete_log_stream, logGroupName=GROUP, logStreamName="db/1")
logs.delete_log_group(logGroupName=GROUP)
refused("ResourceNotFoundException", logs.filter_log_events, logGroupName=GROUP)
