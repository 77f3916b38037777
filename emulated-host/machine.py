#!/usr/bin/env python3
"""Makes the emulated host and runs its tests; see README.md.

    machine.py --cache DIR --coracle FILE [--test-binary FILE ...]
"""

import argparse
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# The package that always depends on Debian's newest cloud kernel.
META_PACKAGE = "linux-image-cloud-amd64"
MODULES = [
    "virtio_pci", "virtio_blk", "loop", "overlay", "veth", "tun", "nf_tables", "nf_conntrack", "nf_nat",
    "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat", "nft_reject_inet", "nft_reject_ipv4", "nft_fib_inet",
    "nft_fib_ipv4", "nft_limit", "nft_log", "nft_hash", "nft_numgen", "nft_objref", "nft_redir",
]
PROGRAMS = ["/usr/sbin/nft", "/usr/sbin/mkfs.ext4", "/usr/bin/ip"]
FILES = ["/etc/mke2fs.conf"]
BOOT_LIMIT_SECONDS = 420


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, **options)


def newest_kernel_package():
    answer = subprocess.run(["apt-cache", "depends", META_PACKAGE], capture_output=True, text=True).stdout
    found = re.search(r"Depends: (linux-image-\d\S+)", answer)
    return found and found[1]


def kernel(cache):
    """Downloads and unpacks the kernel package, once; returns its tree and release."""
    package = newest_kernel_package()
    if not package:  # a machine whose package lists were never fetched
        run("apt-get", "update", "-qq")
        package = newest_kernel_package()
    if not package:
        raise SystemExit(f"{META_PACKAGE} is not known to apt")
    tree = cache / package
    if not tree.exists():
        print(f"downloading {package}", flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            os.chmod(scratch, 0o755)  # apt downloads as a user of its own
            run("apt-get", "download", "-qq", package, cwd=scratch)
            archive = next(pathlib.Path(scratch).glob("*.deb"))
            run("dpkg", "-x", str(archive), f"{scratch}/tree")
            release = next(pathlib.Path(scratch, "tree/lib/modules").iterdir()).name
            run("depmod", "-b", f"{scratch}/tree", release)
            os.rename(f"{scratch}/tree", tree)
    release = next((tree / "lib/modules").iterdir()).name
    return tree, release


def module_files(tree, release):
    """The files of MODULES and of all that they need."""
    base = tree / "lib/modules" / release
    needs = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {pathlib.Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    wanted = set()
    for name in MODULES:
        path = by_name.get(name)
        if path:  # what is not a module is built in
            wanted |= {path, *needs[path]}
    return base, sorted(wanted)


def libraries(program):
    """The shared libraries of a program, the loader among them."""
    answer = subprocess.run(["ldd", program], capture_output=True, text=True)
    return re.findall(r"(/\S+)(?= \(0x)", answer.stdout) if answer.returncode == 0 else []


class Tree:
    """A root file system being put together in a directory."""

    def __init__(self, root):
        self.root = pathlib.Path(root)

    def copy(self, source, target=None, strip=False):
        path = self.root / str(target or source).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if strip:
            run("strip", "-o", str(path), str(source))
        else:
            shutil.copy(os.path.realpath(source), path)
        return path

    def program(self, source, target=None, strip=False):
        for library in libraries(str(source)):
            if not (self.root / library.lstrip("/")).exists():
                self.copy(library)
        os.chmod(self.copy(source, target, strip), 0o755)

    def pack(self, target):
        names = "\n".join(sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*")))
        with open(target, "wb") as out:
            subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=names.encode(), stdout=out,
                           cwd=self.root, check=True)


def make(cache, coracle, test_binaries, root):
    tree, release = kernel(cache)
    guest = Tree(root)
    for directory in ("proc", "sys", "dev", "run", "tmp", "state", "tests"):
        (guest.root / directory).mkdir(parents=True)
    guest.program("/usr/bin/busybox", "/bin/busybox")
    guest.program("/usr/bin/busybox", "/usr/bin/busybox")
    for program in PROGRAMS:
        guest.program(program)
    for file in FILES:
        guest.copy(file)
    guest.program(coracle, "/bin/coracle", strip=True)
    supervisor = pathlib.Path(coracle).with_name("coracle-supervisor")
    if supervisor.exists():  # a release carries it inside
        guest.program(supervisor, "/bin/coracle-supervisor", strip=True)
    for binary in test_binaries:
        name = re.sub(r"-[0-9a-f]{16}$", "", pathlib.Path(binary).name)
        guest.program(binary, f"/tests/{name}", strip=True)
    base, modules = module_files(tree, release)
    for module in modules:
        guest.copy(base / module, f"/lib/modules/{release}/{module}")
    for index in ("modules.dep", "modules.alias", "modules.builtin"):
        if (base / index).exists():
            guest.copy(base / index, f"/lib/modules/{release}/{index}")
    (guest.root / "modules").write_text(" ".join(MODULES) + "\n")
    sys.path.insert(0, str(HERE.parent / "bench"))
    import images  # the benchmark's image maker: busybox as an OCI layout
    images.busybox(guest.root / "image")
    for name in ("init", "tests"):
        target = guest.copy(HERE / "guest" / name, "/init" if name == "init" else "/run-tests")
        target.chmod(target.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return tree / "boot" / f"vmlinuz-{release}"


def boot(vmlinuz, initramfs, disk):
    """Boots the machine, prints its console, and returns the counts of its last line."""
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-smp", "2", "-m", "3G",
        "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(vmlinuz),
        "-initrd", str(initramfs), "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
        "-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all",
    ]
    machine = subprocess.Popen(["timeout", "--kill-after=5", str(BOOT_LIMIT_SECONDS), *command],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace")
    counts = None
    for line in machine.stdout:
        print(f"  | {line.rstrip()}", flush=True)
        found = re.search(r"^RESULT: (\d+) passed, (\d+) failed", line)
        counts = (int(found[1]), int(found[2])) if found else counts
    machine.wait()
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("--coracle", required=True)
    parser.add_argument("--test-binary", action="append", default=[])
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="coracle-emulated-") as work:
        root, initramfs, disk = (os.path.join(work, name) for name in ("root", "initramfs", "disk"))
        vmlinuz = make(arguments.cache, arguments.coracle, arguments.test_binary, root)
        Tree(root).pack(initramfs)
        with open(disk, "wb") as file:
            file.truncate(64 << 30)
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", disk)
        counts = boot(vmlinuz, initramfs, disk)
    if counts is None:
        raise SystemExit("the emulated host did not come to the end of its tests")
    passed, failed = counts
    print(f"emulated host: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
