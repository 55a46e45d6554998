"""payloads: the passes over the text find what a reader of the values would find."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronicle import payloads

STRINGS = st.lists(
    st.sampled_from(
        ["\\\\", '\\"', "\\u0000", "\\ud83d", "\\uDE00", "\\ud83d\\ude00", "\\u0041", "u0000", "a", "[", "}", "1e999"]
    ),
    max_size=5,
).map(lambda parts: f'"{"".join(parts)}"')
NUMBERS = [
    *["0", "-1", "1e5", "1e308", "1e309", "-1e400", "1E+310", "1e-500", "12.5e-3", "9" * 199, "9" * 309],
    *["9" * 250 + "e99", "9" * 199 + "e99", "0." + "1" * 399, "0." + "1" * 400, "1e" + "0" * 30],
    *["1E+" + "0" * 30 + "1", "1e-400", "1e-401", "0e401", "1e" + "9" * 5000],
]
JSON = st.recursive(
    STRINGS | st.sampled_from(NUMBERS) | st.just("null"),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(STRINGS, inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{key}:{value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=15,
)


def number(text: str) -> None:
    mantissa, _, exponent = text.lower().lstrip("-").partition("e")
    digits, power = mantissa.replace(".", ""), float(exponent or 0)
    if len(digits) > 400 or abs(power) > 400 or abs(float(text)) == float("inf"):
        raise ValueError


def readable(value: Any) -> bool:
    if isinstance(value, str):
        return not re.search("[\0\ud800-\udfff]", value)
    return not isinstance(value, list | tuple) or all(map(readable, value))


def accepted(text: str) -> bool:
    try:
        return readable(json.loads(text, parse_int=number, parse_float=number, object_pairs_hook=list))
    except ValueError:
        return False


@settings(max_examples=500)
@given(JSON)
def test_what_is_storable_is_what_a_reader_could_keep(text: str) -> None:
    content = text.encode()
    found = payloads.problem(content)
    assert (found is None) == accepted(text)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_in_range_where_a_reader_could_keep_it(number: str) -> None:
    assert (payloads.problem(f"[{number}]".encode()) is None) == accepted(number)


@pytest.mark.parametrize(("deeper", "allowed"), [(39, True), (40, True), (41, False)])
def test_depth_is_counted_from_stretch_to_stretch(deeper: int, allowed: bool) -> None:
    begin, end = payloads.MAX_DEPTH - 40, payloads.STRETCH
    content = "[" * begin + "[]," * end + "[" * deeper + "]" * deeper + "]" * begin
    assert (payloads.problem(content.encode()) is None) == allowed


@given(st.integers(1, 300), st.sampled_from(["[", '{"a":', '[{"}]":', '["[",']))
def test_depth_is_counted_outside_strings(levels: int, opening: str) -> None:
    closing = "".join({"[": "]", "{": "}"}[char] for char in reversed(re.sub('"[^"]*"', "", opening)) if char in "[{")
    content = (opening * levels + "1" + closing * levels).encode()
    found = payloads.problem(content)
    assert (found is None) == (levels * len(closing) <= payloads.MAX_DEPTH)
