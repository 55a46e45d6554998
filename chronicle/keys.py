"""API keys: read from the environment and a file, kept as digests, asked for as soon as others can call."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from chronicle.errors import SettingsError
from chronicle.settings import Settings

SCOPES = ("publish", "read", "admin")
"""What a key may be for; admin includes the others."""

NONE = "none"
SHORTEST_SECRET = 16
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECRET = re.compile(r"[!-~]+")

HOW = (
    "set CHRONICLE_API_KEYS='name:publish+read:SECRET' or CHRONICLE_API_KEYS_FILE (scopes publish, read, admin; "
    f"a secret has at least {SHORTEST_SECRET} characters), or CHRONICLE_API_KEYS={NONE} where something before it "
    "checks who calls"
)


@dataclass(frozen=True)
class Key:
    """A key as the service knows it: never the secret itself."""

    name: str
    scopes: frozenset[str]
    digest: bytes = field(repr=False)

    def allows(self, scope: str) -> bool:
        """Whether it may do what asks for this scope."""
        return scope in self.scopes or "admin" in self.scopes


Keyring = tuple[Key, ...]
"""The keys that are valid now; without any, everybody may do everything."""


def load(settings: Settings, host: str) -> Keyring:
    """The keys of CHRONICLE_API_KEYS and CHRONICLE_API_KEYS_FILE, for a service that listens on `host`.

    Raises SettingsError, which never contains a secret, for an entry that is not valid, and where there is no key
    although others than this machine may call.
    """
    text = settings.chronicle_api_keys.get_secret_value() if settings.chronicle_api_keys else ""
    open_on_purpose = text.strip() == NONE
    keyring = _read("CHRONICLE_API_KEYS", "" if open_on_purpose else text)
    if name := settings.chronicle_api_keys_file:
        variable = f"CHRONICLE_API_KEYS_FILE {name}"
        keyring += _read(variable, _content(variable, Path(name))) or _none_in(variable)
    if open_on_purpose and keyring:
        raise SettingsError(f"CHRONICLE_API_KEYS is {NONE}, and CHRONICLE_API_KEYS_FILE names keys: unset one of them")
    if len({key.digest for key in keyring}) < len(keyring):
        raise SettingsError("two API keys have the same secret")
    if not keyring and not open_on_purpose and not _is_loopback(host):
        raise SettingsError(f"{host} is open to others, and there are no API keys: {HOW}")
    return keyring


def bearer(settings: Settings) -> dict[str, str]:
    """The header by which a client of ours sends CHRONICLE_API_KEY; none where it is not set. Raises SettingsError."""
    secret = settings.chronicle_api_key.get_secret_value().strip() if settings.chronicle_api_key else ""
    if secret and not SECRET.fullmatch(secret):
        raise SettingsError("CHRONICLE_API_KEY has characters that are in no key")
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def _content(variable: str, path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SettingsError(f"{variable} cannot be read: {reason}") from None
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def _none_in(variable: str) -> Keyring:
    raise SettingsError(f"{variable} names no key")


def _read(variable: str, text: str) -> Keyring:
    """The keys of entries `name:scope+scope:secret`, separated by commas or whitespace."""
    entries = [entry for entry in re.split(r"[,\s]+", text) if entry]
    return tuple(_key(f"{variable}, entry {number}", entry) for number, entry in enumerate(entries, 1))


def _key(place: str, entry: str) -> Key:
    """One key. What is wrong with it is said without repeating it: any part may be the secret."""
    name, _, rest = entry.partition(":")
    scopes, _, secret = rest.partition(":")
    if not NAME.fullmatch(name) or not secret:
        raise SettingsError(f"{place}: not name:scope+scope:secret")
    if not set(scopes.split("+")) <= set(SCOPES):
        raise SettingsError(f"{place}: the scopes are {', '.join(SCOPES)}, joined by +")
    if len(secret) < SHORTEST_SECRET or not SECRET.fullmatch(secret):
        raise SettingsError(f"{place}: a secret has at least {SHORTEST_SECRET} characters, all of them printable ASCII")
    return Key(name, frozenset(scopes.split("+")), digest(secret.encode()))


def digest(secret: bytes) -> bytes:
    """What is kept of a secret: enough to recognise it. A slow hash would add nothing to a random one."""
    return hashlib.sha256(secret).digest()


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket that listens on `host`; a name that means nothing cannot listen."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    addresses = (ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found)
    # Python says so of ::ffff:127.0.0.1 from 3.13 on.
    return all((getattr(each, "ipv4_mapped", None) or each).is_loopback for each in addresses)
