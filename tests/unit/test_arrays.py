"""Which event ids the ledger keeps as UUIDs: those that come back to the character, and no others."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronicle.arrays import uuids

ID = "0189d6a4-5c1e-7abc-8def-00112233aabb"


@given(st.lists(st.uuids(), min_size=1, max_size=20))
def test_uuids_as_postgresql_writes_them_are_packed(ids: list[uuid.UUID]) -> None:
    assert uuids([str(each) for each in ids]) == b"".join(b"\0\0\0\x10" + each.bytes for each in ids)


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        ["event-1"],
        [ID.upper()],
        [ID.replace("-", "")],
        ["{" + ID[1:-1] + "}"],
        [ID[:-1] + "g"],
        [ID[:-1] + " "],
        [ID[:-2] + "  "],
        [ID[:-1] + "٣"],
        [ID[:9] + "-" + ID[10:]],
        [ID, ID[:-1]],
        [ID[:-1], ID + ID[-1]],
        [ID[:10], ID[10:]],
        [ID[:8] + "_" + ID[9:]],
        ["-" * 36],
        ["-" * 36] * 5,
        [ID[:28] + "--" + ID[30:]],
        [ID[:28] + "-" * 8],
    ],
)
def test_other_texts_are_kept_as_they_are(texts: list[str]) -> None:
    assert uuids(texts) is None
    assert uuids([ID, *texts]) is None or not texts


@given(
    st.lists(
        st.from_regex(r"[0-9a-fA -]{8}(-[0-9a-fA -]{4}){3}-[0-9a-fA -]{12}", fullmatch=True), min_size=1, max_size=5
    )
)
def test_what_is_packed_comes_back_to_the_character(texts: list[str]) -> None:
    packed = uuids(texts)
    assert packed is None or [str(uuid.UUID(bytes=packed[at : at + 16])) for at in range(4, len(packed), 20)] == texts
