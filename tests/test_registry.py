"""Images by all their names, from the built-in registry and a foreign one."""

import contextlib
import http.client
import os
import signal
import subprocess

import host
import oci_image
import pytest
from host import REMOTE
from server import clean_environment, free_port, until


def answers(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    except OSError:
        return False


def reachable(port):
    """While it lasts, the server's host finds this one's port on its own loopback."""
    if not REMOTE:
        return contextlib.nullcontext()
    return host.running("nc", "-ll", "-p", str(port), "-e", "nc", REMOTE["OUTSIDE"], str(port))


@pytest.fixture
def foreign(tmp_path):
    """Debian's docker-registry on loopback: its port and process."""
    port = free_port()
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {tmp_path}/data\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        until(lambda: answers(port), "the foreign registry", timeout=15)
        with reachable(port):
            yield port, process
    finally:
        process.kill()
        process.wait(10)


def skopeo(*arguments):
    done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, env=clean_environment(), timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def push_with_skopeo(tasks, image, name, directory):
    user, password = tasks.registry_credentials().split(":", 1)
    image.write_layout(directory, "x")
    target = f"docker://{tasks.server.registry}/{name}"
    skopeo("copy", "--insecure-policy", "--dest-tls-verify=false", f"--dest-creds={user}:{password}", f"oci:{directory}:x", target)


def test_push_and_run(tasks, tmp_path):
    image = oci_image.build(Cmd=["sh", "-c", "echo from the image as $(id -un); pwd"], User="app", WorkingDir="/opt")
    push_with_skopeo(tasks, image, "team/pushed:v1", tmp_path / "layout")
    registry, account, region = tasks.server.registry, tasks.server.account, tasks.server.region
    for reference in (
        f"{registry}/team/pushed:v1",
        f"{registry}/team/pushed@{image.digest}",
        f"{account}.dkr.ecr.{region}.amazonaws.com/team/pushed:v1",
        f"{account}.dkr.ecr.{region}.amazonaws.com/team/pushed@{image.digest}",
    ):
        ended = tasks.run_to_end(tasks.container(image=reference))
        assert ended.lines == ["from the image as app", "/opt"], (reference, ended.lines, ended.container, ended.task["stoppedReason"])
        assert ended.container["imageDigest"] == image.digest
        assert ended.container["image"] == reference
    ecr = tasks.server.client("ecr")
    assert [r["repositoryName"] for r in ecr.describe_repositories(repositoryNames=["team/pushed"])["repositories"]]
    assert ecr.list_images(repositoryName="team/pushed")["imageIds"] == [{"imageDigest": image.digest, "imageTag": "v1"}]
    details = ecr.describe_images(repositoryName="team/pushed")["imageDetails"][0]
    assert details["imageTags"] == ["v1"]


def test_push_needs_the_token(tasks):
    registry = tasks.server.registry
    for credentials in (None, "AWS:wrong", "root:" + tasks.registry_credentials().split(":", 1)[1][:10]):
        with pytest.raises(AssertionError, match=r": 401 "):
            oci_image.push(oci_image.build(), registry, "secret", "x", credentials)
    with pytest.raises(tasks.server.client("ecr").exceptions.RepositoryNotFoundException):
        tasks.server.client("ecr").describe_repositories(repositoryNames=["secret"])


def test_tag_moves(tasks):
    for word in ("one", "two"):
        reference = tasks.push(oci_image.build(Cmd=["echo", word]), "moving", "latest")
        assert tasks.run_to_end(tasks.container(image=reference)).lines == [word]


def test_deleted_image(tasks):
    image = oci_image.build(Cmd=["echo", "deleted"], Labels={"only": "here"})
    reference = tasks.push(image, "deleted", "v1")
    ecr = tasks.server.client("ecr")
    ecr.batch_delete_image(repositoryName="deleted", imageIds=[{"imageTag": "v1"}])
    ended = tasks.run_to_end(tasks.container(image=reference))
    assert ended.task["stopCode"] == "TaskFailedToStart" and "CannotPullContainerError" in ended.task["stoppedReason"]


def test_foreign_registry(tasks, foreign):
    port, process = foreign
    image = oci_image.build(Cmd=["echo", "from afar"])
    reference = oci_image.push(image, f"127.0.0.1:{port}", "some/where", "v1")
    container = tasks.container(image=reference)
    ended = tasks.run_to_end(container)
    assert ended.lines == ["from afar"] and ended.container["imageDigest"] == image.digest
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    assert tasks.run_to_end(container).lines == ["from afar"], "cached images need no registry"
    missing = tasks.run_to_end(tasks.container(image=reference.replace("v1", "v2")))
    assert "CannotPullContainerError" in missing.task["stoppedReason"]


def test_damaged_layers(tasks, foreign, tmp_path):
    """A registry that serves something else than it promised."""
    port, _ = foreign
    image = oci_image.build([(oci_image.base_layer(), ""), (oci_image.Tar().add("marker", os.urandom(2000)).done(), "")])
    reference = oci_image.push(image, f"127.0.0.1:{port}", "damaged", "v1")
    layer = list(image.blobs)[1].removeprefix("sha256:")
    stored = next((tmp_path / "data").rglob(f"{layer}/data"))
    good = stored.read_bytes()
    truncated, changed = good[:-700], good[:600] + bytes([good[600] ^ 1]) + good[601:]
    for bad, said in ((truncated, "unexpected EOF"), (changed, f"expected digest sha256:{layer}")):
        stored.write_bytes(bad)
        ended = tasks.run_to_end(tasks.container("true", image=reference), timeout=90)
        assert ended.task["stoppedReason"].startswith("CannotPullContainerError: "), ended.task
        assert said in ended.task["stoppedReason"], ended.task
    stored.write_bytes(good)
    assert tasks.run_to_end(tasks.container("ls /marker", image=reference)).lines == ["/marker"]
