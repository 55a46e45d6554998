"""The README tells the truth: its commands, settings and files exist, and it forgets none."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from chronicle.cli import app
from chronicle.settings import Settings
from tests.chaos.nemesis import FAULTS
from tests.mutants.catalogue import MUTANTS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = typer.main.get_group(app).commands


def test_every_setting_is_documented_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        row = re.search(rf"^\| `{name.upper()}` \| (.*?) \|", README, re.MULTILINE)
        assert row, name
        if field.default is not None:
            assert row[1].strip("`") == str(field.default), name


def test_every_variable_in_the_table_is_a_setting() -> None:
    documented = re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE)
    assert {name.lower() for name in documented} == set(Settings.model_fields)


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    documented = set(re.findall(r"chronicle ([a-z]+)\b", README.split("## Guarantees")[0]))
    visible = {name for name, command in COMMANDS.items() if not command.hidden}
    assert visible - {"query", "projector"} <= documented
    assert documented <= visible


def test_every_option_in_the_readme_exists() -> None:
    for command, rest in re.findall(r"chronicle ([a-z]+)\b((?: +--?[\w-]+(?: [\w.]+)?)*)", README):
        options = {flag for parameter in COMMANDS[command].params for flag in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, command


def test_every_option_is_in_the_readme() -> None:
    every = [*COMMANDS.values(), *COMMANDS["failed"].commands.values()]  # type: ignore[attr-defined]
    shown = [each for command in every if not command.hidden for each in command.params if not each.hidden]  # type: ignore[attr-defined]
    options = {flag for each in shown for flag in each.opts if flag.startswith("--")}
    assert [flag for flag in options if not re.search(rf"[` ]{flag}\b", README)] == []


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


def test_every_folder_and_module_of_the_map_exists() -> None:
    section = re.sub(r"\n +", " · ", README.split("## Architecture, for contributors")[1].split("```")[1])
    for folder, modules in re.findall(r"^(\w+)/\s+(.*)$", section, re.MULTILINE):
        assert (ROOT / folder).is_dir()
        for module in (
            re.findall(r"(?:^|· )(\w+)", modules) if folder in ("command", "projector", "query", "loadtest") else ()
        ):
            place = ROOT / folder / module
            assert place.with_suffix(".py").exists() or place.is_dir(), place


def test_every_fault_and_the_number_of_mutants_is_in_the_readme() -> None:
    rows = re.findall(r"^\| ([^`|]+?) \| \d+ \| (.+?) \|$", README, re.MULTILINE)
    assert dict(rows) == {name: fault.catches for name, fault in FAULTS.items()}
    assert f"All {len(MUTANTS)} are caught" in README
