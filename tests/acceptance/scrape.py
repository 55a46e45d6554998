"""What /metrics says, as numbers."""

from __future__ import annotations

import httpx2
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        families = list(text_string_to_metric_families(text))
        self.documented = {family.name for family in families if family.documentation}
        self.families = {family.name for family in families}
        self.samples: dict[tuple[str, Labels], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def names(self) -> set[str]:
        """The names of all series."""
        return {name for name, _ in self.samples}

    def value(self, metric: str, **labels: str) -> float:
        """The sum over the series of this name that have these labels; 0 where there are none."""
        wanted = labels.items()
        return sum(value for (name, found), value in self.samples.items() if name == metric and wanted <= found)

    def series(self, metric: str) -> set[Labels]:
        """The labels of each series of this name."""
        return {labels for name, labels in self.samples if name == metric}


def scrape(url: str) -> Scrape:
    """Asks on a connection of its own, so that of several processes any may answer."""
    answer = httpx2.get(url, timeout=10)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(answer.text)
