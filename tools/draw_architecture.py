"""Draws the import graph of the rooms: docs/architecture.svg, and the Mermaid block of docs/architecture.md.

    python -m tools.draw_architecture            writes both
    python -m tools.draw_architecture --check    exits with 1 if either differs from the code

A room is a child of `mint`, `cluster` or `cluster.service`. An arrow is an import; arrows that follow from others
(transitive reduction) are left out. Between the three groups only one arrow is drawn.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import grimp

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "architecture.md", DOCS / "architecture.svg"
BEGIN, END = "<!-- rooms: begin -->", "<!-- rooms: end -->"

GROUPS = ("mint", "cluster", "cluster.service")
FOUNDATION = {"cluster": "mint", "cluster.service": "mint"}
ENTRY_POINTS = {"mint.__main__"}
WIDTH, HEIGHT, GAP, ROW, MARGIN = 112, 30, 16, 62, 24

Graph = dict[str, set[str]]


def main(arguments: list[str] | None = None) -> int:
    """Draw, or compare with what is drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    graphs = room_graphs()
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    texts = {PAGE: f"{head}{BEGIN}\n{mermaid(graphs)}\n{END}{tail}", PICTURE: svg(graphs)}
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.name}: out of date; run python -m tools.draw_architecture" if check else f"{path.name}: written")
        if not check:
            path.write_text(texts[path], encoding="utf-8")
    return int(check and bool(stale))


def room_graphs() -> dict[str, Graph]:
    """The reduced import graph of every group's rooms."""
    imports = grimp.build_graph(*{group.split(".")[0] for group in GROUPS}, exclude_type_checking_imports=True)
    graphs = {}
    for group in GROUPS:
        rooms = sorted(imports.find_children(group) - set(GROUPS) - ENTRY_POINTS)
        for room in rooms:
            if room not in GROUPS and imports.find_descendants(room):
                imports.squash_module(room)
        graph = {
            room: {
                target
                for target in rooms
                if target != room and imports.direct_import_exists(importer=room, imported=target)
            }
            for room in rooms
        }
        graphs[group] = reduced(graph)
    return graphs


def reduced(graph: Graph) -> Graph:
    """The transitive reduction of an acyclic graph."""

    def reachable(room: str) -> set[str]:
        return graph[room].union(*(reachable(target) for target in graph[room]))

    return {
        room: targets - set[str]().union(*(reachable(target) for target in targets)) for room, targets in graph.items()
    }


def mermaid(graphs: Mapping[str, Graph]) -> str:
    """The graphs as a Mermaid flowchart in a fenced block."""
    lines = ["```mermaid", "flowchart TD"]
    for group, graph in graphs.items():
        lines.append(f'    subgraph {_key(group)}["{group}"]')
        lines += [f'        {_key(room)}["{_label(room)}"]' for room in graph]
        lines += [f"        {_key(room)} --> {_key(target)}" for room in graph for target in sorted(graph[room])]
        lines.append("    end")
    lines += [f"    {_key(group)} ==> {_key(target)}" for group, target in FOUNDATION.items()]
    return "\n".join([*lines, "```"])


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of nodes, top to bottom. A node without a room is a bend of an arrow that passes a row."""

    rows: list[list[str]]
    paths: list[list[str]]  # the nodes of every arrow, one in each row

    @property
    def columns(self) -> int:
        """The length of the longest row."""
        return max(map(len, self.rows))

    def position(self, node: str) -> tuple[float, float]:
        """The middle of a node; rows are centred."""
        y, row = next((y, row) for y, row in enumerate(self.rows) if node in row)
        left = (self.columns - len(row)) / 2
        return (left + row.index(node) + 0.5) * (WIDTH + GAP), y * ROW + HEIGHT / 2


def layout(graph: Graph) -> Layout:
    """Every room above the rooms that it imports, in an order of few crossings."""

    def depth(room: str) -> int:
        return 1 + max(map(depth, graph[room]), default=-1)

    depths = {room: depth(room) for room in graph}
    top = max(depths.values())
    rows: list[list[str]] = [[room for room in graph if depths[room] == top - y] for y in range(top + 1)]
    paths = []
    for room in graph:
        for target in sorted(graph[room]):
            bends = {y: f"{room}>{target}@{y}" for y in range(top - depths[room] + 1, top - depths[target])}
            for y, bend in bends.items():
                rows[y].append(bend)
            paths.append([room, *bends.values(), target])
    neighbours = defaultdict(list)
    for path in paths:
        for upper, lower in pairwise(path):
            neighbours[upper].append(lower)
            neighbours[lower].append(upper)
    for _ in range(8):
        for row in [*rows, *reversed(rows)]:
            _sort_by_neighbours(row, rows, neighbours)
    return Layout(rows, paths)


def _sort_by_neighbours(row: list[str], rows: Sequence[list[str]], neighbours: Mapping[str, list[str]]) -> None:
    """Order a row by the mean place of each node's neighbours (the barycentre heuristic)."""
    place = {node: (index + 0.5) / len(other) for other in rows for index, node in enumerate(other)}
    row.sort(key=lambda node: sum(place[other] for other in neighbours[node]) / max(1, len(neighbours[node])))


def svg(graphs: Mapping[str, Graph]) -> str:
    """The groups side by side, each a frame with its rooms, and one arrow from group to group."""
    layouts = {group: layout(graph) for group, graph in graphs.items()}
    body: list[str] = []
    x, frames = MARGIN, {}
    for group, drawing in layouts.items():
        width = drawing.columns * (WIDTH + GAP) + 2 * GAP
        height = len(drawing.rows) * ROW + 2 * GAP
        frames[group] = (x, width, height)
        body += _frame(group, drawing, x, width, height)
        x += width + 3 * MARGIN
    total = max(height for _, _, height in frames.values()) + 3 * MARGIN
    for lane, (group, target) in enumerate(FOUNDATION.items()):
        body.append(_group_arrow(frames[group], frames[target], total, 20 * lane))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x - 2 * MARGIN} {total + 2 * MARGIN}" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    return "\n".join([head, _STYLE, *body, "</svg>"]) + "\n"


_STYLE = """<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>
<rect width="100%" height="100%" fill="#fff"/>"""


def _frame(group: str, drawing: Layout, x: float, width: float, height: float) -> list[str]:
    lines = [
        f'<rect x="{x}" y="{2 * MARGIN}" width="{width}" height="{height}" rx="8" fill="#f4f6fa" stroke="#ccd"/>',
        f'<text x="{x + GAP}" y="{MARGIN + 14}" font-weight="bold" fill="#223">{group}</text>',
    ]

    def at(node: str) -> tuple[float, float]:
        across, down = drawing.position(node)
        return x + GAP + across, 2 * MARGIN + 1.5 * GAP + down

    for path in drawing.paths:
        points = [at(node) for node in path]
        (x0, y0), (x1, y1) = points[0], points[-1]
        points = [(x0, y0 + HEIGHT / 2), *points[1:-1], (x1, y1 - HEIGHT / 2)]
        curve = f"M{points[0][0]:.0f} {points[0][1]:.0f}" + "".join(
            f" C{a:.0f} {(b + d) / 2:.0f} {c:.0f} {(b + d) / 2:.0f} {c:.0f} {d:.0f}"
            for (a, b), (c, d) in pairwise(points)
        )
        lines.append(f'<path d="{curve}" fill="none" stroke="#667" marker-end="url(#tip)"/>')
    for room in (node for row in drawing.rows for node in row if ">" not in node):
        across, down = at(room)
        lines += [
            f'<rect x="{across - WIDTH / 2:.0f}" y="{down - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="5" '
            'fill="#fff" stroke="#446"/>',
            f'<text x="{across:.0f}" y="{down + 4:.0f}" text-anchor="middle" fill="#223">{_label(room)}</text>',
        ]
    return lines


def _group_arrow(source: tuple[float, float, float], target: tuple[float, float, float], y: float, shift: float) -> str:
    """An arrow below the frames, from the middle of one to the middle of the other."""
    (x0, width0, height0), (x1, width1, height1) = source, target
    path = (
        f"M{x0 + width0 / 2:.0f} {2 * MARGIN + height0:.0f} V{y + shift:.0f} "
        f"H{x1 + width1 / 2 + shift:.0f} V{2 * MARGIN + height1 + 2:.0f}"
    )
    return f'<path d="{path}" fill="none" stroke="#667" stroke-width="2" marker-end="url(#tip)"/>'


def _key(name: str) -> str:
    return name.replace(".", "_")


def _label(room: str) -> str:
    return room.rsplit(".", 1)[-1]


if __name__ == "__main__":
    sys.exit(main())
