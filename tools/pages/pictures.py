"""Draws the picture of the README: bars of KL divergence at equal sizes, from committed results."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, LEFT, RIGHT = 720, 262, 60  # of the picture; of the names; of the numbers behind the bars
BAR, GAP, TITLE, MARGIN = 18, 8, 34, 14
OURS = "MINT"
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.bar { fill: #8c959f }
.ours { fill: #1a7f64 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .bar { fill: #6e7681 } .ours { fill: #3fb68f } }
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models of one size: a title, and the KL divergence of each by its name."""

    title: str
    bars: tuple[tuple[str, float], ...]


def read_comparisons(path: Path) -> list[Comparison]:
    """The comparisons of a TOML file."""
    records = tomllib.loads(path.read_text(encoding="utf-8"))["comparisons"]
    return [Comparison(record["title"], tuple((name, kl) for name, kl in record["bars"])) for record in records]


def closeness_picture(comparisons: Sequence[Comparison]) -> str:
    """The comparisons below each other as SVG; all bars have one scale, and zero is at the left."""
    scale = (WIDTH - LEFT - RIGHT) / max(kl for comparison in comparisons for _, kl in comparison.bars)
    parts, y = [], MARGIN
    for comparison in comparisons:
        parts.append(f'<text class="title" x="{MARGIN}" y="{y + 14}">{escape(comparison.title)}</text>')
        y += TITLE
        for name, kl in comparison.bars:
            kind, width = ("bar ours" if name.startswith(OURS) else "bar"), round(kl * scale, 1)
            parts += [
                f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{width}" height="{BAR}" rx="2"/>',
                f'<text x="{LEFT + width + 6}" y="{y + 14}">{kl:g}</text>',
            ]
            y += BAR + GAP
        y += GAP
    label = "KL divergence from the original, nats per token: less is better"
    parts.append(f'<text x="{LEFT}" y="{y + 12}">{label}</text>')
    size = f'width="{WIDTH}" height="{y + 28}" viewBox="0 0 {WIDTH} {y + 28}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])
