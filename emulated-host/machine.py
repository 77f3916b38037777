#!/usr/bin/env python3
"""Makes the emulated host and runs tests or a command in it; see README.md.

    machine.py --cache DIR --coracle FILE [--test-binary FILE ...]
        the tests of pure cgroup v2
    machine.py --cache DIR --kvm [--coracle FILE] [--test-binary FILE ...] [--file HOST=GUEST ...]
        the tests of microVMs, on a host with KVM
    machine.py --cache DIR --kvm --coracle FILE --serve PYTEST-ARGUMENTS...
        the end-to-end tests outside, against a server inside that gives each task a microVM
    machine.py --cache DIR [--kvm] --run COMMAND [--file HOST=GUEST ...]
        a command; its exit code is this program's
"""

import argparse
import contextlib
import json
import os
import pathlib
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import guest_kernel
import packages

HERE = pathlib.Path(__file__).resolve().parent
MODULES = [
    "virtio_pci", "virtio_blk", "loop", "overlay", "veth", "tun", "nf_tables", "nf_conntrack", "nf_nat",
    "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat", "nft_reject_inet", "nft_reject_ipv4", "nft_fib_inet",
    "nft_fib_ipv4", "nft_limit", "nft_log", "nft_hash", "nft_numgen", "nft_objref", "nft_redir",
    "virtio_net",
]
# AMD-V, which QEMU can emulate, without what it cannot and would warn of.
KVM_PROCESSOR = "EPYC,+svm," + ",".join("-" + feature for feature in (
    "rdseed", "sha-ni", "fxsr-opt", "misalignsse", "3dnowprefetch", "osvw", "topoext", "nrip-save", "xsavec"))
KVM_MODULES = ["irqbypass", "ccp", "kvm", "kvm_amd", "erofs"]
PROGRAMS = ["/usr/sbin/nft", "/usr/sbin/mkfs.ext4", "/usr/bin/ip"]
FILES = ["/etc/mke2fs.conf"]
DISK_BYTES = 64 << 30
RESULTS_BYTES = 1 << 30
# What the tests outside may connect to: the server, what ends it, a shell, and servers of the tests' own.
PORTS = 5
# For those servers; a processor of the emulated host does for many tasks.
SERVER_ARGUMENTS = "--cpu-overcommit 64 --memory-overcommit 16"
# Where QEMU has this machine's loopback in the emulated host's network.
OUTSIDE = "10.0.2.2"
# What `guest/init` says every 20 s, and how long it may say nothing, in seconds.
HEARTBEAT = "HEARTBEAT"
SILENCE = 75
# How often the machine gets a byte from its serial port, in seconds. QEMU may lose an interrupt that comes while a
# guest is left (target/i386/tcg/sysemu/svm_helper.c clears a bit of `interrupt_request` without its lock), and a
# machine that waits for that one is woken by any other.
POKE = 1
# The machine's own kernel, not a guest's, whose words tests show indented.
CRASH = re.compile(r"\[ *\d+\.\d+\] (Kernel panic|BUG: TASK stack guard page|watchdog: BUG: soft lockup .* for \d{3,}s)")
# How often the machine may break.
ATTEMPTS = 6
# KVM's remark on a performance counter that a guest's kernel tries once.
NOISE = re.compile(r"Unhandled WRMSR\(0xc0010007\)")
# What the kernel needs to get to its disk.
EARLY_MODULES = ["virtio_pci", "virtio_blk"]
DIRECTORIES = ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root",
               "state", "tests", "results")


def libraries(program):
    """The shared libraries of a program, the loader among them."""
    answer = subprocess.run(["ldd", program], capture_output=True, text=True)
    return re.findall(r"(/\S+)(?= \(0x)", answer.stdout) if answer.returncode == 0 else []


class Tree:
    """A root file system being put together in a directory."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.root.mkdir(parents=True, exist_ok=True)

    def path(self, target):
        path = self.root / str(target).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def copy(self, source, target=None, strip=False):
        path = self.path(target or source)
        if strip:
            packages.run("strip", "-o", str(path), str(source))
        else:
            shutil.copy(os.path.realpath(source), path)
        return path

    def program(self, source, target=None, strip=False):
        for library in libraries(str(source)):
            if not (self.root / library.lstrip("/")).exists():
                self.copy(library)
        os.chmod(self.copy(source, target, strip), 0o755)

    def add(self, source, target):
        """A file, program or directory from the outside."""
        if os.path.isdir(source):
            shutil.copytree(source, self.path(target), symlinks=True, dirs_exist_ok=True)
        elif os.access(source, os.X_OK):
            self.program(source, target)
        else:
            self.copy(source, target)

    def modules(self, kernel, names):
        for module in kernel.modules(names):
            self.copy(kernel.module_base / module, f"/lib/modules/{kernel.release}/{module}")
        for index in ("modules.dep", "modules.alias", "modules.builtin"):
            if (kernel.module_base / index).exists():
                self.copy(kernel.module_base / index, f"/lib/modules/{kernel.release}/{index}")

    def cpio(self, target):
        names = "\n".join(sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*")))
        with open(target, "wb") as out:
            subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=names.encode(), stdout=out,
                           cwd=self.root, check=True)

    def disk(self, target):
        with open(target, "wb") as file:
            file.truncate(DISK_BYTES)
        packages.run("mkfs.ext4", "-q", "-F", "-d", str(self.root), "-E",
                     "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", str(target))


def early_tree(root, kernel):
    """The initramfs: what mounts the disk and goes on from it."""
    early = Tree(root)
    early.program("/usr/bin/busybox", "/bin/busybox")
    early.modules(kernel, EARLY_MODULES)
    os.chmod(early.copy(HERE / "guest/init", "/init"), 0o755)
    return early


def root_tree(root, kernel, arguments):
    """The disk: the programs, what is to be tested, and what is to be done with it."""
    host = Tree(root)
    for directory in DIRECTORIES:
        (host.root / directory).mkdir(parents=True, exist_ok=True)
    host.program("/usr/bin/busybox", "/bin/busybox")
    host.program("/usr/bin/busybox", "/usr/bin/busybox")  # what the benchmark's images are made from
    for program in PROGRAMS:
        host.program(program)
    for file in FILES:
        host.copy(file)
    if arguments.coracle:
        host.program(arguments.coracle, "/bin/coracle", strip=True)
        supervisor = pathlib.Path(arguments.coracle).with_name("coracle-supervisor")
        if supervisor.exists():  # a release carries it inside
            host.program(supervisor, "/bin/coracle-supervisor", strip=True)
        sys.path.insert(0, str(HERE.parent / "bench"))
        import images  # the benchmark's image maker: busybox as an OCI layout
        images.busybox(host.root / "image")
    for binary in arguments.test_binary:
        name = re.sub(r"-[0-9a-f]{16}$", "", pathlib.Path(binary).name)
        host.program(binary, f"/tests/{name}", strip=True)
    names = MODULES + (KVM_MODULES if arguments.kvm else [])
    host.modules(kernel, names)
    host.path("/modules").write_text(" ".join(names) + "\n")
    if arguments.kvm:
        guests = kernel
        if arguments.guest_kernel:
            guests = packages.kernel_in(arguments.guest_kernel, host.root.with_name("guest-kernel"))
        entries = guest_kernel.put(guests, host)
    for file in arguments.file:
        source, separator, target = file.partition("=")
        if not separator:
            raise SystemExit(f"--file {file}: not of the form HOST=GUEST")
        host.add(source, target)
    if (host.root / "guest/supervisor").exists():
        guest_kernel.put_supervisor(entries, host, packages.unpacked(arguments.cache, "erofs-utils"))
    host.path("/on-disk").touch()
    for name in ("init", "lib.sh"):
        os.chmod(host.copy(HERE / "guest" / name, f"/{name}"), 0o755)
    if arguments.serve is not None:
        # Here, as decompressing it takes half a minute there.
        packages.run(arguments.coracle, "--state-dir", str(host.root / "pristine"), "kernel", "install",
                     str(host.root / "guest/kernel.deb"))
        checks = "killed" if "own_server" in arguments.serve else "plain"
        host.path("/serve.settings").write_text(
            f"port={arguments.port}\narguments='{SERVER_ARGUMENTS}'\nchecks={checks}\n")
        host.copy(HERE / "guest/serve", "/main")
    elif arguments.run:
        main = "#!/bin/busybox sh\ncd /root\n" + arguments.run + "\necho \"EXIT CODE: $?\"\n"
        host.path("/main").write_text(main)
    else:
        host.copy(HERE / "guest" / ("kvm-tests" if arguments.kvm else "v2-tests"), "/main")
    os.chmod(host.root / "main", 0o755)


def boot(kernel, initramfs, disk, results, arguments):
    """Boots the machine, prints its console, and returns what its last lines said. `--serve`: runs the
    tests outside when the server inside is ready, and then ends it.

    Raises `Broken` when the machine itself crashes or hangs."""
    processor = KVM_PROCESSOR if arguments.kvm else "max"
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", processor, "-smp", str(arguments.processors),
        "-m", arguments.memory, "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", str(kernel.vmlinuz), "-initrd", str(initramfs),
        "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
        "-drive", f"file={results},format=raw,if=virtio,cache=unsafe",
        *network(arguments),
        "-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all " + arguments.append,
    ]
    # In a session of its own, so that both can be killed at once.
    machine = subprocess.Popen(["timeout", "--foreground", "--kill-after=5", str(arguments.limit), *command],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace",
                               start_new_session=True)
    threading.Thread(target=poke, args=[machine], daemon=True).start()
    machine.kill = lambda: os.killpg(machine.pid, signal.SIGKILL)
    counts, code, tests, broken = None, None, None, None
    for line in lines_of(machine):
        if line is None or line.startswith(HEARTBEAT):
            broken = broken or (line is None and f"it said nothing for {SILENCE} s")
            continue
        if not (NOISE.search(line) or line.startswith("SETTINGS: ") or not line.strip()):
            print(f"  | {line.rstrip()}", flush=True)
        if CRASH.match(line):
            broken = line.strip()
            machine.kill()
        found = re.match(r"RESULT: (\d+) passed, (\d+) failed", line)
        counts = (int(found[1]), int(found[2])) if found else counts
        found = re.match(r"EXIT CODE: (\d+)", line)
        code = int(found[1]) if found else code
        if line.startswith("SETTINGS: "):
            tests = Tests(json.loads(line.removeprefix("SETTINGS: ")), arguments)
            tests.start()
    if tests:
        tests.end()
    status = machine.wait()
    if broken:
        raise Broken(broken)
    if status == 124:
        print(f"the emulated host was stopped after {arguments.limit} s", flush=True)
    return counts, code


def network(arguments):
    """A network card with ports of ours forwarded to the machine."""
    if arguments.serve is None:
        return []
    forwarded = "".join(f",hostfwd=tcp:127.0.0.1:{port}-:{port}" for port in ports(arguments))
    return ["-netdev", f"user,id=outside{forwarded}", "-device", "virtio-net-pci,netdev=outside"]


class Broken(Exception):
    """The machine crashed or hung, not what runs in it: QEMU's emulation of AMD-V does so now and then."""


def poke(machine):
    """Gives the machine interrupts for as long as it runs."""
    with contextlib.suppress(OSError):
        while machine.poll() is None:
            machine.stdin.write("\n")
            machine.stdin.flush()
            time.sleep(POKE)


def lines_of(machine):
    """What the machine says, and `None` when it has said nothing for too long and is killed."""
    said = queue.Queue()

    def read():
        for line in machine.stdout:
            said.put(line)
        said.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = said.get(timeout=SILENCE)
        except queue.Empty:
            machine.kill()
            line = None
        if line == "":
            return
        yield line


class Tests(threading.Thread):
    """Runs pytest against the server inside the machine, whose settings these are, and ends the server."""

    def __init__(self, settings, arguments):
        super().__init__()
        self.arguments = arguments
        _, _, shell, *own = ports(arguments)
        settings |= {"SHELL_PORT": shell, "OWN_PORTS": own, "OUTSIDE": OUTSIDE,
                     "OWN_ARGUMENTS": f"{SERVER_ARGUMENTS} --ready-sandboxes 1"}
        environment = os.environ | {"CORACLE": arguments.coracle, "CORACLE_E2E_REMOTE": json.dumps(settings)}
        command = [*shlex.split(arguments.pytest), *arguments.serve]
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)

    def run(self):
        self.arguments.tests_passed = self.process.wait() == 0
        try:
            socket.create_connection(("127.0.0.1", self.arguments.port + 1), timeout=30).close()
        except OSError:
            print("the emulated host is gone", flush=True)

    def end(self):
        """The machine has ended, so there is nothing more to test."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.join()


def ports(arguments):
    return range(arguments.port, arguments.port + PORTS)


def free_ports():
    """The first of `PORTS` ports in a row that nobody listens on."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            def bind(port):
                taken = stack.enter_context(socket.socket())
                taken.bind(("127.0.0.1", port))
                return taken.getsockname()[1]

            first = bind(0)
            for port in range(first + 1, first + PORTS):
                bind(port)
            return first


def bring_out(results, directory):
    """Unpacks what the host left in its /results."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(results) as archive:
            # Debian 12's Python does not know filters yet.
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(directory, **safe)
    except tarfile.ReadError:
        print("the emulated host brought out nothing", flush=True)


def arguments_of(command_line):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="where unpacked packages are kept")
    parser.add_argument("--kvm", action="store_true", help="a host with AMD-V, /dev/kvm and a guest kernel")
    parser.add_argument("--guest-kernel", type=pathlib.Path, metavar="PACKAGE",
                        help="for guests, instead of the host's own kernel")
    parser.add_argument("--coracle", help="the program to be tested; its supervisor lies beside it")
    parser.add_argument("--test-binary", action="append", default=[], help="run in it, with --ignored on KVM")
    parser.add_argument("--file", action="append", default=[], metavar="HOST=GUEST", help="put into it")
    parser.add_argument("--run", metavar="COMMAND", help="a shell command to run there instead of the tests")
    parser.add_argument("--processors", type=int, help="of the machine; with --kvm one, as QEMU's AMD-V breaks with two, else two")
    parser.add_argument("--pytest", default="python3 -m pytest", metavar="COMMAND", help="the pytest of --serve")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, help="arguments for pytest, outside")
    parser.add_argument("--results", type=pathlib.Path, help="where what it leaves in /results is put")
    parser.add_argument("--limit", type=int, default=420, metavar="SECONDS", help="when it is stopped")
    parser.add_argument("--memory", default=None, help="of the machine, as QEMU writes it")
    parser.add_argument("--append", default="", help="to the host kernel's command line")
    arguments = parser.parse_args(command_line)
    arguments.processors = arguments.processors or (1 if arguments.kvm else 2)
    arguments.memory = arguments.memory or ("4G" if arguments.kvm else "3G")
    if not (arguments.kvm or arguments.coracle or arguments.run):
        parser.error("the tests of cgroup v2 need --coracle")
    return arguments


def main(command_line=None):
    arguments = arguments_of(command_line)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return run(arguments)
        except Broken as error:
            print(f"the emulated host itself broke in attempt {attempt} of {ATTEMPTS}: {error}", flush=True)
    return 1


def run(arguments):
    """Makes the machine, boots it, and returns the exit code."""
    arguments.port, arguments.tests_passed = free_ports(), True
    arguments.cache.mkdir(parents=True, exist_ok=True)
    kernel = packages.cloud_kernel(arguments.cache)
    with tempfile.TemporaryDirectory(prefix="coracle-emulated-") as work:
        early, root, initramfs, disk, results = (
            os.path.join(work, name) for name in ("early", "root", "initramfs", "disk", "results"))
        early_tree(early, kernel).cpio(initramfs)
        root_tree(root, kernel, arguments)
        Tree(root).disk(disk)
        with open(results, "wb") as file:
            file.truncate(RESULTS_BYTES)
        counts, code = boot(kernel, initramfs, disk, results, arguments)
        if arguments.results:
            bring_out(results, arguments.results)
    if arguments.run:
        if code is None:
            raise SystemExit("the emulated host did not come to the end of its command")
        return code
    if counts is None:
        raise SystemExit("the emulated host did not come to the end of its tests")
    passed, failed = counts
    print(f"emulated host: {passed} passed, {failed} failed")
    return 1 if failed or not passed or not arguments.tests_passed else 0


if __name__ == "__main__":
    sys.exit(main())
