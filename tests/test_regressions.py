"""Bugs that were, so that they stay away."""

import pathlib
import threading

import oci_image
from host import PATIENCE
from server import Server, instance_of, leaks, until
from tasks import Tasks


def test_a_chatty_container_does_not_stall_the_server(own_server):
    """Bounded queues in a ring: control's session waits for LOG_QUEUE, its writer for `to_agent`, the agent's
    session for a task's commands, that task for `to_control`, which control's session no longer reads."""
    tasks = Tasks(own_server.start())
    tasks.image = tasks.push(oci_image.build(), "busybox")
    lines = 20000 // PATIENCE
    script = f"i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done"
    ended = tasks.run_to_end(script, cpu="1024", memory="2048")
    assert ended.lines == [f"line {i}" for i in range(lines)]


def test_private_dns_name_resolves(tasks):
    ended = tasks.run_to_end("nslookup $(hostname) | grep Address")
    assert any(line.endswith(tasks.address(ended.task)) for line in ended.lines), ended.lines


def test_two_servers_start_at_once():
    servers = [Server(ephemeral=True) for _ in range(3)]
    errors = []

    def start(server):
        try:
            server.start()
        except AssertionError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=start, args=[server]) for server in servers]
    try:
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not errors, errors
    finally:
        for server in servers:
            if server.ended() is None:
                server.stop()
            state_dir = server.state_dir
            server.destroy()
            until(lambda state_dir=state_dir: not leaks(state_dir), lambda state_dir=state_dir: leaks(state_dir), timeout=10)


def test_ephemeral_removes_its_own_cgroup():
    server = Server(ephemeral=True)
    try:
        server.start()
        tasks = Tasks(server)
        tasks.image = tasks.push(oci_image.build(), "busybox")
        tasks.run_to_end("true")
        assert server.stop() == 0
        left = list(pathlib.Path("/sys/fs/cgroup").glob(f"**/coracle-{instance_of(server.state_dir)}"))
        assert not left, left
    finally:
        server.destroy()
