#!/usr/bin/env python3
"""Runs a command where KVM runs Linux: on this machine if it does, else in the emulated host.

    kvm_host.py --cache DIR --coracle FILE [--lean PACKAGE] [--put FILE ...] COMMAND

The shell command finds in its environment
    FILES              a directory with the files of --put, `coracle`, and `image`, an OCI layout with busybox
    CORACLE_STATE_DIR  a state directory in which the guest kernels are installed
    EMULATED           set in the emulated host, whose clock means nothing
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import machine
import packages

sys.path.insert(0, str(machine.HERE.parent / "bench"))
import images  # noqa: E402

# Where things are in the emulated host.
FILES, STATE = "/files", "/state/coracle"
LIMIT = 1200


def arguments_of(command_line):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="the emulated host's")
    parser.add_argument("--coracle", type=pathlib.Path, required=True)
    parser.add_argument("--lean", type=pathlib.Path, metavar="PACKAGE", help="the lean kernel, beside Debian's")
    parser.add_argument("--put", type=pathlib.Path, action="append", default=[], metavar="FILE")
    parser.add_argument("command", metavar="COMMAND")
    return parser.parse_args(command_line)


def runs_linux(coracle):
    answer = subprocess.run([coracle, "doctor", "--output", "json"], capture_output=True, text=True).stdout
    return bool(json.loads(answer)["kvm_runs_guest_code"])


def gather(arguments, files, state):
    """Files and installed kernels. Decompressing a kernel would take half a minute in the emulated host."""
    for source in (arguments.coracle, *arguments.put):
        if source.read_bytes()[:4] == b"\x7fELF":
            packages.run("strip", "-o", str(files / source.name), str(source))
        else:
            packages.run("cp", str(source), str(files / source.name))
    images.busybox(files / "image")
    for package in filter(None, (packages.cloud_kernel(arguments.cache).archive, arguments.lean)):
        packages.run(str(arguments.coracle), "--state-dir", str(state), "kernel", "install", str(package),
                     stdout=subprocess.DEVNULL)


def main(command_line=None):
    arguments = arguments_of(command_line)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="coracle-kvm-", dir="/var/tmp") as work:
        files, state = pathlib.Path(work, "files"), pathlib.Path(work, "state")
        files.mkdir()
        gather(arguments, files, state)
        if runs_linux(arguments.coracle):
            environment = os.environ | {"FILES": str(files), "CORACLE_STATE_DIR": str(state)}
            return subprocess.run(["sh", "-c", arguments.command], env=environment).returncode
        print("the KVM of this machine does not run Linux: this goes to the emulated host", flush=True)
        places = {state: STATE} | {file: f"{FILES}/{file.name}" for file in files.iterdir()}
        command = f"export EMULATED=1 FILES={FILES} CORACLE_STATE_DIR={STATE}; {arguments.command}"
        return machine.main([
            "--cache", str(arguments.cache), "--kvm", "--limit", str(LIMIT), "--run", command,
            "--append", "loglevel=3",  # nothing of what KVM says of its guests
            *(word for source, target in places.items() for word in ("--file", f"{source}={target}"))])


if __name__ == "__main__":
    sys.exit(main())
