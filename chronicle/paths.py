"""Paths with names in them, matched before they are decoded: an escaped slash is then part of a name, and stays so."""

from __future__ import annotations

import functools
import re
from urllib.parse import unquote_to_bytes

from starlette.types import Scope


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]*)", re.escape(template)))


def names(template: str, scope: Scope) -> dict[str, str] | None:
    """What stands in the path of a request where a template like `/events/{topic}` has names; None where it differs.

    A name may be empty. Bytes that are not UTF-8 become lone surrogates, which no valid name has.
    """
    found = _pattern(template).fullmatch(scope["raw_path"].decode("latin-1"))
    if found is None:
        return None
    return {name: unquote_to_bytes(text).decode(errors="surrogateescape") for name, text in found.groupdict().items()}
