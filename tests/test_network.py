"""A task's own network: reached from the host and from other tasks, but not the other way into the host."""

import contextlib
import socket
import threading

import host
from host import REMOTE
from server import free_port, until
from tasks import IDLE, idle

WEB = "mkdir /www; echo served by $(hostname) > /www/x; httpd -p 0.0.0.0:8080 -h /www; "


def serve(tasks):
    ports = [{"containerPort": 8080, "protocol": "tcp"}]
    task = tasks.run(tasks.register(tasks.container(WEB + IDLE, portMappings=ports)))
    return tasks.wait(task["taskArn"], "RUNNING")


def test_from_the_host(tasks):
    task = serve(tasks)

    def answer():
        request = f"printf 'GET /x HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {tasks.address(task)} 8080 2>/dev/null"
        return host.sh(request, check=False)[1]

    assert "served by ip-" in until(answer, "an answer")
    tasks.stop(task["taskArn"])
    tasks.wait(task["taskArn"], "STOPPED")


def test_from_another_task(tasks):
    task = serve(tasks)
    name = next(d["value"] for d in task["attachments"][0]["details"] if d["name"] == "privateDnsName")
    ended = tasks.run_to_end(
        f"until wget -qO- http://{tasks.address(task)}:8080/x; do sleep 0.1; done"
    )
    assert ended.lines[-1] == f"served by {name}"
    tasks.stop(task["taskArn"])
    tasks.wait(task["taskArn"], "STOPPED")


def test_loopback_is_its_own(tasks):
    own = "until nc -w 2 127.0.0.1 9090 </dev/null 2>/dev/null; do sleep 0.1; done; echo listening"
    task = tasks.run(tasks.register(tasks.container(idle("httpd -p 127.0.0.1:9090 -h /etc", own))))
    tasks.wait_for_line(task["taskArn"], "listening")
    address = tasks.address(tasks.wait(task["taskArn"], "RUNNING"))
    ended = tasks.run_to_end(
        f"nc -w 2 127.0.0.1 9090 </dev/null || echo other; nc -w 2 {address} 9090 </dev/null || echo closed"
    )
    assert [line for line in ended.lines if not line.startswith("nc:")] == ["other", "closed"]
    tasks.stop(task["taskArn"])


class Listener:
    """A service of this host that notes who comes."""

    def __init__(self, address, visits):
        self.socket = socket.create_server((address, 0))
        self.port = self.socket.getsockname()[1]
        self.visits = visits
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, peer = self.socket.accept()
            except OSError:
                return
            self.visits.append(peer)
            connection.sendall(b"host\n")
            connection.close()


@contextlib.contextmanager
def listener(address, visits):
    """A service of the server's host. Who came is noted where that is this one."""
    if not REMOTE:
        service = Listener(address, visits)
        with service.socket:
            yield service.port
        return
    port = free_port()
    with host.running("busybox", "httpd", "-f", "-p", f"{address}:{port}", "-h", "/run"):
        until(lambda: host.sh(f"busybox nc -w 2 127.0.0.1 {port} </dev/null 2>/dev/null", check=False)[0] == 0, "the service")
        yield port


def test_services_of_the_host(tasks):
    own = host.sh("ip route get 192.0.2.1 | sed -n 's/.* src \\([^ ]*\\).*/\\1/p'")[1].strip()
    assert own
    visits = []
    with listener("127.0.0.1", visits) as loopback, listener("0.0.0.0", visits) as everywhere:
        ended = tasks.run_to_end(
            "gw=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); "
            "resolver=$(sed -n 's/^nameserver //p' /etc/resolv.conf); "
            f"for ip in $gw $resolver {own} 127.0.0.1; do for port in {loopback} {everywhere} {tasks.server.port}; do "
            "nc -w 1 $ip $port </dev/null 2>/dev/null && echo reached $ip $port; done; done; echo done",
            timeout=90,
        )
        assert ended.lines == ["done"], ended.lines
        assert not visits


def test_names(tasks):
    ended = tasks.run_to_end(
        "cat /etc/hosts; echo --; cat /etc/resolv.conf; echo --; "
        "nslookup no-such-name.internal.invalid >/dev/null 2>&1 || echo unknown; [ $(hostname) = $(cat /etc/hostname) ] && echo same"
    )
    text = "\n".join(ended.lines)
    hosts, resolver, rest = [part.strip().splitlines() for part in text.split("--")]
    address = tasks.address(ended.task)
    name = next(d["value"] for d in ended.task["attachments"][0]["details"] if d["name"] == "privateDnsName")
    assert "127.0.0.1\tlocalhost" in hosts
    assert any(line.split()[0] == address and name in line.split() for line in hosts), hosts
    assert resolver[0].startswith("nameserver ")
    assert rest == ["unknown", "same"]


def test_ports_are_free_for_everybody(tasks):
    first, second = serve(tasks), serve(tasks)
    assert tasks.address(first) != tasks.address(second)
    for task in (first, second):
        tasks.stop(task["taskArn"])
        tasks.wait(task["taskArn"], "STOPPED")
