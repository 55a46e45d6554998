"""PostgreSQL: connections, migrations, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from chronicle import arrays, pooler, roles
from chronicle.errors import ChronicleError, DatabaseAway, NotAllowed, NotDurable, SchemaBehind, SettingsError

STATEMENT_SECONDS = 20
LOCK_SECONDS = 10
GRACE_SECONDS = 5.0
"""How much longer than a statement may take its answer is waited for."""

CANCEL_SECONDS = 1.0

WRITER_LOCKS, LANES = 0x43570001, 1024

CONNECTION: dict[str, Any] = {
    "client_encoding": "UTF8",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
SESSION = {
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "lock_timeout": f"{LOCK_SECONDS}s",
    "idle_in_transaction_session_timeout": "15s",
}
"""What each session of ours sets, unless the URL says otherwise: an end to everything that could wait for ever."""

PINNED = {"default_transaction_isolation": r"read\ committed", "search_path": "public"}
"""What each session is given after the options of the URL, so that neither these, nor the database, nor the user can
change it. Statements that wait for a rebuild's swap, or for each other, count on seeing what was committed meanwhile;
and the tables are the same ones whatever role looks for them.

Not by BEGIN_SESSION: a hot standby refuses even that one where SERIALIZABLE is the default.
"""


def readable(url: str, variable: str = "DATABASE_URL") -> str:
    """The URL as it is. Raises SettingsError where libpq cannot read it; whether anybody answers there is not asked."""
    try:
        hosts = conninfo_to_dict(url).get("host") or ""
        for host in str(hosts).split(","):
            if not host.startswith("/"):  # the folder of a socket
                host.encode("idna")
    except (psycopg.ProgrammingError, UnicodeError) as error:
        raise SettingsError(f"{variable} cannot be read: {first_line(error)}") from None
    return url


def _options(service: str, url: str, **session: str) -> dict[str, Any]:
    """Connection parameters for a service."""
    given = conninfo_to_dict(readable(url)).get("options") or ""
    options = f"{_switches(SESSION | session)} {given} {_switches(PINNED)}"  # the last word counts
    return CONNECTION | {"application_name": f"chronicle-{service}", "options": options}


def _switches(settings: dict[str, str]) -> str:
    return " ".join(f"-c {name}={value}" for name, value in settings.items())


BEGIN_SESSION = """
SELECT set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), false),
       set_config('role', coalesce((
           SELECT rolname::text FROM pg_roles
           WHERE rolname = %(role)s::text AND pg_has_role(session_user, oid,
               CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END)
       ), current_setting('role')), false),
       set_config('DateStyle', 'ISO', false),
       set_config('TimeZone', 'UTC', false),
       extract(epoch FROM current_setting('statement_timeout')::interval)::float8,
       pg_backend_pid()
"""
"""What follows the connection. `synchronous_commit` is pinned, never `off`: what the database, the user or a later
reload of the configuration says cannot weaken the promise. `local`, `remote_write` and `remote_apply` stay, since each
waits for the disk here; what they choose is how to treat standbys. And the session takes the role of its service where
its user may; else, as before there were roles, it keeps the rights of its user. Times are written in one way, the one
that is read: options would not do, since libpq sends the environment's PGDATESTYLE and PGTZ behind them.
"""


def _begin_session(service: str) -> tuple[str, dict[str, str]]:
    return BEGIN_SESSION, {"role": roles.SERVICES.get(service, "")}


class Connection(psycopg.Connection[TupleRow]):
    """A session that is given up where PostgreSQL takes a statement and never answers.

    The time-outs of PostgreSQL end what it works on or waits for. A backend that was stopped, and a proxy whose other
    side is gone, keep a healthy connection and are silent. What has no time-out, as to wait for a synchronous standby,
    is ended: such sessions would pile up.
    """

    patience: float | None = STATEMENT_SECONDS + GRACE_SECONDS
    """Seconds for an answer; None: without end."""

    def wait(self, *given: Any, **options: Any) -> Any:
        """As psycopg's, with an end. Raises psycopg.OperationalError, and then the session is closed."""
        try:
            return super().wait(*given, **{"timeout": self.patience} | options)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            with suppress(psycopg.Error):
                self.cancel_safe(timeout=CANCEL_SECONDS)
            self.close()
            raise psycopg.OperationalError(f"no answer to a statement for {self.patience} s") from error


class AsyncConnection(psycopg.AsyncConnection[TupleRow]):
    """The same for a service that runs in an event loop."""

    patience: float | None = STATEMENT_SECONDS + GRACE_SECONDS

    async def wait(self, *given: Any, **options: Any) -> Any:
        """As psycopg's, with an end. Raises psycopg.OperationalError, and then the session is closed."""
        try:
            return await super().wait(*given, **{"timeout": self.patience} | options)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            await self.give_up()
            raise psycopg.OperationalError(f"no answer to a statement for {self.patience} s") from error

    async def give_up(self) -> None:
        """Closes it, and ends what the session may still wait for: a synchronous standby, say."""
        with suppress(psycopg.Error):
            await self.cancel_safe(timeout=CANCEL_SECONDS)
        await self.close()


def _patience(begun: tuple[Any, ...] | None) -> float | None:
    """A little more than the session gives a statement; takes the row of BEGIN_SESSION."""
    seconds = begun[-2] if begun else 0
    return seconds + GRACE_SECONDS if seconds else None


def connect(url: str, service: str, **session: str) -> Connection:
    """One connection in autocommit mode for a service (its name shows in pg_stat_activity).

    `session` are further settings of the session. Raises DatabaseAway where PostgreSQL or a session cannot be had.
    """
    with ours():
        connection = Connection.connect(url, autocommit=True, **_options(service, url, **session))
        try:
            begun = connection.execute(*_begin_session(service)).fetchone()
            pooler.refuse(connection.info, begun)
            connection.patience = _patience(begun)
        except BaseException:
            connection.close()
            raise
    arrays.register(connection)
    return connection


async def connect_async(url: str, service: str) -> AsyncConnection:
    """The same for a service that runs in an event loop."""
    with ours():
        connection = await AsyncConnection.connect(url, autocommit=True, **_options(service, url))
        try:
            begun = await (await connection.execute(*_begin_session(service))).fetchone()
            pooler.refuse(connection.info, begun)
            connection.patience = _patience(begun)
        except BaseException:
            await connection.close()
            raise
    arrays.register(connection)
    return connection


def read_pool(url: str, service: str, size: int) -> AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]:
    """A pool, not yet open, of at most `size` sessions that can only read.

    In autocommit mode: an answer is one statement, and so one snapshot. Not REPEATABLE READ, which would fix the
    snapshot before the statement's locks: one that waited for a rebuild's swap would then find its new tables empty.
    Statements are not prepared, so that each is planned for the filters that it has.
    """

    async def configure(connection: psycopg.AsyncConnection[TupleRow]) -> None:
        await connection.execute(*_begin_session(service))
        # Not an option: a URL with target_session_attrs=read-write would refuse the session.
        await connection.execute("SET default_transaction_read_only = on")

    return AsyncConnectionPool(
        url,
        kwargs=_options(service, url) | {"autocommit": True, "prepare_threshold": None},
        min_size=2,
        max_size=size,
        timeout=5,
        max_waiting=200,
        reconnect_timeout=5,
        configure=configure,
        open=False,
    )


LOST = (psycopg.OperationalError, pg.TransactionTimeout, pg.IdleInTransactionSessionTimeout)
"""What psycopg raises where it is the session or the server that fails: the last two end the session as well."""

BEYOND_LIMITS = (pg.ProgramLimitExceeded, pg.StatementTooComplex)
"""Of these, by psycopg's classes; but what is written is too much, for an index of the user's say."""


@contextmanager
def ours() -> Iterator[None]:
    """Turns psycopg's errors into ours: a lost or refused connection, a schema or a privilege that is missing.

    A server that only reads is a standby, or becomes one: the primary is elsewhere by now, or soon.
    """
    try:
        yield
    except BEYOND_LIMITS:
        raise
    except (*LOST, psycopg.InterfaceError, pg.ReadOnlySqlTransaction) as error:
        raise DatabaseAway(f"PostgreSQL cannot be used: {first_line(error)}") from error
    except (pg.UndefinedTable, pg.UndefinedColumn):
        raise SchemaBehind from None
    except pg.InsufficientPrivilege as error:
        raise NotAllowed(f"{first_line(error)}: run `chronicle migrate` as the owner of the tables") from error


NOT_ABOUT_DATA = ("0A", "25", "42", "XX")
"""Classes of SQLSTATE (PostgreSQL, appendix A): what it does not support, a transaction that may not write, a missing
table, column, function or right, and a corrupt index, say. All else is about values, or is what a trigger raises."""


def refuses_data(error: psycopg.Error) -> bool:
    """Whether it is about what is written, and would not befall other data."""
    if isinstance(error, BEYOND_LIMITS):
        return True
    return not isinstance(error, LOST) and (error.sqlstate or "")[:2] not in NOT_ABOUT_DATA


def as_ours(error: ChronicleError | psycopg.Error) -> ChronicleError:
    """The error, or what a client is told of one that `ours` lets through: PostgreSQL refuses what it is asked."""
    if isinstance(error, ChronicleError):
        return error
    refused = DatabaseAway(f"PostgreSQL refuses: {first_line(error)}")
    refused.__cause__ = error
    return refused


def first_line(error: BaseException) -> str:
    """What an error says, or is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def value(connection: psycopg.Connection[Any], statement: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> Any:
    """The one value of the one row that a statement gives."""
    row = connection.execute(statement, parameters).fetchone()
    return row and row[0]


TAKE_LANE = """
SELECT lane::int
FROM generate_series(0, %(lanes)s::int - 1) AS lane
WHERE pg_try_advisory_lock(%(space)s::int, lane)
LIMIT 1
"""


def lane_query(first: int) -> tuple[str, dict[str, int]]:
    """Statement and parameters that take the lowest free number for a writer, for as long as its session lasts.

    `first` keeps apart the numbers of workers (0) and of command processes (1).
    """
    return TAKE_LANE, {"lanes": LANES, "space": WRITER_LOCKS + first}


DURABILITY = """
SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM pg_settings
WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND reset_val = 'off'
"""
"""The settings that are off and must be on. `reset_val` is the database's own: our sessions pin theirs."""


def check_durability(off: Sequence[str]) -> None:
    """Takes the names that DURABILITY gives; raises NotDurable, naming them."""
    if off:
        raise NotDurable(
            f"PostgreSQL may lose what it has committed, for it has {' = off, '.join(off)} = off: turn that on, "
            "or set CHRONICLE_ALLOW_UNSAFE_DATABASE=true where the loss does not matter"
        )
