"""`make demo`'s script, from start to end, and interrupted."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest
from server import clean_environment, until

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def directory():
    # Not pytest's own: below it, a sandbox's socket would have a longer path than sockets can.
    with tempfile.TemporaryDirectory(prefix="demo-") as path:
        yield pathlib.Path(path)


def demo(directory, keep=""):
    output = open(directory / "output", "wb")
    environment = os.environ | {"PYTHON": sys.executable, "TMPDIR": str(directory), "KEEP": keep}
    # In a session of its own, so that a signal to all of it reaches no other.
    return subprocess.Popen(
        [ROOT / "scripts/demo"], env=environment, stdout=output, stderr=output, start_new_session=True,
        # A shell that runs the tests in the background has it ignored, and the demo could not trap it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def test_demo_runs_and_leaves_nothing(directory):
    process = demo(directory)
    status = process.wait(timeout=300)
    text = (directory / "output").read_text()
    assert status == 0, text
    assert 'through the shared volume: {"visits": 3}' in text
    assert "Nothing is left of it" in text
    assert list(directory.iterdir()) == [directory / "output"]


def test_demo_that_is_interrupted_leaves_nothing(directory):
    process = demo(directory)
    text = lambda: (directory / "output").read_text()
    until(lambda: "ACTIVATING" in text() or process.poll() is not None, text, timeout=120)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130, text()
    assert list(directory.iterdir()) == [directory / "output"]


def test_demo_that_is_kept(directory):
    """What it prints at the end is typed by people."""
    process = demo(directory, keep="1")
    status = process.wait(timeout=300)
    text = (directory / "output").read_text()
    end = []
    try:
        assert status == 0, text
        how, end = (part.splitlines()[1:] for part in text.split("To go on:")[1].split("To stop it"))
        shown = typed("; ".join(line for line in how if line))
        assert ":task/default/" in shown and "worker: 3 visits" in shown
        page = next(line.split()[-1] for line in text.splitlines() if "the application  " in line)
        assert "Visits" in typed(f"curl -fsS {page}")
    finally:
        if end:
            typed(end[0])
        elif process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=120)
    assert list(directory.iterdir()) == [directory / "output"]


def typed(commands):
    environment = clean_environment(AWS_DEFAULT_OUTPUT="text", AWS_CONFIG_FILE="/dev/null")
    done = subprocess.run(["bash", "-ec", commands], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (commands, done)
    return done.stdout
