"""A report is one page that holds everything, draws its charts in a browser, and acts on nothing that others wrote."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import vl_convert

from mint.analysis.analyze import analyze
from mint.analysis.cached import cached_analysis
from mint.assembly.assemble import assemble
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.formats.format import parse_format
from mint.model.checkpoint.manifest import MANIFEST_NAME
from mint.model.source import open_source
from mint.pipeline import Pipeline
from mint.plan.allocate import allocate
from mint.plan.plan import uniform, write_plan
from mint.plan.recipe import Recipe
from mint.quality.sequences import TextSize
from mint.render.report.report import report

HOSTILE = "<script>alert(1)</script>&"


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an analysis, two plans and a written model. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("made")
    source = open_source(llama)
    analysis = analyze(source, folder / "tiny.mint")
    recipe = Recipe(veto_db=-100.0)
    write_plan(allocate(analysis, "4bpw", recipe), folder / "small.json")
    write_plan(allocate(analysis, "8bpw", recipe), folder / "large.json")
    assemble(allocate(analysis, "6bpw", recipe), source, folder / "written")
    return folder


def _paths(made: Path) -> list[Path]:
    return [made / name for name in ("tiny.mint", "small.json", "large.json", "written")]


def _data(page: str) -> dict[str, Any]:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert text
    data: dict[str, Any] = json.loads(text[1])
    return data


def test_every_chart_is_valid_vega_lite(made: Path) -> None:
    charts = _data(report(_paths(made), Recipe(veto_db=-100.0)))["charts"]
    assert len(charts) == 3 + 3  # of the analysis, and one of every plan
    assert len(_data(report([made / "small.json"], Recipe()))["charts"]) == 3
    for spec in charts.values():
        svg = vl_convert.vegalite_to_svg({**spec, "width": 600})
        assert "NaN" not in svg
        assert svg.count("<path") > 5


def test_the_curve_has_plans_uniform_formats_and_devices(made: Path) -> None:
    spec = next(iter(_data(report(_paths(made), Recipe(veto_db=-100.0)))["charts"].values()))
    points = spec["layer"][1]["data"]["values"]
    names = {point["name"] for point in points}
    kinds = {point["kind"] for point in points} | {point["kind"] for point in spec["layer"][0]["data"]["values"]}
    assert {"best plans, nearest", "plan, nearest", "uniform, nearest (mlx_lm.convert)"} <= kinds
    assert {"small", "large", "written", "uniform 4/64", "uniform mxfp4"} <= names
    line = [(point["nbytes"], point["loss"]) for point in spec["layer"][0]["data"]["values"]]
    assert line == sorted(line)
    least = dict(line)
    for point in points:
        if point["kind"].startswith("uniform"):  # no point lies below the line
            assert point["loss"] >= min(loss for nbytes, loss in least.items() if nbytes <= point["nbytes"]) * (
                1 - 1e-9
            )


def test_uniform_formats_are_those_of_the_converter_whatever_the_rounding_of_the_analysis(
    llama: Path, tmp_path: Path
) -> None:
    recipe, heights = Recipe(veto_db=-100.0), []
    for rounding in ("nearest", "compensate"):
        path = tmp_path / f"{rounding}.mint"
        analysis = analyze(open_source(llama), path, rounding=rounding)
        write_plan(allocate(analysis, "6bpw", recipe), tmp_path / f"{rounding}.json")
        spec = _data(report([path, tmp_path / "nearest.json"], recipe))["charts"]["chart-0"]
        points = spec["layer"][1]["data"]["values"]
        heights.append({point["name"]: point["loss"] for point in points if point["kind"].startswith(("uni", "plan"))})
        assert {point["kind"].rpartition(", ")[2] for point in points if point["kind"].startswith("plan")} == {
            "nearest"
        }
        assert {row["kind"] for row in spec["layer"][0]["data"]["values"]} == {f"best plans, {rounding}"}
    assert heights[0].keys() == heights[1].keys()
    for name, height in heights[0].items():
        assert heights[1][name] == pytest.approx(height)


def test_titles_and_columns_are_words(made: Path) -> None:
    page = report(_paths(made), Recipe(veto_db=-100.0))
    assert "<title>MINT report: tiny, " in page
    columns = {name for table in _data(page)["tables"].values() for name in table["columns"]}
    assert {"bytes", "SQNR, dB", "sensitivity", "KL", "from", "to", "KL is"} <= columns
    assert not [name for name in columns if "_" in name or name in ("nbytes", "alpha")]


def test_a_uniform_plan_has_one_format(made: Path, llama: Path) -> None:
    plan = allocate(analyze(open_source(llama), made / "tiny.mint"), "max", Recipe(veto_db=-100.0))
    assert {str(choice.format) for choice in uniform(plan, parse_format("4/64")).choices} <= {"4/64", "keep"}


def test_the_page_needs_no_network_and_escapes_names(made: Path, tmp_path: Path) -> None:
    hostile = tmp_path / f"{HOSTILE.replace('/', '∕')}.json"
    hostile.write_bytes((made / "small.json").read_bytes())
    page = report([hostile], Recipe())
    head = page[: page.index('<script type="application/json"')]
    assert "<script>alert" not in page
    assert HOSTILE.replace("/", "∕") in unescape(head)
    assert not re.search(r'(src|href)\s*=\s*["\']?https?:', head)
    assert "default-src 'none'" in page


def _plan_rows(page: str) -> list[dict[str, Any]]:
    table = _data(page)["tables"]["table-0"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _with_closeness(folder: Path, copy: Path, **kl: float) -> Path:
    """A copy of a written model whose manifest has this measured KL divergence."""
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / MANIFEST_NAME).read_text())
    manifest["closeness"] = {"kl": kl, "top1": {"value": 0.9, "low": 0.89, "high": 0.91}}
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest))
    return copy


def test_every_plan_has_one_kl_the_measured_one_where_there_is_one(made: Path, tmp_path: Path) -> None:
    measured = _with_closeness(made / "written", tmp_path / "measured", value=0.05, low=0.04, high=0.06)
    predicted, other = _plan_rows(report([made / "small.json", measured], Recipe()))
    assert (other["KL"], other["from"], other["to"]) == (0.05, 0.04, 0.06)
    assert (predicted["KL is"], other["KL is"]) == ("predicted", "measured")
    assert predicted["KL"] > 0


_MEASURE = """<script>
const excess = (box) => box.scrollWidth - box.clientWidth;
setTimeout(() => document.title = JSON.stringify({
  page: excess(document.documentElement),
  plans: excess(document.getElementById("table-0")),
}), 5000)  // the charts are drawn
</script>"""


@pytest.mark.skipif(not which("chromium"), reason="no chromium here")
@pytest.mark.parametrize("width", [1280, 700])
def test_no_table_reaches_beyond_its_page_and_that_of_the_plans_is_seen_whole(
    made: Path, tmp_path: Path, width: int
) -> None:
    name = "Qwen3-30B-A3B-Instruct-2507-12GB"
    measured = _with_closeness(made / "written", tmp_path / name, value=0.05, low=0.04, high=0.06)
    page = report([made / "small.json", measured], Recipe())
    assert "between very close and close to the original" in page
    file = tmp_path / "report.html"
    file.write_text(page + _MEASURE)
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", profile, "--virtual-time-budget=20000"]
    command += [f"--window-size={width},2000", "--dump-dom", file.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", result.stdout)
    assert title
    excess = json.loads(unescape(title[1]))
    assert excess["page"] == 0
    if width >= 1280:
        assert excess["plans"] == 0


@pytest.mark.skipif(not which("chromium"), reason="no chromium here")
def test_a_browser_draws_every_chart_and_table(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report(_paths(made), Recipe(veto_db=-100.0)))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", profile, "--virtual-time-budget=20000"]
    result = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    assert len(re.findall(r'<svg [^>]*class="marks"', result.stdout)) == 6
    assert result.stdout.count("<tbody>") == 4
    assert "model.layers.1.mlp.down_proj" in result.stdout


def test_the_command_writes_a_new_page(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["report", *map(str, _paths(made)), "-o", str(tmp_path / "r.html"), "--json"]
    assert run_command(command) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(tmp_path / "r.html")
    assert run_command(command) == 0  # the same page: as after a kill
    capsys.readouterr()
    other = ["report", str(_paths(made)[0]), "-o", str(tmp_path / "r.html"), "--json"]
    assert run_command(other) == 1
    assert "exists" in capsys.readouterr().out


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MintError, match="no such file or folder"):
        report([tmp_path / "absent"], Recipe())
    (tmp_path / "text.json").write_text("{}")
    with pytest.raises(MintError, match="not a plan"):
        report([tmp_path / "text.json"], Recipe())


def test_the_page_begins_with_a_summary_in_plain_words(made: Path) -> None:
    page = report(_paths(made), Recipe(veto_db=-100.0))
    assert page.index("written in short") < page.index("<figure>")
    assert "<dt>size</dt>" in page
    assert "mlx_lm.convert would write" in page


def test_points_too_close_for_names_of_their_own_share_one(made: Path) -> None:
    spec = next(iter(_data(report([*_paths(made), made / "small.json"], Recipe(veto_db=-100.0)))["charts"].values()))
    named = [row for layer in spec["layer"] if layer["mark"]["type"] == "text" for row in layer["data"]["values"]]
    places = [(row["nbytes"], row["loss"]) for row in named]
    assert len(set(places)) == len(places)
    names = [name for row in named for name in row["name"].split(", ")]
    assert names.count("small") == 2  # given twice: both are named, in one place
    assert {"4/64", "mxfp4", "large", "written"} <= set(names)


def test_a_single_measurement_is_text_and_a_vague_prediction_gives_way_to_it(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    analysis = analyze(source, tmp_path / "c.mint", rounding="compensate")
    for name, budget in (("six", "6bpw"), ("eight", "8bpw")):
        assemble(allocate(analysis, budget), source, tmp_path / name, text=TextSize(4, 16))
    single, both = (report([tmp_path / name for name in names], Recipe()) for names in (["six"], ["six", "eight"]))
    assert "measured on the same text" in single
    (row,) = _plan_rows(single)
    assert row["KL is"] == "measured"  # the prediction is right to a factor of 100
    assert len(_data(single)["charts"]) == 3
    assert len(_data(both)["charts"]) == 1 + 2 * 3


def test_a_cached_analysis_has_the_name_of_its_model(llama: Path) -> None:
    source = open_source(llama)
    Pipeline(Recipe(rounding="nearest")).run(source, [])
    page = report([cached_analysis(source, "nearest")], Recipe())
    assert f"<title>MINT report: {llama.name}</title>" in page


def test_the_legend_of_the_curve_names_every_kind_once(made: Path) -> None:
    spec = next(iter(_data(report(_paths(made), Recipe(veto_db=-100.0)))["charts"].values()))
    svg = vl_convert.vegalite_to_svg({**spec, "width": 600})
    for kind in ("best plans, nearest", "uniform, nearest (mlx_lm.convert)"):
        assert len(re.findall(rf"<text [^>]*>{re.escape(kind)}</text>", svg)) == 1
