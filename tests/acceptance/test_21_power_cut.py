"""The power goes while events are published: everything that was answered 200 is there afterwards.

PostgreSQL's data is on an ext4 of its own, in a loop-mounted image. The ioctl EXT4_IOC_SHUTDOWN cuts that file system
off as a power cut would: what had not reached the disk never does. The control, with fsync off, must lose events; if it
did not, the test would prove nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from api import Api, event, fresh
from servers import Stack, eventually, process_field, start_with, stop_server

from chronicle.up.servers import Postgres, start

EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2
PUBLISHERS = 4
EVENTS_A_REQUEST = 20
ANSWERED_BEFORE_THE_CUT = 5_000

pytestmark = [
    pytest.mark.skipif("CHRONICLE_TEST_URL" in os.environ, reason="this test cuts the power of a system of its own"),
    pytest.mark.skipif(sys.platform != "linux", reason="ext4 and loop mounts are Linux's"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems"),
]


class Disk:
    """An ext4 in a file, mounted on a folder."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.mounted_on = folder / "disk"

    def make(self) -> None:
        """Makes and mounts it. Raises CalledProcessError or OSError where this machine does not allow that."""
        self.mounted_on.mkdir(parents=True)
        with self.image.open("wb") as file:
            file.truncate(768 * 2**20)
        run("mkfs.ext4", "-q", "-F", str(self.image))
        self.mount()
        self.mounted_on.chmod(0o711)

    def mount(self) -> None:
        """Mounts it, replaying its journal. The loop device goes with the mount."""
        run("mount", "-t", "ext4", "-o", "loop", str(self.image), str(self.mounted_on))

    def cut_off(self) -> None:
        """From now on nothing reaches the disk, not even what was written before and not yet flushed."""
        folder = os.open(self.mounted_on, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, struct.pack("I", EXT4_GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(folder)

    def unmount(self) -> None:
        """Unmounts it, after a kill -9 of every process that still uses it."""
        eventually(self._is_unmounted, timeout=30)

    def _is_unmounted(self) -> bool:
        users = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_used_by(pid)]
        names = [process_field("args", pid) for pid in users]
        for pid in users:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        refusal = subprocess.run(["umount", str(self.mounted_on)], capture_output=True, text=True, check=False).stderr
        assert not os.path.ismount(self.mounted_on), f"{refusal.strip()}: in use by {names}"
        return True

    def _is_used_by(self, pid: int) -> bool:
        """Whether a process works in it, as all of PostgreSQL's do; one that has ended works nowhere."""
        with contextlib.suppress(OSError):
            return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(self.mounted_on)
        return False

    def close(self) -> None:
        """Leaves no mount and no loop device behind, whatever happened."""
        if os.path.ismount(self.mounted_on) and run("umount", str(self.mounted_on), check=False) != 0:
            run("umount", "--lazy", str(self.mounted_on))
        self.image.unlink(missing_ok=True)


def run(*command: str, check: bool = True) -> int:
    return subprocess.run(command, check=check, capture_output=True).returncode


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk whose power can be cut."""
    disk = Disk(tmp_path / "power")
    try:
        disk.make()
    except (OSError, subprocess.CalledProcessError) as error:
        disk.close()
        pytest.skip(f"loop mounts of ext4 are not allowed here: {error}")
    yield disk
    disk.close()


class Traffic:
    """Publishers that go on until nothing is accepted any more, and the ids of every event that was answered 200."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.topic = fresh("power")
        self.answered: set[str] = set()
        self._cut = threading.Event()
        self._threads = [threading.Thread(target=self._publish, args=(n,)) for n in range(PUBLISHERS)]

    def start(self) -> None:
        """Publishes from now on."""
        for thread in self._threads:
            thread.start()

    def _publish(self, publisher: int) -> None:
        request = 0
        with Api(self.url) as api:
            while not self._cut.is_set():
                request += 1
                names = [f"{publisher}-{request}-{n}" for n in range(EVENTS_A_REQUEST)]
                try:
                    answer = api.post([event(self.topic, name) for name in names])
                except httpx2.TransportError:
                    continue
                if answer.status_code == httpx2.codes.OK:
                    self.answered.update(names)

    def stop(self) -> None:
        """No more requests; those under way go on."""
        self._cut.set()

    def join(self) -> None:
        """Waits for the answers to those under way."""
        self.stop()
        for thread in self._threads:
            if thread.ident:
                thread.join()


def kill(server: Postgres) -> None:
    """kill -9 of PostgreSQL. Its children are in sessions of their own; they end with the use of the disk."""
    assert server.process
    server.process.kill()
    server.process.wait()


def cut_power_under_load(disk: Disk, server: Postgres, traffic: Traffic) -> None:
    """Publishes, cuts the power in the midst of it, and mounts what is left of the disk."""
    traffic.start()
    eventually(lambda: len(traffic.answered) >= ANSWERED_BEFORE_THE_CUT, timeout=60)
    disk.cut_off()
    traffic.stop()
    kill(server)
    disk.unmount()
    disk.mount()


def stored(api: Api, topic: str) -> set[str]:
    """The ids of every event of the topic that is received, once none is in flight."""
    eventually(lambda: api.http.get("/stats").status_code == httpx2.codes.OK, timeout=60)
    eventually(lambda: api.stats()["in_flight"] == 0, timeout=60)
    return {each["event_id"] for page in api.event_pages(topic=topic, limit=10_000) for each in page["events"]}


def verified(stack: Stack) -> str:
    """The table of `chronicle verify`; fails where an invariant is broken."""
    command = [sys.executable, "-m", "chronicle", "verify"]
    result = subprocess.run(command, env=stack.environment, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def server(disk: Disk) -> Iterator[Postgres]:
    """A PostgreSQL on that disk."""
    home = disk.mounted_on / "home"
    home.mkdir(mode=0o711)
    server = Postgres(home)
    start(server)
    yield server
    stop_server(server)


@pytest.fixture
def stack(server: Postgres, tmp_path: Path) -> Iterator[Stack]:
    """All the rest, on another disk; it may publish into a database that loses."""
    stack = Stack(tmp_path / "stack", env={"DATABASE_URL": server.url, "CHRONICLE_ALLOW_UNSAFE_DATABASE": "true"})
    stack.start()
    yield stack
    stack.close()


@pytest.fixture
def traffic(stack: Stack) -> Iterator[Traffic]:
    """Publishers that have not begun yet."""
    traffic = Traffic(stack.url)
    yield traffic
    traffic.join()


def test_a_power_cut_loses_nothing_that_was_answered_200(
    disk: Disk, server: Postgres, stack: Stack, traffic: Traffic
) -> None:
    cut_power_under_load(disk, server, traffic)
    start(server)
    traffic.join()
    with Api(stack.url) as api:
        assert traffic.answered - stored(api, traffic.topic) == set()
        eventually(lambda: api.post([event(fresh())]).status_code == httpx2.codes.OK)
    assert "checks hold" in verified(stack)


def test_without_fsync_a_power_cut_loses_events(disk: Disk, server: Postgres, stack: Stack, traffic: Traffic) -> None:
    stop_server(server)
    os.sync()
    start_with(server, fsync="off")
    cut_power_under_load(disk, server, traffic)
    try:
        start_with(server, fsync="off")
    except AssertionError:
        assert server.process
        assert server.process.poll(), server.log.tail()
        return  # too broken to start at all: that is a loss, too
    traffic.join()
    with Api(stack.url) as api:
        assert traffic.answered - stored(api, traffic.topic)
