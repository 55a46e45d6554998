"""Settings, read from the environment once and passed to whoever needs them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from chronicle.errors import SettingsError

PREFIX = "CHRONICLE_"

METRICS_FOLDER, METRICS_PROCESS = "PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROC_PROCESS"
"""Set by `chronicle up` where several processes answer at one address: each keeps its metrics in a file of this
folder, and whoever is asked adds them up. A file has the name of its process, not its pid, which counts on when it is
started again."""


class Settings(BaseSettings):
    """What the environment says. Names in capitals are the variables; each has a default that works.

    A variable that is set but empty counts as unset: an empty CHRONICLE_HOME is not the current directory.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    database_url: str | None = Field(default=None, description="PostgreSQL; unset: an embedded one in CHRONICLE_HOME")
    query_database_url: str | None = Field(
        default=None, description="a PostgreSQL replica that the query service reads; unset: DATABASE_URL"
    )
    redis_url: str | None = Field(default=None, description="Redis or Valkey; unset: an embedded one in CHRONICLE_HOME")
    worker_count: int = Field(default=4, ge=1, le=64, description="projector workers in a projector process")
    chronicle_home: Path = Field(
        default=Path(".chronicle"), description="data and logs of the embedded servers, run.json"
    )
    aggregator_url: str = Field(
        default="http://localhost:8080", description="publisher, tail, status: where the service is"
    )
    event_count: int = Field(default=20_000, ge=0, description="publisher: events to generate")
    duplicate_ratio: float = Field(default=0.3, ge=0, lt=1, description="publisher: share of duplicates among them")
    batch_size: int = Field(default=1000, ge=1, description="publisher: events a request")
    chronicle_max_events: int = Field(default=10_000, ge=1, le=65_535, description="events a request at most")
    chronicle_max_body_bytes: int = Field(default=16 * 2**20, ge=1024, description="bytes of a request body at most")
    chronicle_max_waiting_bytes: int = Field(
        default=64 * 2**20,
        ge=1024,
        description="bytes of request bodies, being read or committed, in one command process at most",
    )
    chronicle_max_in_flight: int = Field(
        default=1_000_000, ge=1, description="events received and not yet projected at most; then publishing gets a 503"
    )

    chronicle_allow_unsafe_database: bool = Field(
        default=False, description="publish into a PostgreSQL that may lose what it has committed"
    )
    chronicle_api_keys: SecretStr | None = Field(
        default=None, description="keys that clients need, `name:scope+scope:secret`, or `none`"
    )
    chronicle_api_keys_file: str | None = Field(default=None, description="a file of more of them, one a line")
    chronicle_api_key: SecretStr | None = Field(default=None, description="publisher, tail, status: the key to send")

    @classmethod
    def load(cls) -> Self:
        """The settings of this process's environment.

        Raises SettingsError, naming the variable, for a value that does not fit and for an unknown name that
        begins with CHRONICLE_ (a spelling mistake would otherwise be silently ignored).
        """
        known = {name.upper() for name in cls.model_fields}
        for name in os.environ:
            if name.upper().startswith(PREFIX) and name.upper() not in known:
                raise SettingsError(f"{name} is not a setting; known are {', '.join(sorted(known))}")
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise SettingsError(f"{str(first['loc'][0]).upper()}: {first['msg']}") from None
