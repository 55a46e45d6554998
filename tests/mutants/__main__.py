"""`python -m tests.mutants [WORD]`: makes the mutants (whose name has the word), and prints which test caught each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.servers import ROOT

from .catalogue import MUTANTS, Mutant


def main(word: str = "") -> int:
    """The exit code is 1 where a mutant survives. Raises RuntimeError where a test fails without one."""
    chosen = [mutant for mutant in MUTANTS if word in mutant.name]
    if not chosen:
        sys.exit(f"no mutant has {word!r} in its name")
    with tempfile.TemporaryDirectory(prefix="chronicle-mutants-") as folder:
        if failed := _failures(_copy(Path(folder, "original")), sorted({t for m in chosen for t in m.caught_by})):
            raise RuntimeError(f"these fail without any mutant: {failed}")
        caught = {mutant.name: _hunt(mutant, Path(folder)) for mutant in chosen}
    table = Table("mutant", "caught by", title="mutants")
    for name, tests in caught.items():
        table.add_row(name, "\n".join(tests) or "NOBODY: it survives")
    Console(width=160).print(table, markup=False)
    survivors = [name for name, tests in caught.items() if not tests]
    print(f"{len(caught) - len(survivors)} of {len(caught)} mutants caught")
    return 1 if survivors else 0


def _hunt(mutant: Mutant, folder: Path) -> list[str]:
    print(f"{mutant.name} ...", flush=True)
    copy = _copy(folder / "mutant")
    apply(mutant, copy)
    return _failures(copy, mutant.caught_by)


def apply(mutant: Mutant, folder: Path) -> None:
    """Makes the mutant out of a checkout. Raises ValueError where the code is no longer what its edits expect."""
    for edit in mutant.edits:
        file = folder / edit.file
        text = file.read_text()
        if (found := text.count(edit.old)) != 1:
            raise ValueError(f"mutant {mutant.name!r}: {found} times in {edit.file}, not once: {edit.old!r}")
        file.write_text(text.replace(edit.old, edit.new))


def _copy(folder: Path) -> Path:
    """A copy of the checkout as it is now, without what git ignores."""
    shutil.rmtree(folder, ignore_errors=True)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def _failures(folder: Path, tests: Iterable[str]) -> list[str]:
    """The tests that fail in a copy. Raises RuntimeError where one could not even begin."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    cases = ET.parse(report).getroot().iter("testcase")
    return sorted({case.get("name", "") for case in cases if case.find("failure") is not None})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
