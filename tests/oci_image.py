"""Makes OCI images from this machine's busybox, and pushes them over the distribution API."""

import base64
import functools
import gzip
import hashlib
import http.client
import io
import json
import pathlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from urllib.parse import urlsplit

BUSYBOX = "/usr/bin/busybox"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n"
GROUP = "root:x:0:\napps:x:1001:\nextra:x:1002:app\n"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Tar:
    """A layer in the making."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, content=b"", *, mode=0o644, uid=0, gid=0, kind=tarfile.REGTYPE, target=""):
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uid, info.gid, info.type, info.linkname = len(content), mode, uid, gid, kind, target
        self.tar.addfile(info, io.BytesIO(content))
        return self

    def directory(self, name, **attributes):
        return self.add(name, mode=attributes.pop("mode", 0o755), kind=tarfile.DIRTYPE, **attributes)

    def symlink(self, name, target):
        return self.add(name, mode=0o777, kind=tarfile.SYMTYPE, target=target)

    def link(self, name, target):
        return self.add(name, kind=tarfile.LNKTYPE, target=target)

    def done(self):
        self.tar.close()
        return self.buffer.getvalue()


@functools.cache
def base_layer():
    tar = Tar()
    for name in ("bin", "etc", "root", "home", "var", "opt"):
        tar.directory(name)
    tar.directory("tmp", mode=0o1777).directory("home/app", uid=1000, gid=1001)
    tar.add("bin/busybox", pathlib.Path(BUSYBOX).read_bytes(), mode=0o755)
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            tar.symlink(f"bin/{applet}", "busybox")
    tar.add("etc/passwd", PASSWD.encode()).add("etc/group", GROUP.encode())
    tar.add("opt/not-executable", b"#!/bin/sh\nexit 0\n")
    tar.directory("layers").add("layers/gone", b"1").add("layers/changed", b"old")
    tar.directory("layers/opaque").add("layers/opaque/below", b"1")
    return tar.done()


@functools.cache
def second_layer():
    """Changes, hides and links what is below."""
    tar = Tar()
    tar.add("layers/.wh.gone").add("layers/changed", b"new")
    tar.directory("layers/opaque").add("layers/opaque/.wh..wh..opq").add("layers/opaque/above", b"2")
    tar.add("layers/owned", b"x", uid=1000, gid=1001, mode=0o640).link("layers/owned-too", "layers/owned")
    return tar.done()


def compress(tar, how):
    if how == "gzip":
        return gzip.compress(tar, 1, mtime=0)
    if how == "zstd":
        return subprocess.run(["zstd", "-q", "-1", "-c"], input=tar, check=True, capture_output=True).stdout
    return tar


@dataclass
class Image:
    manifest: bytes
    blobs: dict = field(default_factory=dict)

    @property
    def digest(self):
        return digest(self.manifest)

    def write_layout(self, directory, tag):
        """An OCI image layout, as skopeo's `oci:DIRECTORY:TAG` names it."""
        blobs = pathlib.Path(directory, "blobs/sha256")
        blobs.mkdir(parents=True)
        for name, data in {self.digest: self.manifest, **self.blobs}.items():
            blobs.joinpath(name.removeprefix("sha256:")).write_bytes(data)
        entry = {"mediaType": MANIFEST, "digest": self.digest, "size": len(self.manifest),
                 "annotations": {"org.opencontainers.image.ref.name": tag}}
        pathlib.Path(directory, "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        pathlib.Path(directory, "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        return directory


def build(layers=None, **config):
    """An image of `layers`: pairs of an uncompressed tar and its compression, or what is served as its gzip. `config` is its
    execution configuration (`Cmd=[…]`, `Env=[…]`, …)."""
    second = "zstd" if shutil.which("zstd") else "gzip"
    layers = layers or [(base_layer(), "gzip"), (second_layer(), second)]
    blobs, descriptors = {}, []
    for tar, how in layers:
        data, how = (how, "gzip") if isinstance(how, bytes) else (compress(tar, how), how)
        blobs[digest(data)] = data
        suffix = f"+{how}" if how else ""
        descriptors.append({"mediaType": LAYER + suffix, "digest": digest(data), "size": len(data)})
    settings = {"Env": ["PATH=/bin"], "Cmd": ["sh"]} | config
    document = {"architecture": "amd64", "os": "linux", "config": settings,
                "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar, _ in layers]}}
    data = json.dumps(document).encode()
    blobs[digest(data)] = data
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": descriptors,
                "config": {"mediaType": CONFIG, "digest": digest(data), "size": len(data)}}
    return Image(json.dumps(manifest).encode(), blobs)


def push(image, registry, repository, tag, credentials=None):
    """Pushes over plain HTTP; `credentials` is `user:password`. Returns the image's reference."""
    headers = {}
    if credentials:
        headers["Authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
    connection = http.client.HTTPConnection(registry, timeout=60)

    def call(method, path, body=b"", expected=(201, 202), **more):
        connection.request(method, path, body=body, headers=headers | more)
        response = connection.getresponse()
        text = response.read()
        assert response.status in expected, f"{method} {path}: {response.status} {text[:500]}"
        return response

    try:
        for name, data in image.blobs.items():
            if call("HEAD", f"/v2/{repository}/blobs/{name}", expected=(200, 404)).status == 200:
                continue
            location = urlsplit(call("POST", f"/v2/{repository}/blobs/uploads/").headers["Location"])
            query = f"{location.query}&digest={name}" if location.query else f"digest={name}"
            call("PUT", f"{location.path}?{query}", data, **{"Content-Type": "application/octet-stream"})
        call("PUT", f"/v2/{repository}/manifests/{tag}", image.manifest, **{"Content-Type": MANIFEST})
    finally:
        connection.close()
    return f"{registry}/{repository}:{tag}"
