"""One server for all tests that do not kill theirs, and the check that nothing is left of it."""

import oci_image
import pytest
import server as servers
from host import REMOTE
from server import Server, SharedServerThere, leaks, until
from tasks import IDLE, Tasks


def pytest_configure(config):
    config.addinivalue_line("markers", "own_server: kills the server that it has for itself")


def pytest_collection_modifyitems(config, items):
    """Against a server on another host, only tests with tasks on it say anything new."""
    for item in items:
        if "own_server" in item.fixturenames:
            item.add_marker("own_server")
    if REMOTE:
        left_out = [item for item in items if not {"tasks", "server", "own_server"} & set(item.fixturenames)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows the end of its server's log."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for name in ("server", "own_server"):
            running = getattr(item, "funcargs", {}).get(name)
            if running is not None:
                report.sections.append(("coracle up", running.tail()))


@pytest.fixture(scope="session")
def server():
    if REMOTE:
        yield SharedServerThere()
        return
    running = Server(ephemeral=True)
    try:
        running.start()
        yield running
        status = running.stop()
        assert status == 0, f"coracle up ended with {status}\n{running.tail()}"
        # The supervisors of sandboxes in stock end on their own once told.
        until(lambda: not leaks(running.state_dir), lambda: f"left behind: {leaks(running.state_dir)}", timeout=10)
        assert not running.state_dir.exists()
        log = running.log.read_text()
        assert "panicked" not in log, running.tail(400)
    finally:
        running.destroy()


@pytest.fixture(scope="session")
def image(server):
    """The reference of a busybox image in the built-in registry: `sh`, all applets, users."""
    return Tasks(server).push(oci_image.build(), "busybox")


@pytest.fixture
def tasks(server, image):
    made = Tasks(server)
    made.image = image
    return made


@pytest.fixture
def own_server():
    """A server that the test may kill. Its state lasts until the test's end."""
    running = servers.own_server()
    try:
        yield running
    finally:
        state_dir = running.state_dir
        running.destroy()
        until(lambda: not leaks(state_dir), lambda: f"left behind: {leaks(state_dir)}", timeout=10)


@pytest.fixture(scope="session")
def restarting_task(server, image):
    """A task with a container that is restarted a minute after its start (test_restart_policy.py)."""
    tasks = Tasks(server)
    tasks.image = image
    # The number of its runs is on its writable layer, which a restart keeps.
    script = "echo x >> /runs; n=$(wc -l < /runs); echo run $n; [ $n = 1 ] && sleep 61; exit 5"
    policy = {"enabled": True, "restartAttemptPeriod": 60}
    again = tasks.container(script, name="again", essential=False, restartPolicy=policy)
    return tasks.run(tasks.register(again, tasks.container(IDLE)))["taskArn"]
