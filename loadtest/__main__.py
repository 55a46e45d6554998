"""`make bench`: measures ChronicleWeaver beside its references, prints figures and goals, draws the chart."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from loadtest import chart, growth, k6, latency, rates, report, waits
from loadtest.goals import Figures
from tests.servers import ROOT

PARTS: dict[str, Callable[[Figures, argparse.Namespace], Figures]] = {
    "bulk": lambda _, given: rates.of_bulk(given.scale),
    "single": lambda _, given: rates.of_single(given.scale),
    "latency": lambda found, given: latency.at_half_load(found, given.scale),
    "afternoon": lambda _, given: rates.of_afternoon([rates.BULK, rates.HUNDREDS], given.scale),
    "growth": lambda _, given: growth.to(given.growth, given.scale, given.runs),
    "k6": lambda _, given: k6.run(given.scale),
    "waits": lambda _, given: waits.of_sessions(given.scale),
}
"""In the order in which they run; each is given what the same run has found before it."""


def main() -> None:
    """Measures what the command line asks for; results.json and results.svg are true after each part."""
    options = _options()
    file, picture = options.results / "results.json", options.results / "results.svg"
    if options.readme:
        report.into_readme(report.read(file), ROOT / "README.md")
        return
    options.results.mkdir(parents=True, exist_ok=True)
    results = report.begin(sys.argv[1:])
    for number in range(options.runs):
        results["runs"].append({})
        for part in options.only:
            if part == "growth" and number > 0:
                continue  # once, with rounds of its own: to fill it takes as long as all the rest
            print(f"run {number + 1} of {options.runs}: {part}", flush=True)
            results["runs"][-1] |= PARTS[part](results["runs"][-1], options)
            report.write(results, file)
            picture.write_text(chart.draw(results))
    report.show(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    parser.add_argument("--only", type=_parts, default=list(PARTS), help=f"parts to run, of {','.join(PARTS)}")
    parser.add_argument("--runs", type=int, default=5, help="medians are taken over so many")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of events and of durations")
    parser.add_argument("--growth", type=int, default=10_000_000, metavar="EVENTS", help="stored events to grow to")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent, help="folder to write into")
    parser.add_argument("--readme", action="store_true", help="measure nothing: results.json into the README's table")
    options = parser.parse_args()
    if "latency" in options.only and not {"bulk", "single"} <= set(options.only):
        parser.error("latency is measured at half of bulk and single: run these too")
    return options


def _parts(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - PARTS.keys():
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return [part for part in PARTS if part in chosen]


if __name__ == "__main__":
    main()
