#!/usr/bin/env python3
"""Coracle's speed beside `docker run` and `runc run`, in one run (`make bench`).

Everything is measured the same way on all sides: a container prints the time as its first act, and
what counts is that time minus the time just before the request. The peers are left out, and said to
be, where they are not installed.
"""

import argparse
import contextlib
import json
import mmap
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import boto3

import images
import peers

CORACLE = os.environ.get("CORACLE", "target/release/coracle")
ROLE = "arn:aws:iam::000000000000:role/bench"


@contextlib.contextmanager
def server(directory, *flags):
    """A Coracle on a free port of loopback; ended by its pid."""
    port = peers.free_port()
    log = open(directory / "coracle.log", "wb")
    process = subprocess.Popen(
        [CORACLE, "up", "--state-dir", str(directory / "state"), "--listen", f"127.0.0.1:{port}", "--ephemeral", *flags],
        stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        if "is ready at" not in line:
            raise SystemExit(f"coracle did not start: {(directory / 'coracle.log').read_text()[-2000:]}")
        env = json.loads(subprocess.check_output(
            [CORACLE, "--state-dir", str(directory / "state"), "--output", "json", "env"]))
        yield Server(env, process, directory)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
        log.close()


class Server:
    def __init__(self, env, process, directory):
        self.env, self.process, self.directory = env, process, directory
        self.registry = env["CORACLE_REGISTRY"]
        keys = dict(
            endpoint_url=env["AWS_ENDPOINT_URL"], region_name=env["AWS_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"], aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"])
        self.ecs, self.logs, self.ecr = (boto3.client(name, **keys) for name in ("ecs", "logs", "ecr"))
        self.network = {"awsvpcConfiguration": {"subnets": [env["CORACLE_SUBNET"]]}}

    def define(self, family, image, command, cpu="256", memory="512"):
        log = {"logDriver": "awslogs", "options": {
            "awslogs-group": f"/bench/{family}", "awslogs-region": self.env["AWS_REGION"],
            "awslogs-stream-prefix": "b", "awslogs-create-group": "true"}}
        definition = self.ecs.register_task_definition(
            family=family, requiresCompatibilities=["FARGATE"], networkMode="awsvpc", cpu=cpu, memory=memory,
            executionRoleArn=ROLE,
            containerDefinitions=[{"name": "main", "image": image, "command": command, "logConfiguration": log}])
        return definition["taskDefinition"]["taskDefinitionArn"]

    def run(self, definition, count=1):
        answer = self.ecs.run_task(
            taskDefinition=definition, count=count, launchType="FARGATE", networkConfiguration=self.network)
        if answer["failures"]:
            raise SystemExit(f"RunTask failed: {answer['failures']}")
        return [task["taskArn"] for task in answer["tasks"]]

    def describe(self, arns):
        found = []
        for start in range(0, len(arns), 100):
            found += self.ecs.describe_tasks(tasks=arns[start:start + 100])["tasks"]
        return found

    def until(self, arns, status, deadline=120, pause=0.005):
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            tasks = self.describe(arns)
            failed = [t for t in tasks if t["lastStatus"] == "STOPPED" and status == "RUNNING"]
            if failed:
                raise SystemExit(f"a task stopped: {failed[0].get('stoppedReason')} {failed[0]['containers']}")
            if all(t["lastStatus"] == status for t in tasks):
                return tasks
            time.sleep(pause)
        raise SystemExit(f"not all tasks became {status} within {deadline} s")

    def stop(self, arns):
        for arn in arns:
            self.ecs.stop_task(task=arn)
        self.until(arns, "STOPPED")

    def first_line(self, family, arn):
        stream = f"b/main/{arn.rsplit('/', 1)[-1]}"
        events = self.logs.get_log_events(
            logGroupName=f"/bench/{family}", logStreamName=stream, startFromHead=True)["events"]
        return events[0]["message"]


def start_latency(server, image, rounds):
    """(a) From the RunTask call to the process's first act, in ms."""
    definition = server.define("start", image, ["/bin/now"])
    samples = []
    for index in range(rounds + 3):
        before = time.time_ns()
        arns = server.run(definition)
        server.until(arns, "STOPPED")
        if index >= 3:  # the first ones warm up the server's connections and caches
            samples.append((int(server.first_line("start", arns[0])) - before) / 1e6)
    return samples


def hundred_tasks(server, image):
    """(b) Seconds until 100 tasks, asked for by ten calls of ten, are RUNNING."""
    definition = server.define("hundred", image, ["sleep", "100000"])
    server.until(server.run(definition), "RUNNING")
    before = time.monotonic()
    arns = [arn for _ in range(10) for arn in server.run(definition, 10)]
    server.until(arns, "RUNNING")
    return time.monotonic() - before, arns


def memory_per_task(server, tasks):
    """(c) MiB of resident memory per idle task beside its containers: the supervisor's share, and
    what the server itself grew by is within it as the proportional part of shared pages."""
    state = str(server.directory / "state")
    shares = []
    for directory in pathlib.Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                command = (directory / "cmdline").read_bytes().split(b"\0")
                if b"sandbox" in command and any(state.encode() in part for part in command):
                    smaps = (directory / "smaps_rollup").read_text()
                    shares.append((int(re.search(r"^Pss:\s+(\d+)", smaps, re.M)[1]) / 1024,
                                   int(re.search(r"^Rss:\s+(\d+)", smaps, re.M)[1]) / 1024))
    return statistics.mean(s[0] for s in shares), statistics.mean(s[1] for s in shares), len(shares)


def server_rss(server):
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+)", status, re.M)[1]) / 1024


def pull(server, image):
    """(d) Seconds from just before the RunTask call to the end of the pull, as DescribeTasks tells it."""
    definition = server.define("pull", image, ["true"])
    before = time.time()
    arns = server.run(definition)
    # Looked at seldom: the others have nobody beside them who asks how far they are.
    task = server.until(arns, "STOPPED", pause=0.2)[0]
    if "pullStoppedAt" not in task:
        raise SystemExit(f"the pull failed: {task.get('stoppedReason')}")
    return task["pullStoppedAt"].timestamp() - before


def fresh_memory():
    """The same start for every pull: nothing to be written back, and a GiB of free memory that is
    really there. (On a virtual machine whose free memory goes back to its host, the first touch of
    each page costs more than all that is done with it.)"""
    os.sync()
    mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def pulls(coracle, docker, work, registry, data, rounds):
    """Seconds by tool, in turns: what else the machine does falls on all alike. Nothing that was
    pulled is removed before the end, or the next one would get its memory and its inodes."""
    tools = {
        "coracle (verified, unpacked, as a task)": lambda image, _: pull(coracle, image),
        "skopeo copy to a store (unpacked)": lambda image, round: peers.skopeo_copy(
            image, peers.engines_store(work, f"{data}-{round}")),
        "skopeo copy to an OCI layout (not unpacked)": lambda image, round: peers.skopeo_copy(
            image, f"oci:{work}/{data}-{round}:latest"),
        "docker pull (unpacked)": lambda image, _: docker and docker.pull(image),
    }
    samples = {name: [] for name in tools}
    for round, image in enumerate(peers.copies(work / data, registry, rounds, data)):
        for name in sorted(tools, key=lambda name: (list(tools).index(name) + round) % len(tools)):
            fresh_memory()
            samples[name].append(tools[name](image, round))
    return samples


def row(name, *cells):
    print(f"{name:<44}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def percentiles(samples):
    ordered = sorted(samples)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="starts measured on each side")
    parser.add_argument("--only", choices=["start", "hundred", "pull"], help="one part only")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("bench: run as root")
    work = pathlib.Path(tempfile.mkdtemp(prefix="coracle-bench-"))
    try:
        measure(arguments, work)
    finally:
        peers.leave_engines_store(work)
        shutil.rmtree(work, ignore_errors=True)


def measure(arguments, work):
    source = pathlib.Path(__file__).with_name("now.c")
    subprocess.run(["cc", "-O2", "-static", "-o", str(work / "now"), str(source)], check=True)
    busybox = images.busybox(work / "busybox", [work / "now"])
    print(f"machine: {os.cpu_count()} CPUs, Linux {os.uname().release}, load {os.getloadavg()[0]:.1f}\n")
    wanted = lambda part: arguments.only in (None, part)
    with server(work) as coracle, peers.docker(work) as docker:
        small = f"{coracle.registry}/busybox:latest"
        peers.push(busybox, small, coracle.env)
        if wanted("start"):
            row("(a) request to first act, cached busybox", "p50 ms", "p99 ms", "ratio p50")
            ours = percentiles(start_latency(coracle, small, arguments.rounds))
            row("coracle RunTask (API, network, logs)", f"{ours[0]:.1f}", f"{ours[1]:.1f}", "1.0")
            for name, samples in (
                ("runc run (a bundle, nothing else)", peers.runc_starts(work, busybox, arguments.rounds)),
                ("docker run", docker and docker.starts(busybox, arguments.rounds)),
            ):
                if samples:
                    p50, p99 = percentiles(samples)
                    row(name, f"{p50:.1f}", f"{p99:.1f}", f"{p50 / ours[0]:.1f}")
                else:
                    row(name, "not installed")
            print()
        if wanted("hundred"):
            row("(b) 100 tasks by ten calls of ten", "s")
            idle = server_rss(coracle)
            seconds, arns = hundred_tasks(coracle, small)
            row("until all are RUNNING", f"{seconds:.2f}")
            pss, rss, count = memory_per_task(coracle, arns)
            grown = (server_rss(coracle) - idle) / len(arns)
            row("(c) memory per idle task beside its own", "MiB")
            row(f"supervisor, proportional ({count} of them)", f"{pss:.2f}")
            row("supervisor, resident with shared pages", f"{rss:.2f}")
            row("growth of the server", f"{grown:.2f}")
            coracle.stop(arns)
            print()
        if wanted("pull"):
            with peers.foreign_registry(work) as registry:
                for data in images.DATA:
                    row(f"(d) pull of 200 MB in 8 layers, {data}", "median s", "best s", "ratio")
                    samples = pulls(coracle, docker, work, registry, data, 5)
                    ours = statistics.median(next(iter(samples.values())))
                    for name, seconds in samples.items():
                        if None in seconds:
                            row(name, "not installed")
                        else:
                            median = statistics.median(seconds)
                            row(name, f"{median:.2f}", f"{min(seconds):.2f}", f"{median / ours:.1f}")
                    print()


if __name__ == "__main__":
    sys.exit(main())
