"""As root: which ordinary user the embedded servers become, and how little of root they keep.

PostgreSQL refuses to run as root. Where a folder above the data or the programs is closed to that user (a checkout in
/root), the server keeps one Linux capability, the one that lets it pass; no folder is opened to anybody.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from chronicle.errors import StartError

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
SECBIT_NO_SETUID_FIXUP = 1 << 2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CLONE_NEWUSER = 0x10000000


@dataclass(frozen=True)
class Account:
    """The ordinary user that root's children become."""

    uid: int
    gid: int
    capability: int | None = None


def account_for(data: Path, programs: Iterable[Path]) -> Account | None:
    """The user for servers that keep `data` and run `programs`; None where this process is not root.

    It is the owner of the data where there is any, else nobody. Raises StartError where that user could not get there.
    """
    if os.geteuid() != 0:
        return None
    user = _owner(data) or _nobody()
    return Account(user.pw_uid, user.pw_gid, _needed_capability(user, data, list(programs)))


def before_exec(
    death_signal: signal.Signals, account: Account | None, *, own_namespace: bool = False
) -> Callable[[], None]:
    """What a child does between fork and exec: becomes `account`, and dies with its parent (on Linux).

    `own_namespace`: the child sees itself as nobody, for programs that insist on a user who has a name.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def prepare() -> None:
        os.umask(0o077)
        if account:
            _become(libc, account)
        if own_namespace:
            _enter_namespace(libc)
        if sys.platform == "linux":
            # After the change of user, which clears it.
            _prctl(libc, PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:
                os._exit(1)

    return prepare


def nameless() -> bool:
    """Whether this process runs as a user that the system has no name for (`docker run --user 12345`)."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return True
    return False


def _owner(data: Path) -> pwd.struct_passwd | None:
    try:
        owner = data.stat().st_uid
        return pwd.getpwuid(owner) if owner else None
    except (OSError, KeyError):
        return None


def _nobody() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise StartError("PostgreSQL does not run as root, and there is no user `nobody` to run it as") from None


def _needed_capability(user: pwd.struct_passwd, data: Path, programs: list[Path]) -> int | None:
    """The capability without which `user` could not reach its files."""
    closed = [folder for path in (data, *programs) for folder in path.parents if not _may_pass(user, folder)]
    locked = [program for program in programs if not _may_pass(user, program)]
    if not closed and not locked:
        return None
    held = _held_capabilities()
    for capability in (CAP_DAC_OVERRIDE,) if locked else (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        if held >= {capability, CAP_SETPCAP}:
            return capability
    raise StartError(
        f"the user {user.pw_name}, as whom root runs the embedded servers, may not enter {(closed + locked)[0]}: "
        "run as an ordinary user, or keep the checkout and CHRONICLE_HOME where other users may go"
    )


def _may_pass(user: pwd.struct_passwd, path: Path) -> bool:
    """Whether `user` may enter the folder, or run the program."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return True  # ours to make
    bit = stat.S_IXOTH
    if status.st_uid == user.pw_uid:
        bit = stat.S_IXUSR
    elif status.st_gid == user.pw_gid:
        bit = stat.S_IXGRP
    return bool(status.st_mode & bit)


def _held_capabilities() -> set[int]:
    """The capabilities that this process can hand on to a child."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return set()
    fields = (line.partition(":") for line in lines if line.startswith("Cap"))
    masks = {name: int(value, 16) for name, _, value in fields}
    both = masks["CapPrm"] & masks["CapBnd"]
    return {number for number in range(both.bit_length()) if both >> number & 1}


def _become(libc: ctypes.CDLL, account: Account) -> None:
    os.setgroups([])
    os.setgid(account.gid)
    if account.capability is None:
        os.setuid(account.uid)
        return
    # Without it access(2), by which initdb looks for its programs, answers as if the capability were not there.
    _prctl(libc, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setuid(account.uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    bit = 1 << account.capability
    # Effective, permitted and inheritable; the second half is for capabilities above 31.
    _check(libc.capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)))
    _prctl(libc, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, account.capability)


def _enter_namespace(libc: ctypes.CDLL) -> None:
    uid, gid, nobody = os.geteuid(), os.getegid(), pwd.getpwnam("nobody")
    _check(libc.unshare(CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{nobody.pw_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{nobody.pw_gid} {gid} 1")


def _prctl(libc: ctypes.CDLL, option: int, *numbers: int) -> None:
    padded = (*numbers, 0, 0, 0, 0)[:4]
    _check(libc.prctl(option, *(ctypes.c_ulong(number) for number in padded)))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
