"""The architecture page shows the code as it is."""

from pathlib import Path

from tools.draw_architecture import GROUPS, layout, main, mermaid, reduced, room_graphs, svg
from tools.house import PACKAGES, ROOT

PAGE = ROOT / "docs" / "architecture.md"


def test_the_committed_picture_is_that_of_the_code() -> None:
    assert main(["--check"]) == 0, "run python -m tools.draw_architecture"


def test_every_room_has_a_line_on_the_page() -> None:
    rooms = {
        path.parent.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }
    rooms -= {"mint", "cluster", "cluster/service", "cluster/service/data/migrations"}
    rooms = {room for room in rooms if "/migrations/" not in room}
    page = PAGE.read_text(encoding="utf-8")
    assert not [room for room in sorted(rooms) if f"`{room}`" not in page]


def test_every_line_of_the_page_names_something_that_exists() -> None:
    names = [line.split("`")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert names
    assert not [name for name in names if not (ROOT / name).exists() and not Path(ROOT / f"{name}.py").exists()]


def test_every_room_is_in_both_drawings() -> None:
    graphs = room_graphs()
    assert tuple(graphs) == GROUPS
    for room in (room for graph in graphs.values() for room in graph):
        assert f'["{room.rsplit(".", 1)[-1]}"]' in mermaid(graphs)
        assert f">{room.rsplit('.', 1)[-1]}</text>" in svg(graphs)


def test_an_arrow_that_follows_from_others_is_left_out() -> None:
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_a_room_stands_above_those_it_imports() -> None:
    rows = layout({"a": {"b", "c"}, "b": {"d"}, "c": set(), "d": set()}).rows
    assert [[node for node in row if ">" not in node] for row in rows] == [["a"], ["b"], ["c", "d"]]
