"""The `chronicle` command. The only module that joins the services with the shared package."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from chronicle import keys, logs, runfile, screen
from chronicle.errors import ChronicleError, SettingsError
from chronicle.settings import Settings
from chronicle.up import ports

app = typer.Typer(
    help="ChronicleWeaver: a publish-subscribe log aggregator that loses nothing and counts everything exactly once.",
    epilog="Settings come from the environment; the README lists them. Start with: chronicle up",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MOST = 8
"""Processes of a service in one `chronicle up`: as many as the embedded PostgreSQL has connections for, with up to ten
workers in each projector."""


def _utf8(value: str | list[str] | None) -> str | list[str] | None:
    """What an argument says, as it is. Raises ChronicleError where its bytes are no text."""
    for word in [value] if isinstance(value, str) else value or []:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ChronicleError(f"{word!r} is not UTF-8") from None
    return value


Host = Annotated[str, typer.Option(help="Address to listen on.", callback=_utf8)]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]


def main() -> None:
    """Runs the command line; an error of ours is one line and exit code 1."""
    screen.guard()
    try:
        app()
    except (ChronicleError, psycopg.Error) as error:
        logs.flush()
        print(f"chronicle: {_first_line(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return screen.clean(lines[0]) if lines else type(error).__name__


@app.command()
def up(
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_processes: Annotated[
        int | None, typer.Option(help="Processes that answer HTTP  [default: one for four cores]", min=1, max=MOST)
    ] = None,
    projector_processes: Annotated[
        int | None,
        typer.Option(help="Processes of WORKER_COUNT workers  [default: one for eight cores]", min=1, max=MOST),
    ] = None,
) -> None:
    """Run everything here: database, broker, migrations, API and projector, until Ctrl-C.

    PostgreSQL and Valkey are embedded ones in CHRONICLE_HOME unless DATABASE_URL and REDIS_URL are set.
    """
    from chronicle.up import supervisor  # noqa: PLC0415

    logs.configure("supervisor")
    settings = Settings.load()
    keys.load(settings, host)
    supervisor.run(
        settings,
        host,
        port,
        api_processes=api_processes or _share_of_cores(4),
        projector_processes=projector_processes or _share_of_cores(8),
    )


def _share_of_cores(cores: int) -> int:
    """One process for so many cores; PostgreSQL needs the most of them."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(max(usable // cores, 1), MOST)


@app.command()
def migrate() -> None:
    """Bring the database schema to what this version needs. Safe to run several times, and at once."""
    from chronicle import schema  # noqa: PLC0415

    logs.configure("migrate")
    schema.migrate(_database(Settings.load()))
    typer.echo(f"the schema is at {schema.head()}")


@app.command()
def command(host: Host = "127.0.0.1", port: Port = 8081) -> None:
    """Run the command service alone: POST /publish, receiving and dispatching events."""
    from chronicle import http  # noqa: PLC0415
    from command.app import create_app  # noqa: PLC0415

    logs.configure("command")
    settings = Settings.load()
    app = create_app(settings, _database(settings), _redis(settings), keyring=keys.load(settings, host))
    http.serve(app, ports.listen(host, port), app.state.refuses)


@app.command()
def query(host: Host = "127.0.0.1", port: Port = 8082) -> None:
    """Run the query service alone: events, statistics and the audit trail."""
    from chronicle import http  # noqa: PLC0415
    from query.app import create_app  # noqa: PLC0415

    logs.configure("query")
    settings = Settings.load()
    keyring = keys.load(settings, host)
    broker = settings.redis_url or runfile.read(settings.chronicle_home).get("broker", {}).get("url")
    app = create_app(settings, _read_database(settings), broker, keyring=keyring)
    http.serve(app, ports.listen(host, port))


@app.command(hidden=True)
def api(fd: Annotated[int, typer.Option(help="A listening socket.")]) -> None:
    """Run command and query behind one front door on a socket that `up` opened."""
    from chronicle import http  # noqa: PLC0415
    from command.app import create_app as command_app  # noqa: PLC0415
    from query.app import create_app as query_app  # noqa: PLC0415

    logs.configure("api")
    settings = Settings.load()
    database_url, redis_url = _database(settings), _redis(settings)
    listener = socket.socket(fileno=fd)
    keyring = keys.load(settings, listener.getsockname()[0])
    command = command_app(settings, database_url, redis_url, keyring=keyring)
    query = query_app(settings, _read_database(settings), redis_url, keyring=keyring)
    http.serve(http.front_door(command, query), listener, command.state.refuses)


@app.command()
def projector(
    metrics_host: Annotated[
        str, typer.Option(help="Address to answer /metrics on: to everybody.", callback=_utf8)
    ] = "127.0.0.1",
    metrics_port: Annotated[
        int | None, typer.Option(help="Port to answer /metrics on  [default: none]", min=1, max=65535)
    ] = None,
    metrics_fd: Annotated[int | None, typer.Option(help="A listening socket for it.", hidden=True)] = None,
) -> None:
    """Run projector workers alone: WORKER_COUNT of them; start as many such processes as you like."""
    from projector import run  # noqa: PLC0415

    logs.configure("projector")
    settings = Settings.load()
    listener = socket.socket(fileno=metrics_fd) if metrics_fd is not None else None
    if metrics_port is not None:
        listener = ports.listen(metrics_host, metrics_port)
    run.run(_database(settings), _redis(settings), settings.worker_count, listener)


@app.command()
def publish(
    *,
    file: Annotated[
        Path | None, typer.Option(help="Publish this file of JSON Lines, one event a line; - is standard input.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Where to send  [default: AGGREGATOR_URL]")] = None,
    events: Annotated[int | None, typer.Option(help="Events to generate  [default: EVENT_COUNT]", min=0)] = None,
    duplicates: Annotated[
        float | None, typer.Option(help="Share of duplicates among them  [default: DUPLICATE_RATIO]", min=0, max=0.99)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Events a request  [default: BATCH_SIZE]", min=1)] = None,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.", min=1, max=64)] = 4,
    seed: Annotated[int | None, typer.Option(help="Generate the same events again.")] = None,
) -> None:
    """Publish events: generated ones, or a file of yours. Retries what fails, keeps what was not accepted.

    Exit code 0 only where every event was accepted; the others are in a file that --file takes.
    """
    from publisher import run  # noqa: PLC0415

    settings = Settings.load()
    options = run.Options(
        url=url or settings.aggregator_url,
        event_count=settings.event_count if events is None else events,
        duplicate_ratio=settings.duplicate_ratio if duplicates is None else duplicates,
        batch_size=batch_size or settings.batch_size,
        file=file,
        seed=seed,
        concurrency=concurrency,
        headers=keys.bearer(settings),
    )
    raise typer.Exit(run.publish(options))


@app.command()
def tail(
    topics: Annotated[
        list[str] | None, typer.Argument(help="Only these topics.", metavar="[TOPIC]...", callback=_utf8)
    ] = None,
    after: Annotated[str, typer.Option(help="A position, 0 for all there is, or now.", callback=_utf8)] = "now",
    url: Annotated[str | None, typer.Option(help="Where to listen  [default: AGGREGATOR_URL]")] = None,
) -> None:
    """Print processed events as they come, until Ctrl-C: readable on a terminal, JSON Lines in a pipe.

    A lost connection is made again, and nothing is skipped or repeated.
    """
    from chronicle import tail as follower  # noqa: PLC0415

    settings = Settings.load()
    follower.tail(url or settings.aggregator_url, topics or [], after, keys.bearer(settings))


failed = typer.Typer(no_args_is_help=True, help="Show events that could not be projected, or try them again.")
app.add_typer(failed, name="failed")

Topic = Annotated[str | None, typer.Option(help="Only of this topic.", callback=_utf8)]
EventId = Annotated[str | None, typer.Option(help="Only with this event_id.", callback=_utf8)]


@failed.command("list")
def failed_list(topic: Topic = None, event_id: EventId = None) -> None:
    """Show failed events and their errors."""
    from projector import failed as events  # noqa: PLC0415

    events.show(_database(Settings.load()), topic, event_id)


@failed.command("retry")
def failed_retry(topic: Topic = None, event_id: EventId = None) -> None:
    """Try failed events again; what succeeds is stored, recorded and counted like any other event.

    Exit code 1 where some failed again.
    """
    from projector import failed as events  # noqa: PLC0415

    raise typer.Exit(0 if events.retry(_database(Settings.load()), topic, event_id) else 1)


@app.command()
def verify() -> None:
    """Check every invariant against the database and print a table; exit code 1 where one is broken."""
    from chronicle import verify as checks  # noqa: PLC0415

    settings = Settings.load()
    raise typer.Exit(0 if checks.report(_database(settings), _redis(settings)) else 1)


@app.command()
def rebuild() -> None:
    """Make the read models again from the ledger, while the services run."""
    from chronicle import rebuild as models  # noqa: PLC0415

    logs.configure("rebuild")
    models.rebuild(_database(Settings.load()))
    typer.echo("the read models are made again from the ledger")


@app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Really delete every event, fact and counter.")] = False,
) -> None:
    """Empty ledger, read models and queue, also while the services run."""
    from chronicle import rebuild as models  # noqa: PLC0415

    if not yes:
        raise ChronicleError("this deletes every event for ever; if you mean it: chronicle reset --yes")
    settings = Settings.load()
    models.reset(_database(settings), _redis(settings))
    typer.echo("ledger, read models and queue are empty")


@app.command()
def status() -> None:
    """Show what runs, and how much is received, processed and in flight."""
    from chronicle import status as report  # noqa: PLC0415

    settings = Settings.load()
    raise typer.Exit(0 if report.show(settings) else 1)


def _database(settings: Settings) -> str:
    from chronicle import database  # noqa: PLC0415

    return database.readable(_url("DATABASE_URL", settings.database_url, "postgres", settings))


def _read_database(settings: Settings) -> str:
    from chronicle import database  # noqa: PLC0415

    if settings.query_database_url:
        return database.readable(settings.query_database_url, "QUERY_DATABASE_URL")
    return _database(settings)


def _redis(settings: Settings) -> str:
    return _url("REDIS_URL", settings.redis_url, "broker", settings)


def _url(variable: str, given: str | None, part: str, settings: Settings) -> str:
    """The variable's value, or what the `chronicle up` of this home runs."""
    home = settings.chronicle_home
    found = given or runfile.read(home).get(part, {}).get("url")
    if not found:
        raise SettingsError(f"{variable} is not set, and no `chronicle up` runs on CHRONICLE_HOME={home}")
    return found
