"""Debian's cloud kernel: downloaded and unpacked once, never installed."""

import os
import pathlib
import re
import subprocess
import tempfile

# The package that always depends on Debian's newest cloud kernel.
META_PACKAGE = "linux-image-cloud-amd64"


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, **options)


def newest_kernel_package():
    answer = subprocess.run(["apt-cache", "depends", META_PACKAGE], capture_output=True, text=True).stdout
    found = re.search(r"Depends: (linux-image-\d\S+)", answer)
    return found and found[1]


class Kernel:
    """An unpacked kernel package."""

    def __init__(self, tree, archive):
        self.release = next((tree / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
        self.vmlinuz = tree / "boot" / f"vmlinuz-{self.release}"
        self.module_base = tree / "lib/modules" / self.release
        self.archive = archive

    def modules(self, names):
        """The files of these modules and of all that they need, each before what needs it."""
        needs = {}
        index = self.module_base / "modules.dep"
        for line in index.read_text().splitlines() if index.exists() else []:  # all may be built in
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
        by_name = {pathlib.Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
        wanted = []
        for name in names:
            path = by_name.get(name)
            if path:  # what is not a module is built in
                # depmod lists the needs of a module so that each one's own needs are behind it.
                wanted += [file for file in [*reversed(needs[path]), path] if file not in wanted]
        return wanted


def unpacked(cache, package):
    """The tree of a package's files, downloaded and unpacked once."""
    tree = cache / package
    if not tree.exists():
        print(f"downloading {package}", flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            os.chmod(scratch, 0o755)  # apt downloads as a user of its own
            run("apt-get", "download", "-qq", package, cwd=scratch)
            run("dpkg", "-x", str(next(pathlib.Path(scratch).glob("*.deb"))), f"{scratch}/tree")
            os.rename(f"{scratch}/tree", tree)
    return tree


def kernel_in(package, tree):
    """The kernel of a package file, unpacked into a new directory."""
    run("dpkg", "-x", str(package), str(tree))
    kernel = Kernel(tree, package)
    if kernel.module_base.exists():
        run("depmod", "-b", str(tree), kernel.release)
    return kernel


def cloud_kernel(cache):
    """Downloads and unpacks the newest package, if that is not done."""
    package = newest_kernel_package()
    if not package:  # a machine whose package lists were never fetched
        run("apt-get", "update", "-qq")
        package = newest_kernel_package()
    if not package:
        raise SystemExit(f"{META_PACKAGE} is not known to apt")
    tree, archive = cache / package, cache / f"{package}.deb"
    if not (tree.exists() and archive.exists()):
        print(f"downloading {package}", flush=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            os.chmod(scratch, 0o755)  # apt downloads as a user of its own
            run("apt-get", "download", "-qq", package, cwd=scratch)
            downloaded = next(pathlib.Path(scratch).glob("*.deb"))
            if not tree.exists():
                kernel_in(downloaded, pathlib.Path(scratch, "tree"))
                os.rename(f"{scratch}/tree", tree)
            os.rename(downloaded, archive)
    return Kernel(tree, archive)
