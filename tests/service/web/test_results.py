"""The closeness of results, the curve with what stands beside it, and words of the glossary, in a real Chromium."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("selenium")

from selenium.webdriver.common.keys import Keys

from mint.client.client import Client
from mint.plan.recipe import Recipe
from tests.worlds.page_world import Page, needs_chromium

WEB = Path(__file__).parents[3] / "cluster" / "service" / "web"


@needs_chromium
def test_a_measured_closeness_stands_beside_that_of_uniform_in_the_words_of_the_command_line(
    page: Page, made: str
) -> None:
    with Client(page.url) as client:
        (job,) = client.submit("small-llama", ["5bpw"], Recipe(rounding="compensate", ignore_probe=True))
        words = client.wait(job.id).in_words
    assert "4-bit" in words
    assert words["short"].endswith("4-bit")
    page.open()
    page.one(".job[data-state='done']")
    assert page.read(f".job[data-job='{job.id}'] .closeness") == words["short"]
    page.open(f"#/jobs/{job.id}")
    page.one(".result")
    for text in (words["short"], words["closeness"], words["4-bit"]):
        assert text in page.read(".result")
    assert "predicted" not in page.read(".result").lower()
    assert words["short"] in page.read(".artifact h3") and words["4-bit"] in page.read(".artifact")
    page.open(made)
    page.one(".plan .big")
    names = [heading.text for heading in page.all(".artifact h3")]
    assert any(words["short"] in name for name in names)
    assert not [name for name in names if re.search("[0-9a-f]{12}", name)]
    assert words["short"] in page.script(
        "return [...document.querySelectorAll('tbody td')].map((c) => c.innerText).join()"
    )


def _drawn_points(page: Page) -> int:
    return 1 + int(page.script("return document.querySelector('.chart').getAttribute('aria-valuemax')"))


@needs_chromium
def test_the_curve_has_uniform_models_and_a_linear_part_and_offers_a_probe(page: Page, made: str) -> None:
    page.open(made)
    page.one(".plan .big")
    assert len(page.all(".chart .uniform")) > 3
    assert "uniform 4/64" in page.script("return document.querySelector('.curve').closest('.card').textContent")
    last = _drawn_points(page)
    page.click(".views input[value='usual']")
    assert _drawn_points(page) < last
    ticks = page.script("return [...document.querySelectorAll('.axes text')].map((t) => t.textContent)")
    assert "0" in ticks  # a logarithmic axis has no place for it
    page.script("for (const each of document.querySelectorAll('details')) each.open = true")
    page.script("[...document.querySelectorAll('.curve ~ details td .link')].at(-1).click()")  # the largest budget
    assert _drawn_points(page) == last
    assert re.fullmatch("Probe this model: about (a minute|[0-9.]+ (minutes|hours))", page.read(".offer .primary"))
    page.click(".offer .primary")
    page.click(".offer .taken a")
    page.until(lambda: "done" in page.read(".log"))
    page.open(made)
    page.one(".plan .big")
    assert not page.all(".offer")


@needs_chromium
def test_devices_and_measured_models_are_points_of_the_curve(page: Page) -> None:
    page.open()
    kinds = page.module(
        """
        const {CurveChart} = await import("/static/curve.js"), {marksOf} = await import("/static/marks.js");
        const point = (gb) => ({budget_bytes: gb * 1e9, bits_per_weight: gb, loss: 1 / gb, predicted_kl: null});
        const device = (chip, gb) =>
          ({chip, memory_bytes: 2 ** 33, budget_bytes: gb && gb * 1e9, verdict: gb ? "fits" : "no"});
        const marks = marksOf({devices: [device("M1", 4), device("M2", 4), device("M9", null)]});
        const chart = new CurveChart({points: [2, 3, 4, 5, 6, 7].map(point), marks, onChoose: () => {}});
        document.querySelector("main").replaceChildren(chart.element);
        await new Promise((done) => setTimeout(done, 300));
        chart.choose(chart.nearest(4e9));
        return [document.querySelectorAll(".chart .device").length, chart.chart.getAttribute("aria-valuetext")];
        """
    )
    assert kinds[0] == 1
    assert kinds[1].endswith("room of M1, 8 GB; M2, 8 GB")


@needs_chromium
def test_a_word_of_the_glossary_is_explained_to_keyboard_and_touch(page: Page, made: str) -> None:
    page.open(made, width=390)
    page.one(".plan .term")
    button = page.one(".plan .term")
    meaning = "document.getElementById(arguments[0].getAttribute('popovertarget'))"
    assert "Bits of all weight files" not in page.read("main")
    page.script("arguments[0].focus()", button)
    page.press(Keys.ENTER)
    page.until(lambda: page.script(f"return {meaning}.matches(':popover-open')", button))
    box = page.script(f"const r = {meaning}.getBoundingClientRect(); return [r.left, r.right]", button)
    assert 0 <= box[0] < box[1] <= 390
    page.picture("meaning")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.script(f"return {meaning}.matches(':popover-open')", button))


def test_every_label_that_is_explained_has_an_entry_in_the_glossary() -> None:
    entries = set(re.findall(r'^  "(.+?)": ', (WEB / "glossary.js").read_text(), re.MULTILINE))
    words = re.search(r"const WORDS = \{(.*?)\};", (WEB / "terms.js").read_text(), re.DOTALL)
    assert words
    assert set(re.findall(r': "(.+?)"', words[1])) <= entries


@needs_chromium
def test_many_layers_continue_below_so_that_every_cell_shows_its_figure(page: Page) -> None:
    page.open(width=390)
    cells = page.module(
        """
        const {strip} = await import("/static/strip.js");
        const units = Array.from({length: 60}, (_, layer) =>
          ({path: `layers.${layer}`, role: "q", layer, format: "4/64", bits: 4.5, nbytes: 9}));
        document.querySelector("main").replaceChildren(strip(units));
        await new Promise((done) => setTimeout(done, 300));
        return [...document.querySelectorAll(".cell")].map((cell) => {
          const {left, right, width} = cell.querySelector("rect").getBoundingClientRect();
          return [left, right, width, cell.textContent];
        });
        """
    )
    assert len(cells) == 60
    assert all(text == "4" and width >= 15 and 0 <= left < right <= 390 for left, right, width, text in cells)
    page.picture("layers-390")
