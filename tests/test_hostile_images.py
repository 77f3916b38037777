"""Images that try to get out of their directory, or to fill the host: refused by name, and nothing else happens."""

import gzip
import tarfile

import host
import oci_image
import pytest
from oci_image import Tar
from server import Server
from tasks import Tasks

# Each with a file that it would make on the host, if it could: VICTIM stands for a directory there.
HOSTILE = {
    "device": (Tar().add("dev/sda", kind=tarfile.BLKTYPE), "device nodes are not allowed"),
    "dot-dot": (Tar().add("../../evil", b"evil"), "`..` component"),
    "dot-dot-below": (Tar().add("opt/../../../evil", b"evil"), "`..` component"),
    "absolute-dot-dot": (Tar().add("/../../../evil", b"evil"), "`..` component"),
    "whiteout": (Tar().add("../../../.wh.victim"), "`..` component"),
    "hard-link-out": (Tar().link("evil", "../../../../../../etc/passwd"), "`..` component"),
    "hard-link-absolute": (Tar().link("evil", "/etc/shadow"), "not in the layer"),
    "hard-link-by-symlink": (Tar().symlink("s", "/etc").link("evil", "s/passwd"), "symlink"),
    "symlink": (("VICTIM", "out/evil"), "leaves the layer through a symlink"),
    "symlink-by-proc": (Tar().symlink("out", "/proc/1/root/tmp").add("out/evil", b"evil"), "symlink"),
}


@pytest.fixture
def victim(server):
    """A directory on the host with a file, which must stay as it is."""
    directory = server.base / "victim"
    directory.mkdir(exist_ok=True)
    (directory / "file").write_text("untouched")
    yield directory
    assert [path.name for path in directory.iterdir()] == ["file"]
    assert (directory / "file").read_text() == "untouched"


def refused(tasks, reference, *words):
    ended = tasks.run_to_end(tasks.container("true", image=reference))
    assert ended.task["stopCode"] == "TaskFailedToStart" and "exitCode" not in ended.container, ended.task
    for reason in (ended.task["stoppedReason"], ended.container["reason"]):
        assert reason.startswith("CannotPullContainerError: "), reason
        assert all(word in reason for word in words), reason


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_layer(tasks, victim, name):
    layer, why = HOSTILE[name]
    if isinstance(layer, tuple):
        layer = Tar().symlink("out", str(victim)).add(layer[1], b"evil")
    image = oci_image.build([(oci_image.base_layer(), "gzip"), (layer.done(), "gzip")])
    refused(tasks, tasks.push(image, "hostile", name), why, "failed to extract layer")
    left = host.find(tasks.server.base, "evil", "sda")
    assert not left, left
    assert tasks.run_to_end("echo next").lines == ["next"]


def test_absolute_paths_are_below_the_root(tasks):
    """As every unpacker takes them."""
    image = oci_image.build([(oci_image.base_layer(), "gzip"), (Tar().add("/made/here", b"x").done(), "gzip")])
    ended = tasks.run_to_end(tasks.container("ls /made", image=tasks.push(image, "hostile", "absolute")))
    assert ended.lines == ["here"]


def bomb(size):
    """A gzip of a file of zeros, a thousand times smaller than what comes out of it."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    piece = 64 << 20
    zeros = gzip.compress(bytes(piece), 6)
    return gzip.compress(info.tobuf(tarfile.PAX_FORMAT)) + zeros * (size // piece) + gzip.compress(bytes(1024))


def test_decompression_bomb():
    """What is larger than the disk that images may have ends early."""
    server = Server(ephemeral=True, arguments=["--image-disk-gib", "1", "--ready-sandboxes", "1"])
    try:
        tasks = Tasks(server.start())
        tasks.image = tasks.push(oci_image.build(), "busybox")
        layer = bomb(2 << 30)
        assert len(layer) < 4 << 20
        image = oci_image.build([(oci_image.base_layer(), "gzip"), (b"", layer)])
        refused(tasks, tasks.push(image, "bomb"), "over the limit of 1073741824 bytes")
        kept = sum(path.lstat().st_size for path in (server.state_dir / "agent/images").rglob("*"))
        assert kept < 64 << 20, "what was unpacked is gone"
        assert tasks.run_to_end("echo next").lines == ["next"]
        assert server.stop() == 0
    finally:
        server.destroy()
