"""What Coracle is measured beside: runc, docker, skopeo, Debian's docker-registry."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tarfile
import time

import boto3

import images


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def quiet(*command, **options):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)


def push(layout, reference, env):
    """Copies a layout to a registry on loopback, with ECR's login when `env` is Coracle's."""
    login = []
    if env:
        ecr = boto3.client(
            "ecr", endpoint_url=env["AWS_ENDPOINT_URL"], region_name=env["AWS_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"], aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"])
        token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        login = ["--dest-creds", base64.b64decode(token).decode()]
    quiet("skopeo", "copy", "-q", "--dest-tls-verify=false", *login, f"oci:{layout}:latest", f"docker://{reference}")


def copies(layout, registry, count, data):
    """Images of one kind of data, with names and layers of their own, so that nothing is cached."""
    for index in range(count):
        reference = f"{registry}/large-{data}-{index}:latest"
        made = images.large(pathlib.Path(f"{layout}-layout"), megabytes=200, layers=8, seed=100 + index, data=data)
        push(made, reference, None)
        shutil.rmtree(made)
        yield reference


def wait_for(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not come up within {seconds} s")
        time.sleep(0.05)


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def ending(process):
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextlib.contextmanager
def foreign_registry(work):
    port = free_port()
    config = work / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {work / 'registry'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n")
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with ending(process):
        wait_for(lambda: listens(port), "docker-registry")
        yield f"localhost:{port}"


def skopeo_copy(source, target):
    """Into an OCI layout, which takes the blobs as they are, or into a container engine's store, which unpacks them."""
    if not shutil.which("skopeo"):
        return None
    before = time.monotonic()
    quiet("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{source}", target)
    return time.monotonic() - before


def engines_store(directory, name):
    """podman's and CRI-O's kind, below a directory of our own."""
    return f"containers-storage:[overlay@{directory}/store+{directory}/run]localhost/{name}:latest"


def leave_engines_store(directory):
    """Takes away the mount that such a store makes of itself."""
    overlay = directory / "store/overlay"
    if os.path.ismount(overlay):
        quiet("umount", str(overlay))


def runc_starts(work, layout, rounds):
    if not shutil.which("runc"):
        return None
    bundle = work / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"].split(":")[1]
    for layer in json.loads((layout / "blobs/sha256" / manifest).read_text())["layers"]:
        with tarfile.open(layout / "blobs/sha256" / layer["digest"].split(":")[1]) as tar:
            tar.extractall(bundle / "rootfs")
    quiet("runc", "spec", cwd=bundle)
    config = json.loads((bundle / "config.json").read_text())
    config["process"].update(terminal=False, args=["/bin/now"])
    (bundle / "config.json").write_text(json.dumps(config))
    samples = []
    for index in range(rounds + 2):
        before = time.time_ns()
        out = subprocess.check_output(["runc", "run", f"coracle-bench-{index}"], cwd=bundle)
        if index >= 2:
            samples.append((int(out) - before) / 1e6)
    return samples


class Docker:
    def __init__(self, host):
        self.host = host

    def run(self, *arguments):
        return subprocess.check_output(["docker", "--host", self.host, *arguments], stderr=subprocess.PIPE)

    def starts(self, layout, rounds):
        archive = f"{layout}.docker.tar"
        quiet("skopeo", "copy", "-q", f"oci:{layout}:latest", f"docker-archive:{archive}:coracle-bench:latest")
        self.run("load", "--input", archive)
        samples = []
        for index in range(rounds + 2):
            before = time.time_ns()
            out = self.run("run", "--rm", "coracle-bench:latest", "/bin/now")
            if index >= 2:
                samples.append((int(out) - before) / 1e6)
        return samples

    def pull(self, source):
        before = time.monotonic()
        self.run("pull", "-q", source)
        return time.monotonic() - before


@contextlib.contextmanager
def docker(work):
    """A docker daemon of our own with its usual networking, or None where none is installed."""
    if not shutil.which("dockerd") or not shutil.which("docker"):
        yield None
        return
    had_bridge = os.path.exists("/sys/class/net/docker0")
    sock = work / "docker.sock"
    process = subprocess.Popen(
        ["dockerd", "--data-root", str(work / "docker"), "--exec-root", str(work / "docker-exec"),
         "--pidfile", str(work / "docker.pid"), "--host", f"unix://{sock}"],
        stdout=subprocess.DEVNULL, stderr=open(work / "dockerd.log", "wb"))
    try:
        up = lambda: sock.exists() and subprocess.run(
            ["docker", "--host", f"unix://{sock}", "info"], capture_output=True).returncode == 0
        try:
            wait_for(up, "dockerd")
            daemon = Docker(f"unix://{sock}")
        except SystemExit as error:
            print(f"docker is left out: {error}")
            daemon = None
        yield daemon
    finally:
        process.terminate()
        process.wait(timeout=60)
        if not had_bridge:
            subprocess.run(["ip", "link", "del", "docker0"], capture_output=True)
