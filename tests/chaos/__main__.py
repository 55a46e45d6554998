"""`python -m tests.chaos --seed N --rounds N --seconds N`: rounds of faults, each replayable from its printed seed."""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter

from . import round as rounds
from .faults import FAULTS


def main() -> int:
    """Runs the rounds that the command line asks for; the exit code is 1 where one of them found a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the first round; others follow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="how long faults strike in a round")
    options = parser.parse_args()
    struck: Counter[str] = Counter()
    failed: list[int] = []
    for number in range(options.rounds):
        print(f"round {number + 1}/{options.rounds}, seed {options.seed + number}", flush=True)
        report = rounds.run(options.seed + number, options.seconds, lambda line: print("  ", line, flush=True))
        struck.update(name for step in report.steps for name in step.names)
        failed += [report.seed] if report.violations else []
        _tell(report, options.seconds)
    for name in FAULTS:
        print(f"{struck[name]:6} times {name}")
    print(f"{options.rounds - len(failed)} of {options.rounds} rounds hold" + (f"; failed: {failed}" if failed else ""))
    return 1 if failed else 0


def _tell(report: rounds.Report, seconds: float) -> None:
    print("  ", report.summary)
    for violation in report.violations:
        print("   VIOLATED:", violation)
    if report.violations:
        print(f"   replay: make chaos ARGS='--seed {report.seed} --rounds 1 --seconds {seconds:g}'")
        print(f"   logs, journal and data: {report.folder}")
    print(f"   verdict: {'violated' if report.violations else 'holds'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
