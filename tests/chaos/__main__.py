"""`python -m tests.chaos --seed N --rounds N --seconds N`: rounds of faults, each replayable from its printed seed."""

from __future__ import annotations

import argparse
import random
import sys

from . import round as rounds


def main() -> int:
    """Runs the rounds that the command line asks for; the exit code is 1 where one of them found a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the first round; others follow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="how long faults strike in a round")
    options = parser.parse_args()
    failed = [
        seed
        for seed in range(options.seed, options.seed + options.rounds)
        if not _holds(seed, options.seconds, f"{seed - options.seed + 1}/{options.rounds}")
    ]
    print(f"{options.rounds - len(failed)} of {options.rounds} rounds hold" + (f"; failed: {failed}" if failed else ""))
    return 1 if failed else 0


def _holds(seed: int, seconds: float, number: str) -> bool:
    print(f"round {number}, seed {seed}", flush=True)
    report = rounds.run(seed, seconds, lambda line: print("  ", line, flush=True))
    print("  ", report.summary)
    for violation in report.violations:
        print("   VIOLATED:", violation)
    if report.violations:
        print(f"   replay: make chaos ARGS='--seed {seed} --rounds 1 --seconds {seconds:g}'")
        print(f"   logs, journal and data: {report.folder}")
    print(f"   verdict: {'violated' if report.violations else 'holds'}", flush=True)
    return not report.violations


if __name__ == "__main__":
    sys.exit(main())
