"""Texts, values and numbers that break programs: what test_15_edge_cases sends."""

from __future__ import annotations

TEXTS = {
    "latin": "Stra\u00dfe \u00c5ngstr\u00f6m \u00f1",
    "chinese": "\u65e5\u5fd7\u805a\u5408\u5668",
    "japanese": "\u30a4\u30d9\u30f3\u30c8\u3068\u8a18\u9332",
    "cyrillic": "\u0441\u043e\u0431\u044b\u0442\u0438\u0435",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "direction marks": "a\u202eb\u202cc\u200fd",
    "emoji": "\U0001f680\U0001f525",
    "emoji family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "flag": "\U0001f1ee\U0001f1e9",
    "combining": "e\u0301 n\u0303 a\u0328\u0301",
    "zero width": "a\u200bb\ufeffc",
    "outside the basic plane": "\U00010348\U0002f800\U0010fffd",
    "noncharacter": "\uffff\U0010ffff",
    "controls": "a\tb\nc\rd\x01e\x1bf\x7f\x85",
    "quotes": "\"'`\u201c\u2019",
    "backslashes": "\\ \\n \\u0041 \\\\",
    "slashes": "a/b//c/../d",
    "url": "?a=1&b=2#c%20d%00+e",
    "sql": "'; DROP TABLE facts; --",
    "sql pattern": "%_\\%",
    "postgres literals": "NULL {a,b} $1 :name %(name)s E'\\\\'",
    "html": "<script>alert(1)</script>&amp;",
    "template": "{{7*7}} ${x} {0} %s",
    "json": '{"events": []}',
    "spaces": "  a  b  ",
    "hyphens, as many as a UUID has characters": "-" * 36,
    "nearly a UUID": "0189d6a4-5c1e-7abc-8def-0011--33aabb",
}
"""Names and contents that have to be stored and found as they are."""

HOSTILE_VALUES = {
    "nul": r'"a\u0000b"',
    "lone high surrogate": r'"\ud800"',
    "lone low surrogate": r'"x\udfffy"',
    "surrogates in the wrong order": r'"\ude00\ud83d"',
    "not a number": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "huge exponent": "1e131073",
    "huger exponent": "-1e999999",
    "exponent beyond counting": "1e99999999999999999999",
    "tiny exponent": "1e-99999999999999999999",
    "hexadecimal": "0x10",
    "leading zero": "012",
    "leading plus": "+1",
    "single quotes": "'a'",
    "trailing comma": "[1,]",
    "comment": "/* */ 1",
    "bare word": "undefined",
    "raw newline in text": '"a\nb"',
    "nul behind a later key of the same name": r'{"a": "\u0000", "a": 1}',
    "deep nesting": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 20_000 + "1" + "}" * 20_000,
}
"""JSON text, or nearly, that no payload may hold."""

NUMBERS = [
    "0", "-0", "-0.0", "1", "-1", "1.0", "1.10", "0.1", "0.10000000000000000555", "1e300", "-1E+300", "1e-300",
    "5e-324", "1.7976931348623157e308", str(2**53 + 1), str(2**63), str(2**64), str(2**70), "9" * 300, "0." + "3" * 300,
]  # fmt: skip
"""JSON numbers that have to keep their text."""
