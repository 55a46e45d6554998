"""The picture for the README: rates as bars, each group on a scale of its own. Plain SVG."""

from __future__ import annotations

from html import escape

from loadtest.report import Results, medians, number

WIDTH, LABELS, BARS, ROW, GROUP = 860, 250, 500, 26, 44
OURS, OTHERS = "#1f6feb", "#b6bdc7"

GROUPS = {
    "Bulk: 1000 events a request": (
        ("ChronicleWeaver", "bulk events/s"),
        ("floor: bare COPY, one connection", "floor events/s"),
        ("the afternoon version", "afternoon bulk events/s"),
    ),
    "Hundreds: 100 events a request": (
        ("ChronicleWeaver", "hundreds events/s"),
        ("the afternoon version", "afternoon hundreds events/s"),
    ),
    "Single: one event a request, 32 connections": (
        ("ChronicleWeaver", "single events/s"),
        ("ceiling: nothing behind validation", "ceiling of single events/s"),
        ("the afternoon version", "afternoon single events/s"),
    ),
}


def draw(results: Results) -> str:
    """The picture of the medians as an SVG document."""
    figures = medians(results["runs"])
    parts: list[str] = [_text(20, 32, "Events a second, end to end (median)", size=18, weight=600)]
    top = 46
    for title, rows in GROUPS.items():
        bars = [(label, figures[name]) for label, name in rows if name in figures]
        if bars:
            parts += [_text(20, top + 26, title, size=14, weight=600), *_bars(bars, top + GROUP - 6)]
            top += GROUP + ROW * len(bars)
    note = f"{results['date']}, runs: {len(results['runs'])}, {results['command']}"
    parts += [_text(20, top + 28, results["machine"], size=11), _text(20, top + 46, note, size=11)]
    return _document("\n".join(parts), top + 62)


def _bars(bars: list[tuple[str, float]], top: int) -> list[str]:
    most = max(value for _, value in bars)
    parts = []
    for row, (label, value) in enumerate(bars):
        y, width = top + row * ROW, BARS * value / most
        fill = OURS if label == "ChronicleWeaver" else OTHERS
        parts += [
            _text(LABELS - 10, y + 14, label, anchor="end"),
            f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{ROW - 6}" rx="2" fill="{fill}"/>',
            _text(LABELS + width + 8, y + 14, number(value)),
        ]
    return parts


def _text(x: float, y: float, text: str, *, size: int = 13, weight: int = 400, anchor: str = "start") -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y}" {style} fill="#1f2328">{escape(text)}</text>'


def _document(content: str, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{content}\n</svg>\n'
    )
