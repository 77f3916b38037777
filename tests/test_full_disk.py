"""The file system of the state is full: clear errors, nothing lost, and on it goes when there is room again."""

import os
import subprocess

import oci_image
import pytest
from botocore.exceptions import ClientError
from server import Server, leaks, until
from tasks import Tasks, unique

# Counts, and says how far it came when it is stopped.
COUNT = "trap 'echo end $i; exit 7' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"


@pytest.fixture
def small(tmp_path):
    """A server whose state is on a file system of its own, of little more than a gigabyte."""
    image, directory = tmp_path / "disk", tmp_path / "small"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(1200 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(directory)], check=True)
    running = Server(state_dir=directory / "state")
    try:
        yield running
    finally:
        (directory / "fill").unlink(missing_ok=True)
        running.destroy()
        until(lambda: not leaks(running.state_dir), lambda: f"left behind: {leaks(running.state_dir)}", timeout=10)
        subprocess.run(["umount", str(directory)], check=True)


def fill(directory):
    """Takes all the room there is, mostly without writing it."""
    with (directory / "fill").open("wb") as file:
        room = os.statvfs(directory)
        os.posix_fallocate(file.fileno(), 0, (room.f_bavail - 64) * room.f_frsize)
        with pytest.raises(OSError, match="No space left"):
            while True:
                os.write(file.fileno(), bytes(4096))
                os.lseek(file.fileno(), 0, os.SEEK_END)


def test_full_disk(small):
    tasks = Tasks(small.start())
    tasks.image = tasks.push(oci_image.build(), "busybox")
    arn = tasks.run(tasks.register(tasks.container(COUNT)))["taskArn"]
    tasks.wait_for_line(arn, "line 5")
    fill(small.state_dir.parent)

    def refused():
        try:
            # Room that was taken before is used up first.
            tasks.ecs.create_cluster(clusterName=unique("full"))
        except ClientError as error:
            return error
        return None

    error = until(refused, "a full disk", pause=0).response
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 500
    assert "no space left for its state" in error["Error"]["Message"], error
    with pytest.raises(AssertionError, match="disk is full"):
        tasks.push(oci_image.build([(os.urandom(1 << 20), "")]), "more")
    # What needs no room works.
    assert tasks.ecs.list_tasks()["taskArns"] == [arn]
    assert tasks.describe(arn)["lastStatus"] == "RUNNING"

    (small.state_dir.parent / "fill").unlink()
    tasks.ecs.create_cluster(clusterName="room")
    tasks.push(oci_image.build(), "more")
    assert tasks.run_to_end("echo again", timeout=60).lines == ["again"]
    tasks.stop(arn)
    ended = tasks.ended(arn)
    assert ended.exit_code == 7
    *lines, last = ended.lines
    assert lines == [f"line {i}" for i in range(1, len(lines) + 1)] and last == f"end {len(lines)}", ended.lines
    log = small.log.read_text()
    assert "panicked" not in log, small.tail(300)
    # It was told, now and then; and a file gets no colours.
    assert 0 < log.count(" WARN ") < 60 and "\x1b" not in log, small.tail(300)
