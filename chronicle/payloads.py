"""What JSON text PostgreSQL can store and every reader can take, found out without building what the text describes.

16 MiB of `[],[],…` would be 400 MB of Python lists. Here passes in C shrink the text to what matters (brackets,
numbers, escapes), so that time and memory stay in proportion to its length.
"""

from __future__ import annotations

import re
from itertools import accumulate

MAX_DEPTH = 100
MAX_NUMBER_LENGTH = 400
MAX_EXPONENT = 400
STRETCH = 64 * 2**10

NOT_STORABLE = "a NUL character or half a surrogate pair cannot be stored"
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
NOT_A_NUMBER = (
    f"a number beyond 1.8e308, of more than {MAX_NUMBER_LENGTH} digits, or with an exponent beyond {MAX_EXPONENT}"
)

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STRINGS = re.compile(rb'(?:[^"]*+"[^"\\]*+(?:\\.[^"\\]*+)*+"){1,5000}+|[^"]++', re.DOTALL)
"""A stretch of text with so many strings: what `sub` needs for its pieces is then little, whatever the text."""

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]

_LARGE_NUMBER = re.compile(rb"(?<![0-9.])(?:[0-9.]++[eE][+-]?[0-9]{3,}|[0-9.]{200,}+(?:[eE][+-]?[0-9]+)?)")
"""Numbers of 200 digits and exponents of three: the others are within bounds."""

# An escape begins at an odd backslash: a pair of them is a backslash of the text.
_ESCAPE = rb"(?<!\\)((?:\\\\)*+)\\u"
_PAIR = re.compile(_ESCAPE + rb"[dD][89abAB]..\\u[dD][c-fC-F]..", re.DOTALL)
_HALF = re.compile(_ESCAPE + rb"[dD][89a-fA-F]..", re.DOTALL)
_NOT_STORABLE = re.compile(_ESCAPE + rb"(?:0000|[dD][89a-fA-F])")
_MAYBE_NOT_STORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")

_DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
_LONG_NUMBER = b"0" * 200


def suspect(content: bytes) -> bool:
    """Whether JSON text may hold what `problem` has to look for closely: an escape, a very large or long number.

    Errs on the side of yes; few passes in C, where a regular expression cost five times as much. To look for one byte
    costs a twentieth of looking for two; to look from behind, half of looking from the front.
    """
    figures = content.translate(_DIGITS, b"+-.")
    return figures.rfind(b"0e000") >= 0 or _LONG_NUMBER in figures or (b"\\" in content and b"\\u" in content)


def problem(content: bytes) -> tuple[str, str] | None:
    """Why a JSON value, as well-formed UTF-8, cannot be stored or read back: a type of problem and a message."""
    closely = suspect(content)
    if content.count(b"{") + content.count(b"[") <= MAX_DEPTH and not closely:
        return None
    bare = b"".join([_STRING.sub(b"", stretch[0]) for stretch in _STRINGS.finditer(content)])
    brackets = bare.translate(None, _NOT_BRACKETS)
    if len(brackets) > MAX_DEPTH and _depth(brackets) > MAX_DEPTH:
        return "json_too_deep", TOO_DEEP
    if closely and not all(_in_range(number[0]) for number in _LARGE_NUMBER.finditer(bare)):
        return "number_out_of_range", NOT_A_NUMBER
    return ("string_not_storable", NOT_STORABLE) if closely and not storable(content) else None


def _depth(brackets: bytes) -> int:
    """How deep they nest. Stretch by stretch: one pass in C lets no other thread run, here for half a second."""
    depth = deepest = 0
    for start in range(0, len(brackets), STRETCH):
        steps = map(_STEPS.__getitem__, brackets[start : start + STRETCH])
        depths = list(accumulate(steps, initial=depth))
        depth, deepest = depths[-1], max(deepest, max(depths))  # noqa: PLW3301 (each in C)
    return deepest


def storable(content: bytes) -> bool:
    """Whether no string in the JSON text has an escaped NUL or half a surrogate pair; of doubled keys, both count."""
    if not _MAYBE_NOT_STORABLE.search(content):
        return True
    return not _NOT_STORABLE.search(_PAIR.sub(rb"\1", content))


def with_nul_for_half_pairs(content: bytes) -> bytes:
    """The JSON text with an escaped NUL wherever it has half a surrogate pair."""
    return _HALF.sub(rb"\1\\u0000", _PAIR.sub(rb"\1.", content))


def _in_range(number: bytes) -> bool:
    mantissa, _, exponent = number.lower().partition(b"e")
    exponent = exponent.lstrip(b"+-").lstrip(b"0")
    if (
        len(mantissa.replace(b".", b"")) > MAX_NUMBER_LENGTH
        or len(exponent) > 3
        or int(exponent or b"0") > MAX_EXPONENT
    ):
        return False
    return float(number) != float("inf")
