"""The kernel for the guests of the emulated host's KVM, by default the very package that the host runs itself."""

import io
import lzma
import os
import pathlib
import shutil
import stat
import struct
import subprocess
import tempfile

GUEST_MODULES = [
    "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "vmw_vsock_virtio_transport",
    "erofs", "overlay",
]


def vmlinux(image):
    """The ELF kernel inside a bzImage; Debian's are compressed with LZ4 or xz.

    Offsets are of the kernel's Documentation/arch/x86/boot.rst.
    """
    if image[:4] == b"\x7fELF":  # the lean kernel
        return image
    if image[0x202:0x206] != b"HdrS":
        raise SystemExit("not a bzImage")
    sectors = image[0x1f1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    # Behind the compressed data stand four bytes with its length unpacked.
    payload = image[start:start + length - 4]
    if payload.startswith(bytes.fromhex("02214c18")):
        return subprocess.run(["lz4", "-dc"], input=payload, check=True, capture_output=True).stdout
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)


def newc(entries):
    """A cpio archive: names with (mode, device, data)."""
    out = io.BytesIO()
    for number, (name, (mode, device, data)) in enumerate([*entries.items(), ("TRAILER!!!", (0, (0, 0), b""))], 1):
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
        out.write(b"\0" * (-out.tell() % 4) + data)
        out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()


PROBE_INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
for module in $(cat /modules/order); do insmod /modules/$module; done
echo "guest: Linux $(uname -r), boot id $(cat /proc/sys/kernel/random/boot_id)"
eval "${RUN:-ls /sys/block /sys/bus/virtio/devices}"
poweroff -f
"""


def put(kernel, host):
    """Puts the kernel and a first initramfs below /guest of the host."""
    image = kernel.vmlinuz.read_bytes()
    host.path("/guest/vmlinuz").write_bytes(image)
    host.path("/guest/vmlinux").write_bytes(vmlinux(image))
    host.copy(kernel.archive, "/guest/kernel.deb")
    modules = {file.rpartition("/")[2]: (kernel.module_base / file).read_bytes()
               for file in kernel.modules(GUEST_MODULES)}
    for name, data in modules.items():
        host.path(f"/guest/modules/{name}").write_bytes(data)
    order = "".join(f"{name}\n" for name in modules).encode()
    host.path("/guest/modules/order").write_bytes(order)
    with open("/usr/bin/busybox", "rb") as file:
        busybox = file.read()
    executable, directory = 0o100755, 0o040755
    entries = {name: (directory, (0, 0), b"") for name in ("bin", "dev", "modules")}
    entries["dev/console"] = (0o020600, (5, 1), b"")
    entries["bin/busybox"] = (executable, (0, 0), busybox)
    entries["init"] = (executable, (0, 0), PROBE_INIT)
    entries["modules/order"] = (0o100644, (0, 0), order)
    for name, data in modules.items():
        entries[f"modules/{name}"] = (0o100644, (0, 0), data)
    host.path("/guest/probe.cpio").write_bytes(newc(entries))
    return {name: entry for name, entry in entries.items() if not name.startswith("bin")}


def put_supervisor(entries, host, erofs_tools):
    """Makes an initramfs with /guest/supervisor as its init, and image layers for its tasks."""
    supervisor = host.path("/guest/supervisor").read_bytes()
    entries = entries | {"init": (0o100755, (0, 0), supervisor)}
    host.path("/guest/supervisor.cpio").write_bytes(newc(entries))
    with tempfile.TemporaryDirectory() as work:
        base, second = pathlib.Path(work, "base"), pathlib.Path(work, "second")
        for directory in ("bin", "etc", "dev", "proc", "sys", "tmp"):
            (base / directory).mkdir(parents=True)
        shutil.copy("/usr/bin/busybox", base / "bin/busybox")
        for applet in subprocess.run(["/usr/bin/busybox", "--list"], check=True, capture_output=True,
                                     text=True).stdout.split():
            if applet != "busybox":
                (base / "bin" / applet).symlink_to("busybox")
        (base / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
        (base / "etc/hidden").write_text("below\n")
        (second / "etc").mkdir(parents=True)
        (second / "etc/second").write_text("above\n")
        os.mknod(second / "etc/hidden", stat.S_IFCHR, os.makedev(0, 0))  # overlayfs's sign for "deleted"
        for layer in (base, second):
            subprocess.run([str(erofs_tools / "usr/bin/mkfs.erofs"), "-d0", "--all-root",
                            str(host.path(f"/guest/layers/{layer.name}.erofs")), str(layer)],
                           check=True, stdout=subprocess.DEVNULL)
