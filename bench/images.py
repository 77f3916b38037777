"""Images made on the spot, as OCI layouts: nothing is downloaded."""

import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import tarfile

APPLETS = ["sh", "date", "sleep", "true", "cat", "echo"]


class Layout:
    """An OCI layout directory with one image, tagged `latest`."""

    def __init__(self, path):
        self.path = path
        os.makedirs(path / "blobs" / "sha256", exist_ok=True)
        self.layers, self.diff_ids = [], []

    def blob(self, data):
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / "sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, tar, level=1):
        self.diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
        packed = gzip.compress(tar, compresslevel=level, mtime=0)
        self.layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **self.blob(packed)})

    def finish(self, extra=""):
        config = {
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "Labels": {"extra": extra}},
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids}}
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2, "mediaType": kind, "layers": self.layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       **self.blob(json.dumps(config).encode())}}
        entry = {"mediaType": kind, **self.blob(json.dumps(manifest).encode()),
                 "annotations": {"org.opencontainers.image.ref.name": "latest"}}
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return self.path


def busybox_tar(programs=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add("/usr/bin/busybox", "bin/busybox")
        for program in programs:
            tar.add(program, f"bin/{program.name}")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return out.getvalue()


def busybox(path, programs=()):
    layout = Layout(path)
    layout.layer(busybox_tar(programs))
    return layout.finish()


def made_up(content):
    """Files of 4 KiB to 4 MiB, as `content(source, size)` makes them."""
    def files(source):
        number = 0
        while True:
            size = source.choice([4 << 10, 64 << 10, 1 << 20, 4 << 20])
            yield f"data/{number}", content(source, size)
            number += 1
    return files


def installed(source):
    """This machine's own programs, libraries and what comes with them, directory by directory, in any order."""
    directories = sorted(
        (directory, sorted(names)) for top in ("bin", "lib", "share", "sbin") for directory, _, names in os.walk(f"/usr/{top}"))
    source.shuffle(directories)
    for directory, names in directories:
        for path in (os.path.join(directory, name) for name in names):
            if os.path.isfile(path) and not os.path.islink(path) and 0 < os.path.getsize(path) <= 16 << 20:
                with open(path, "rb") as file:
                    yield path.lstrip("/"), file.read()


# What an image's files are made of. The first is what images hold. The others are extremes: one does not compress at all;
# two compress to half, of which one has long runs of zeros, which Coracle leaves out of the files, and the other has not
# even repetitions, and is all work for the decompressor.
DATA = {
    "files": installed,
    "random": made_up(lambda source, size: source.randbytes(size)),
    "zeros": made_up(lambda source, size: source.randbytes(size // 2) + bytes(size // 2)),
    "digits": made_up(lambda source, size: source.randbytes(size // 2).hex().encode()),
}


def large(path, megabytes, layers, seed=1, data="files"):
    """An image of `megabytes` of files."""
    layout = Layout(path)
    layout.layer(busybox_tar())
    source = random.Random(seed)
    files = DATA[data](source)
    each = megabytes * 1024 * 1024 // (layers - 1)
    for _ in range(layers - 1):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            left, directories = each, set()
            while left > 0:
                try:
                    name, content = next(files)
                except StopIteration:
                    raise SystemExit(f"bench: this machine's /usr has no {megabytes} MiB of files") from None
                for above in reversed(pathlib.PurePosixPath(name).parents[:-1]):
                    if above not in directories:
                        directories.add(above)
                        entry = tarfile.TarInfo(str(above))
                        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                        tar.addfile(entry)
                entry = tarfile.TarInfo(name)
                entry.size = min(left, len(content))
                tar.addfile(entry, io.BytesIO(content[:left]))
                left -= entry.size
        # As `docker push` compresses; what is made up compresses no better for it.
        layout.layer(out.getvalue(), level=6 if data == "files" else 1)
    return layout.finish()
