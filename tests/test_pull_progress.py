"""A pull shows how far it is: from a registry that goes on only when the test has seen it."""

import contextlib
import http.server
import os
import pty
import re
import subprocess
import threading
import urllib.error
import urllib.request

import oci_image
import pytest
from server import CORACLE, clean_environment, needs_own_host, until
from tasks import unique

pytestmark = needs_own_host

MIB = 1 << 20


class Stalling(http.server.ThreadingHTTPServer):
    """A registry on loopback that stops halfway into each blob of 1 MiB or more until `go_on` is set."""

    daemon_threads = True

    def __init__(self, image):
        super().__init__(("127.0.0.1", 0), Handler)
        self.image, self.go_on = image, threading.Event()
        self.name = f"localhost:{self.server_address[1]}/slow:latest"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.go_on.set()
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        kind, name = self.path.split("/")[-2:]
        image = self.server.image
        data = image.manifest if kind == "manifests" else image.blobs[name]
        self.send_response(200)
        self.send_header("Content-Type", oci_image.MANIFEST if kind == "manifests" else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        if kind == "manifests":
            self.send_header("Docker-Content-Digest", image.digest)
        self.end_headers()
        if head:
            return
        half = len(data) // 2
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[:half])
            if len(data) >= MIB:
                self.server.go_on.wait(60)
            self.wfile.write(data[half:])

    def log_message(self, *_):
        pass


@pytest.fixture
def stalling():
    """Of an image that no server has seen."""
    fresh = oci_image.Tar().add("fresh", os.urandom(8 * MIB)).done()
    with Stalling(oci_image.build([(oci_image.base_layer(), "gzip"), (fresh, "")])) as registry:
        yield registry


@contextlib.contextmanager
def running(server, image, *options, stderr):
    process = subprocess.Popen(
        [CORACLE, "--state-dir", str(server.state_dir), "run", *options, image, "echo", "hello"],
        stdout=subprocess.PIPE, stderr=stderr, text=True, env=clean_environment(TERM="xterm"),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_lines_for_programs(server, stalling, tmp_path):
    said = tmp_path / "stderr"
    with said.open("wb") as stderr, running(server, stalling.name, stderr=stderr) as process:
        # The small layer is there, and half of the large one.
        seen = until(lambda: re.search(r"pulled (\d+)% \(.*MiB of .*MiB, (\d) of 2 layers\)", said.read_text()), said.read_text)
        assert int(seen[1]) < 100
        until(lambda: re.search(r"pulled [45]0% ", said.read_text()), said.read_text)
        assert "pulled 60%" not in said.read_text()
        stalling.go_on.set()
        assert process.communicate(timeout=60)[0] == "hello\n"
        assert process.returncode == 0, said.read_text()


def test_a_bar_on_a_terminal(server, stalling):
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "cols", "100"], stdin=theirs, check=True)
    shown = bytearray()

    def read():
        with contextlib.suppress(OSError):
            while data := os.read(ours, 65536):
                shown.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        with running(server, stalling.name, stderr=theirs) as process:
            os.close(theirs)
            text = lambda: shown.decode(errors="replace")
            until(lambda: re.search(r"pulling, layer \d/2 .*[█#].* 4\.\d+ MiB/\d+\.\d+ MiB", text()), lambda: repr(text()[-2000:]))
            assert process.poll() is None
            stalling.go_on.set()
            assert process.communicate(timeout=60)[0] == "hello\n"
            assert process.returncode == 0, text()
    finally:
        reader.join(10)
        os.close(ours)


def test_progress_is_not_for_strangers(server, stalling):
    with running(server, stalling.name, "--name", family := unique(), stderr=subprocess.DEVNULL) as process:
        ecs = server.client("ecs")
        arn = until(lambda: ecs.list_tasks(desiredStatus="RUNNING", family=family)["taskArns"], "the task")[0]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/_coracle/tasks/{arn.rsplit('/', 1)[-1]}/pulls", timeout=10)
        assert refused.value.code == 403
        stalling.go_on.set()
        assert process.communicate(timeout=60)[0] == "hello\n"
