"""Each mutant can still be made out of the code as it is, and names tests that exist."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutants.__main__ import apply
from tests.mutants.catalogue import MUTANTS, Mutant
from tests.servers import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_still_be_made(mutant: Mutant, tmp_path: Path) -> None:
    for edit in mutant.edits:
        (tmp_path / edit.file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / edit.file, tmp_path / edit.file)
    apply(mutant, tmp_path)
    for edit in mutant.edits:
        compile((tmp_path / edit.file).read_text(), edit.file, "exec")


@pytest.mark.parametrize("test", sorted({test for mutant in MUTANTS for test in mutant.caught_by}))
def test_the_test_that_catches_a_mutant_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()
