"""Settings, cursors, batch ids and logs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chronicle import broker, logs, runfile, screen
from chronicle.errors import ChronicleError, InvalidRequest, SettingsError
from chronicle.ledger import new_batch_id
from chronicle.settings import Settings
from query import audit, cursor, events


def test_settings_have_the_defaults_of_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKER_COUNT", "EVENT_COUNT", "DUPLICATE_RATIO", "BATCH_SIZE", "AGGREGATOR_URL", "CHRONICLE_HOME"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings.load()
    assert (settings.worker_count, settings.event_count, settings.duplicate_ratio) == (4, 20_000, 0.3)
    assert (settings.batch_size, settings.aggregator_url) == (1000, "http://localhost:8080")
    assert str(settings.chronicle_home) == ".chronicle"


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORKER_COUNT", "0"), ("WORKER_COUNT", "many"), ("DUPLICATE_RATIO", "1.5"), ("BATCH_SIZE", "-1")],
)
def test_a_setting_that_does_not_fit_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        Settings.load()


@pytest.mark.parametrize("content", ["", "[]", '{"api": "x"}', '{"api": null}', '{"api": {"pid": 1'])
def test_a_run_json_that_is_none_says_that_nothing_runs(content: str, tmp_path: Path) -> None:
    runfile.path(tmp_path).write_text(content)
    assert runfile.read(tmp_path) == {}


def test_an_empty_setting_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHRONICLE_HOME", "DATABASE_URL", "WORKER_COUNT"):
        monkeypatch.setenv(name, "")
    settings = Settings.load()
    assert (str(settings.chronicle_home), settings.database_url, settings.worker_count) == (".chronicle", None, 4)


@pytest.mark.parametrize("connect", [broker.connect, broker.connect_async])
@pytest.mark.parametrize(
    "url", ["nonsense", "redis://h/0?db=x", "redis://h/0?foo=bar", "rediss://h?ssl_cert_reqs=x", "redis://a..b"]
)
def test_a_redis_url_that_no_connection_can_be_made_of_is_refused_before_one_is_opened(
    url: str, connect: Callable[[str], object]
) -> None:
    with pytest.raises(ChronicleError, match="REDIS_URL cannot be read"):
        connect(url)


def test_an_unknown_setting_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHRONICLE_MAX_EVENT", "5")
    with pytest.raises(SettingsError, match="CHRONICLE_MAX_EVENT is not a setting"):
        Settings.load()


def test_a_cursor_comes_back_as_the_place_that_it_was() -> None:
    place = events.Place(datetime(2025, 1, 1, 0, 0, 0, 7, UTC), uuid.uuid4(), 3)
    assert cursor.decode(cursor.encode(place), events.Place) == place
    assert cursor.decode(None, events.Place) is None


NOW = datetime(2025, 1, 1, tzinfo=UTC)
SOME_BATCH = uuid.UUID(int=7)
NO_CURSORS = [
    *["", "x", "!!!!", "é", "AAAA"],
    cursor.encode(audit.Place(NOW, 1, 1)),
    cursor.encode(events.Place(NOW, SOME_BATCH, 2**40)),
    cursor.encode(events.Place(NOW, SOME_BATCH, -1)),
]


@pytest.mark.parametrize("text", NO_CURSORS)
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        cursor.decode(text, events.Place)
    assert caught.value.problem["loc"] == ["query", "cursor"]


def test_batch_ids_are_uuids_of_version_7_in_order_of_time() -> None:
    ids = [new_batch_id() for _ in ticks(1000)]
    assert len(set(ids)) == 1000
    assert {(i.version, i.variant) for i in ids} == {(7, uuid.RFC_4122)}
    assert ids == sorted(ids)


def ticks(count: int) -> Iterator[int]:
    """That many moments of the clock, a microsecond apart at least."""
    for number in range(count):
        since = time.time_ns()
        while time.time_ns() < since + 1000:
            pass
        yield number


def test_user_text_cannot_forge_a_log_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("test")
    logs.get("test").warning("refused", text="a\nforged line \x1b[31m" + "x" * 10_000)
    logs.flush()
    [line] = capfd.readouterr().err.splitlines()
    assert "\\\\nforged" in line
    assert "\x1b" not in line
    assert len(line) < 1000


@pytest.mark.parametrize("name", [":rocket:", "[bold]", "x" * 500])
def test_a_table_shows_a_name_as_it_is_and_whole(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = screen.table("number", "event_id", title=name[:20])
    table.add_row("1", name)
    screen.console().print(table)
    screen.console(stderr=True).print(name, soft_wrap=True)
    shown = capsys.readouterr()
    rows = [line.split("│")[2].strip() for line in shown.out.splitlines() if "│" in line]
    assert "".join(rows) == name
    assert shown.out.splitlines()[0].strip() == name[:20]
    assert shown.err == name + "\n"


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert screen.clean("größe 👍") == "größe 👍"
    assert screen.clean("a\x1b[2J\nb\x9b\ud800") == "a�[2J�b��"
