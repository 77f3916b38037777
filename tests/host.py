"""The host that servers run on: this machine, or the emulated host, where a shell listens for us
(emulated-host/machine.py --serve). What tests look at or do beside a server, they do through this."""

import contextlib
import json
import os
import pathlib
import shlex
import socket
import subprocess

# What `coracle env --output json` says of a server on another host, with `SHELL_PORT`, where its shell listens here,
# and `OWN_PORTS`, which servers of tests may have.
REMOTE = json.loads(os.environ.get("CORACLE_E2E_REMOTE", "null"))
# How many times longer things may take: there, every instruction is emulated.
PATIENCE = 6 if REMOTE else 1
_STATUS = "\nexit status "


def sh(script, check=True):
    """What a shell script on the server's host says on standard output, and its exit status."""
    if REMOTE:
        status, output = _sh_there(script)
    else:
        done = subprocess.run(["sh"], input=script, stdout=subprocess.PIPE, text=True, check=False)
        status, output = done.returncode, done.stdout
    assert not check or status == 0, (script, status, output)
    return status, output


def _sh_there(script):
    with socket.create_connection(("127.0.0.1", REMOTE["SHELL_PORT"]), timeout=120) as connection:
        # The shell reads its script from the connection, which is nothing for the script's commands to read.
        connection.sendall(f"(\n{script}\n) </dev/null\nprintf '%s%d' '{_STATUS}' $?\nexit\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode(errors="replace")
    output, _, status = answer.rpartition(_STATUS)
    assert status.isdigit(), f"the shell on the emulated host gave up: {answer}"
    return int(status), output


class _There(pathlib.PurePosixPath):
    """A path on the emulated host, with what tests use of `pathlib.Path`."""

    __slots__ = ()

    def _sh(self, command, *more, check=True):
        return sh(" ".join([command, shlex.quote(str(self)), *more]), check)

    def read_text(self, errors=None):
        return self._sh("cat")[1]

    def write_text(self, text):
        self._sh(f"printf %s {shlex.quote(text)} >")

    def exists(self):
        return self._sh("test -e", check=False)[0] == 0

    def mkdir(self, exist_ok=False):
        self._sh("mkdir -p" if exist_ok else "mkdir")

    def touch(self):
        self._sh("touch")

    def iterdir(self):
        return [self / name for name in self._sh("ls -A")[1].split("\n") if name]

    def glob(self, pattern):
        # Unquoted, for the shell to expand it.
        found = sh(f"cd {shlex.quote(str(self))} && ls -d {pattern} 2>/dev/null", check=False)[1]
        return [self / name for name in found.split("\n") if name]


def path(text):
    """A path on the server's host."""
    return _There(text) if REMOTE else pathlib.Path(text)


def remove_tree(directory):
    sh(f"rm -rf {shlex.quote(str(directory))}")


def find(directory, *names):
    """The paths of everything below a directory that has one of these names."""
    named = " -o ".join(f"-name {shlex.quote(name)}" for name in names)
    # What goes away meanwhile is none of ours.
    return sh(f"find {shlex.quote(str(directory))} {named} 2>/dev/null", check=False)[1].splitlines()


@contextlib.contextmanager
def running(*command):
    """A program in the background there, for as long as the block lasts."""
    pid = sh(f"{shlex.join(command)} >/dev/null 2>&1 & echo $!")[1].strip()
    try:
        yield
    finally:
        sh(f"kill {pid}", check=False)
