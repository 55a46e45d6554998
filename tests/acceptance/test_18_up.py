"""`chronicle up`: one command that runs all of it, heals it, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from servers import ROOT, Stack, eventually, free_port, is_alive, own_environment, process_field

from chronicle import broker, runfile
from chronicle.up import binaries, ports
from chronicle.up.home import end_leftovers
from chronicle.up.privileges import CAP_DAC_READ_SEARCH, Account

MakeStack = Callable[..., Stack]
STOP_SECONDS = 10.0
PARTS = ["supervisor", "postgres", "broker", "api", "projector"]

pytestmark = pytest.mark.skipif("CHRONICLE_TEST_URL" in os.environ, reason="these tests start systems of their own")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a home will be; it is not there yet."""
    return tmp_path / "my home"


@pytest.fixture
def make_stack(home: Path) -> Iterator[MakeStack]:
    """Makes stacks on `home`, which are stopped after the test."""
    made: list[Stack] = []

    def make(**options: object) -> Stack:
        made.append(Stack(**({"home": home} | options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for stack in made:
        stack.close()


@pytest.fixture
def stack(make_stack: MakeStack, home: Path, copy_home: Callable[[Path], None]) -> Stack:
    """A system that runs."""
    copy_home(home)
    stack = make_stack()
    stack.start()
    return stack


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system that runs, for tests that leave it as it was."""
    stack = Stack(tmp_path_factory.mktemp("shared") / "home")
    stack.start()
    yield stack
    stack.close()


def publish(stack: Stack, event_id: str) -> None:
    moment = "2025-01-01T00:00:00Z"
    event = {"event_id": event_id, "topic": "t", "source": "s", "payload": {}, "timestamp": moment}
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    connection.request("POST", "/publish", json.dumps({"events": [event]}), {"Content-Type": "application/json"})
    assert connection.getresponse().status == 200
    connection.close()


def processed(stack: Stack) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    connection.request("GET", "/stats")
    count: int = json.loads(connection.getresponse().read())["unique_processed"]
    connection.close()
    return count


def kill_api(stack: Stack) -> None:
    pid = eventually(lambda: stack.pids().get("api", 0))
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid))


def end_of(stack: Stack, timeout: float = 30) -> int:
    assert stack.process
    try:
        return stack.process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it still runs after {timeout} s\n{stack.log()}") from None


def left(stack: Stack) -> str:
    """Every process that has the home in its command line or its environment."""
    listing = subprocess.run(["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, check=True).stdout
    mine = [line for line in listing.splitlines() if str(stack.home) in line and int(line.split()[0]) != os.getpid()]
    return "\n".join(mine)


def test_it_says_where_everything_is(shared: Stack) -> None:
    log = eventually(lambda: shared.log() if "Ctrl-C" in shared.log() else "")
    postgres = shared.run()["postgres"]["url"]
    for expected in (shared.url, f"{shared.url}/docs", f'psql "{postgres}"', str(shared.home), "chronicle publish"):
        assert expected in log


def test_run_json_tells_the_truth(shared: Stack) -> None:
    parts = shared.run()
    assert list(parts) == PARTS
    assert parts["supervisor"] == {"pid": shared.process and shared.process.pid}
    assert parts["api"]["url"] == shared.url
    assert parts["postgres"]["url"].startswith("postgresql://chronicle:")
    assert parts["broker"]["url"].startswith("redis://:")
    for name, words in {"api": "chronicle api", "projector": "chronicle projector", "postgres": "bin/postgres"}.items():
        assert words in process_field("args", parts[name]["pid"])
    assert runfile.path(shared.home).stat().st_mode & 0o077 == 0


def test_a_copy_of_its_home_ends_nothing_of_it(shared: Stack, tmp_path: Path) -> None:
    shutil.copy(runfile.path(shared.home), runfile.path(tmp_path))
    before = shared.pids()
    end_leftovers(tmp_path, time.sleep)
    assert not runfile.path(tmp_path).exists()
    for name in ("api", "projector"):
        assert f"chronicle {name}" in process_field("args", before[name])


def test_a_second_one_on_the_same_home_is_refused(shared: Stack, make_stack: MakeStack) -> None:
    second = make_stack(home=shared.home)
    second.launch()
    assert end_of(second) == 1
    assert f"(pid {shared.pids()['supervisor']}, its API is {shared.url})" in second.log()
    assert shared.is_ready()


def test_a_taken_port_is_said_at_once_and_nothing_is_left(make_stack: MakeStack) -> None:
    port = free_port()
    with ports.listen("127.0.0.1", port):
        stack = make_stack(port=port)
        stack.launch()
        assert end_of(stack) == 1
    assert f"port {port} on 127.0.0.1 is taken; choose another with: make run ARGS='--port {port + 1}'" in stack.log()
    assert "Traceback" not in stack.log()
    assert not (stack.home / "postgres").exists()
    assert stack.run() == {}


@pytest.mark.parametrize("name", ["api", "projector", "broker", "postgres"])
def test_a_child_that_is_killed_is_started_again(stack: Stack, name: str) -> None:
    publish(stack, "before")
    before = stack.run()
    os.kill(before[name]["pid"], signal.SIGKILL)
    # Not refused, not even while the API is away: the connection waits.
    eventually(lambda: stack.pids().get(name, before[name]["pid"]) != before[name]["pid"])
    eventually(stack.is_ready)
    publish(stack, "after")
    eventually(lambda: processed(stack) == 2, timeout=20)
    after = stack.run()
    assert {part: after[part].get("url") for part in PARTS} == {part: before[part].get("url") for part in PARTS}
    assert {part for part in PARTS if after[part]["pid"] != before[part]["pid"]} == {name}, stack.log()
    assert "child ended" in stack.log()


def test_several_processes_of_each_service_run_as_one(make_stack: MakeStack) -> None:
    stack = make_stack(options=["--api-processes", "3", "--projector-processes", "2"])
    stack.start()
    services = {"api", "api-2", "api-3", "projector", "projector-2"}
    before = stack.pids()
    assert before.keys() == set(PARTS) | services
    for number in range(30):
        publish(stack, f"e{number}")
    for name in ("api-2", "projector-2"):
        os.kill(before[name], signal.SIGKILL)
        eventually(lambda name=name: stack.pids().get(name, before[name]) != before[name])  # type: ignore[misc]
    for number in range(30, 60):
        publish(stack, f"e{number}")
    eventually(lambda: processed(stack) == 60, timeout=20)
    assert stack.stop() == 0
    assert left(stack) == ""


def test_a_client_is_not_refused_while_the_api_starts_again(stack: Stack) -> None:
    for _ in range(3):
        kill_api(stack)
        assert stack.is_ready()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_all_in_order_and_leaves_nothing(stack: Stack, number: signal.Signals) -> None:
    publish(stack, "kept")
    assert stack.process
    stack.process.send_signal(number)
    assert end_of(stack, STOP_SECONDS) == 0
    assert left(stack) == ""
    assert not runfile.path(stack.home).exists()
    assert "Traceback" not in stack.log()
    assert "database system is shut down" in (stack.home / "logs" / "postgres.log").read_text()
    stack.start()
    eventually(lambda: processed(stack) == 1)


def test_it_stops_in_time_when_every_child_is_frozen(stack: Stack) -> None:
    pids = stack.pids()
    for name in PARTS[1:]:
        os.kill(pids[name], signal.SIGSTOP)
    assert stack.stop(STOP_SECONDS) == 0
    assert left(stack) == ""


def test_it_stops_in_time_with_clients_that_hold_on(stack: Stack) -> None:
    waiting = http.client.HTTPConnection("127.0.0.1", stack.port)
    waiting.putrequest("POST", "/publish")
    waiting.putheader("Content-Length", "1000")
    waiting.endheaders()  # and never a body
    program = "import psycopg, sys; psycopg.connect(sys.argv[1]).execute('SELECT pg_sleep(60)')"
    command = [sys.executable, "-c", program, stack.run()["postgres"]["url"]]
    psql = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert stack.stop(STOP_SECONDS) == 0
    assert psql.wait() != 0
    waiting.close()
    assert left(stack) == ""


def test_asking_twice_does_not_break_the_stop(stack: Stack) -> None:
    assert stack.process
    for _ in range(20):
        stack.process.send_signal(signal.SIGINT)
    assert end_of(stack, STOP_SECONDS) == 0
    assert left(stack) == ""
    assert "Traceback" not in stack.log()


@pytest.mark.parametrize("until", ["lock", "postgres.new", "postgres/postmaster.pid", "logs/migrate.log", "run.json"])
def test_a_signal_during_the_start_stops_what_had_started(make_stack: MakeStack, until: str) -> None:
    stack = make_stack()
    stack.launch()
    eventually((stack.home / until).exists, timeout=60, every=0.001)
    # A moment in which the handlers are not there yet remains before anything has been started.
    assert stack.stop(STOP_SECONDS) in ({0, -signal.SIGTERM} if until == "lock" else {0})
    assert left(stack) == ""
    assert stack.run() == {}
    stack.start()


@pytest.mark.parametrize("loaded", ["psycopg", "typer"])
def test_ctrl_c_while_it_is_loaded_ends_it_without_a_word(home: Path, loaded: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "chronicle", "up", "--port", str(free_port())]
    environment = own_environment(CHRONICLE_HOME=str(home))
    with subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.split("|")[-1].strip() == loaded:
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert [line for line in said.splitlines() if not line.startswith("import time:")] == []
    assert not home.exists()


def test_a_start_that_fails_says_why_and_leaves_nothing(make_stack: MakeStack) -> None:
    stack = make_stack(env={"DATABASE_URL": f"postgresql://x@127.0.0.1:{free_port()}/x"})
    stack.launch()
    assert end_of(stack) == 1
    assert "cannot migrate: connection failed" in stack.log()
    assert "Traceback" not in stack.log()
    assert left(stack) == ""
    assert stack.run() == {}


def test_a_home_that_cannot_be_used_is_one_line(make_stack: MakeStack, home: Path) -> None:
    for obstacle in (home / "logs", home):
        shutil.rmtree(home, ignore_errors=True)
        obstacle.parent.mkdir(exist_ok=True)
        obstacle.write_text("in the way")
        stack = make_stack()
        stack.launch()
        assert end_of(stack) == 1
        assert str(obstacle) in stack.log()
        assert "Traceback" not in stack.log()


@on_linux
def test_after_kill_9_of_the_supervisor_the_next_one_goes_on(stack: Stack) -> None:
    publish(stack, "kept")
    pids = stack.pids()
    os.kill(pids["projector"], signal.SIGSTOP)  # it cannot hear that its parent died
    os.kill(pids["supervisor"], signal.SIGKILL)
    end_of(stack)
    stack.start()
    assert not any(is_alive(pid) for pid in pids.values())
    eventually(lambda: processed(stack) == 1, timeout=20)


def test_after_kill_9_of_everything_the_next_one_goes_on(stack: Stack) -> None:
    for number in range(3):
        publish(stack, f"kept-{number}")
        stack.kill()
        stack.start()
    eventually(lambda: processed(stack) == 3, timeout=20)


def test_with_both_urls_set_it_starts_no_server(make_stack: MakeStack, postgres_url: str, redis_url: str) -> None:
    stack = make_stack(env={"DATABASE_URL": postgres_url, "REDIS_URL": redis_url})
    stack.start()
    assert stack.run()["postgres"] == {"url": postgres_url}
    assert stack.run()["broker"] == {"url": redis_url}
    assert not (stack.home / "postgres").exists()
    assert postgres_url not in stack.log()
    publish(stack, "elsewhere")
    eventually(lambda: processed(stack) == 1)
    assert stack.stop() == 0


@pytest.fixture
def redis_socket() -> Iterator[str]:
    """The URL of a Valkey that has no port."""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long: 103 bytes at most
        path = Path(folder) / "redis.sock"
        command = [binaries.broker(), "--port", "0", "--unixsocket", path, "--save", ""]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        yield f"unix://{eventually(lambda: path.exists() and path)}"
        server.terminate()
        server.wait()


def test_redis_may_be_a_socket_of_this_machine(make_stack: MakeStack, redis_socket: str) -> None:
    stack = make_stack(env={"REDIS_URL": redis_socket})
    stack.start()
    publish(stack, "by a socket")
    eventually(lambda: processed(stack) == 1)
    [group] = broker.connect(redis_socket).xinfo_groups(broker.STREAM)
    assert group["entries-read"] == 1
    assert stack.stop() == 0


def test_nobody_reading_the_output_is_no_reason_to_stop(home: Path) -> None:
    stack = Stack(home)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "chronicle", "up", "--port", str(stack.port)]
    with subprocess.Popen(command, cwd=ROOT, env=stack.environment, stdout=writer, stderr=writer) as process:
        os.close(writer)
        eventually(stack.is_ready, timeout=60)
        eventually(lambda: stack.pids().get("projector"))
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0
    assert left(stack) == ""


def test_a_log_that_nobody_reads_on_holds_up_nothing(home: Path) -> None:
    """As on a terminal after Ctrl-S."""
    stack = Stack(home)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(2**12))
    os.set_blocking(writer, True)
    command = [sys.executable, "-m", "chronicle", "up", "--port", str(stack.port)]
    with subprocess.Popen(
        command, cwd=ROOT, env=stack.environment, stdout=subprocess.DEVNULL, stderr=writer
    ) as process:
        os.close(writer)
        eventually(stack.is_ready, timeout=60)
        before = eventually(lambda: stack.pids().get("broker"))
        os.kill(before, signal.SIGKILL)
        eventually(lambda: stack.pids().get("broker", before) != before)
        publish(stack, "unheard")
        eventually(lambda: processed(stack) == 1)
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0
    os.close(reader)
    assert left(stack) == ""


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_it_runs_without_its_standard_streams(closed: str, home: Path) -> None:
    stack = Stack(home)
    command = ["sh", "-c", f'exec "$0" -m chronicle up --port {stack.port} {closed}', sys.executable]
    with subprocess.Popen(command, cwd=ROOT, env=stack.environment) as process:
        eventually(stack.is_ready, timeout=60)
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0
    assert left(stack) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_run_it(make_stack: MakeStack) -> None:
    nobody = pwd.getpwnam("nobody")
    # The capability is for this checkout and its interpreter, which may be in a folder that is root's alone.
    account = Account(nobody.pw_uid, nobody.pw_gid, CAP_DAC_READ_SEARCH if sys.platform == "linux" else None)
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    home = place / "home"
    home.mkdir()
    os.chown(home, account.uid, account.gid)
    try:
        stack = make_stack(home=home, account=account)
        stack.start()
        publish(stack, "mine")
        assert {process_field("uid", pid) for pid in stack.pids().values()} == {str(account.uid)}
        began = time.monotonic()
        assert stack.stop() == 0
        assert time.monotonic() - began < STOP_SECONDS
    finally:
        shutil.rmtree(place)
