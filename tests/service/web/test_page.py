"""The page of the service in a real Chromium, against a real server, a real runner and real small models.

Pictures of what was seen are kept in .artifacts/page, which git ignores.
"""

import hashlib
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import mint
from cluster.service.data.database import connect
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from tests.worlds.hub_world import fake_hub
from tests.worlds.page_world import EVIL, Page, make_token, needs_chromium, serving, submit, watched

WEB = Path(__file__).parents[3] / "cluster" / "service" / "web"


@needs_chromium
def test_a_job_is_submitted_and_followed_to_its_end(page: Page, made: str) -> None:
    page.open()
    page.click(".job[data-state='done'] a")
    page.until(lambda: page.all(".artifact") and "done" in page.read(".log"))
    text = page.read(".log")
    states = ["waiting", "reading headers", "measuring", "choosing formats", "writing", "checking", "done"]
    assert re.findall("|".join(states), text) == states
    assert page.read("main h1") == "small-llama in 5bpw"
    page.picture("job")


@needs_chromium
def test_a_click_on_the_curve_shows_a_plan_that_is_made_and_downloaded_whole(
    page: Page, made: str, downloads: Path
) -> None:
    page.open(made)
    chart = page.one(".chart svg")
    first = page.until(lambda: page.read(".plan .big"))
    ActionChains(page.driver).move_to_element_with_offset(chart, chart.size["width"] // 4, 0).click().perform()
    page.until(lambda: page.read(".plan .big") not in ("", first))
    assert page.read(".curve .readout strong") and page.all(".strip .cell")
    assert "% less loss" in page.read(".plan") and "Closeness" in page.read(".plan")
    page.click(".devices summary")
    assert len(page.all(".devices li")) == 1 + int(page.read(".devices summary").split()[1])
    assert "for weights" in page.read(".devices li")
    page.picture("model")
    page.click(".plan .primary")
    page.click(".plan .taken a")
    page.until(lambda: page.all(".artifact") and "done" in page.read(".log"))
    page.click(".artifact summary")
    rows = page.script(
        "const rows = [...document.querySelectorAll('.artifact tbody tr')];"
        "return rows.map((row) => [...row.cells].map((cell) => cell.innerText))"
    )
    digest = next(digest for name, _, digest in rows if name == "model.safetensors")
    page.click("button[aria-label='Download model.safetensors']")
    file = downloads / "model.safetensors"
    page.until(lambda: file.exists() and not list(downloads.glob("*.crdownload")))
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest


@needs_chromium
def test_the_form_says_what_it_will_make_and_how_long_that_takes(page: Page, made: str) -> None:
    page.open()
    Select(page.one("#model")).select_by_value("small-llama")
    page.one("#size").send_keys("6bpw" + Keys.ENTER)
    page.until(lambda: "The smallest possible is" in page.read(".preview"))
    page.until(lambda: "of work once it begins" in page.read(".preview"))
    Select(page.one("#model")).select_by_value(EVIL)
    page.one("#size").send_keys("7bpw" + Keys.ENTER)
    page.until(lambda: "Not measured yet" in page.read(".preview") and "minute" in page.read(".preview"))


@needs_chromium
def test_the_keyboard_is_enough(page: Page, made: str) -> None:
    page.open()
    seen = []

    def walk_to(what: str) -> None:
        for _ in range(120):
            page.press(Keys.TAB)
            here = page.script(
                "const e = document.activeElement, s = getComputedStyle(e); return [e.id || e.innerText ||"
                " e.getAttribute('aria-label'), s.outlineStyle, e.matches(arguments[0])]",
                what,
            )
            seen.append(here)
            if here[2]:
                return
        raise AssertionError(f"the focus never came to {what}: {seen}")

    walk_to(".skip")
    page.press(Keys.ENTER)
    assert page.script("return document.activeElement.id") == "main"
    walk_to("#model")
    page.press("small")
    assert page.script("return document.activeElement.value") == "small-llama"
    walk_to("#size")
    page.press("5bpw", Keys.ENTER)  # which somebody has made: the job is shared
    walk_to("form [type=submit]")
    page.press(Keys.ENTER)
    page.until(lambda: "Submitted" in page.read("form .taken"))
    page.open(made)
    walk_to(".chart")
    before, plan = page.one(".chart").get_attribute("aria-valuetext"), page.until(lambda: page.read(".plan .big"))
    page.press(Keys.END, Keys.ARROW_LEFT)
    assert page.one(".chart").get_attribute("aria-valuetext") != before
    assert page.read(".plan .big") == plan  # moving shows; Enter chooses
    page.press(Keys.ENTER)
    page.until(lambda: page.read(".plan .big") not in ("", plan))
    walk_to(".plan .primary")
    assert all(outline != "none" for _, outline, _ in seen), "a focus that cannot be seen"


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_fits_a_phone_and_can_be_read(page: Page, made: str, dark: bool) -> None:
    job = _first_job(page)
    for name, address in {"jobs": "#/", "models": "#/models", "model": made, "job": job}.items():
        for width in (360, 1600):
            page.open(address, width=width, dark=dark)
            page.one(".plan .big" if address == made else "main h1, main h2")
            page.script("for (const each of document.querySelectorAll('details')) each.open = true")
            assert page.script("return document.documentElement.scrollWidth") <= width, (name, width)
            assert not page.script(_TOO_FAINT), (name, width)
            page.script("for (const each of document.querySelectorAll('details')) each.open = false")
            page.picture(f"{name}-{width}-{'dark' if dark else 'light'}")


def _first_job(page: Page) -> str:
    page.open()
    return str(page.script("return document.querySelector('.job a').hash"))


# every text whose contrast with what lies behind it is below 4.5, as WCAG 2 defines it for AA
_TOO_FAINT = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
const rgba = (text) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => {
  const cell = e.closest(".cell")?.querySelector("rect");
  if (cell) return rgba(getComputedStyle(cell).fill);
  for (; e; e = e.parentElement) {
    const colour = rgba(getComputedStyle(e).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return rgba(getComputedStyle(document.body).backgroundColor);
};
const faint = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  const text = walker.currentNode.textContent.trim();
  if (!text || !e.checkVisibility() || e.closest(".hidden, noscript, :disabled")) continue;
  const style = getComputedStyle(e), over = rgba(e instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(over), light(behind(e))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${e.className.baseVal ?? e.className} ${text}`);
}
return faint.slice(0, 5);
"""


@needs_chromium
def test_the_theme_can_be_switched_and_is_remembered(page: Page) -> None:
    page.open()
    backgrounds = {}
    for _ in range(3):
        page.click("#theme")
        backgrounds[page.read("#theme")] = page.script("return getComputedStyle(document.body).backgroundColor")
    assert set(backgrounds) == {"Auto", "Light", "Dark"}
    assert backgrounds["Auto"] == backgrounds["Light"] != backgrounds["Dark"]
    page.click("#theme")
    page.open(dark=True)
    assert page.read("#theme") == "Light"
    assert page.script("return getComputedStyle(document.body).backgroundColor") == backgrounds["Light"]
    page.click("#theme")
    page.click("#theme")  # back to what the system says


@needs_chromium
def test_who_wants_no_motion_gets_none(page: Page, made: str) -> None:
    page.open(made, calm=True)
    assert page.script("return getComputedStyle(document.querySelector('.plan')).transitionDuration") == "0s"


@needs_chromium
def test_with_many_jobs_the_page_shows_what_runs_and_counts_the_rest(browser: Any, tmp_path: Path, roots: Path) -> None:
    with serving(tmp_path, roots, "--slots", "0") as url, watched(browser, url) as page:
        with mint.Client(url) as client:
            jobs = [*client.submit("small-llama", [f"{mb}MB" for mb in range(1, 61)])]
            jobs += client.submit("small-llama", [f"{mb}MB" for mb in range(61, 121)])
            jobs += client.submit("small-llama", [f"{mb}MB" for mb in range(121, 181)])
            for job in jobs[1:31]:
                client.cancel(job.id)
        with closing(connect(Settings(tmp_path).database_url)) as database:
            assert Queue(database).claim("studio")
        page.open()
        page.until(lambda: page.read("[data-group=running] h3") == "Running 1")
        assert page.read("[data-group=running] .budget") == "1MB"
        assert page.read("[data-group=waiting] h3") == "Waiting 149"
        assert page.read("[data-group=ended] h3") == "Ended 30"
        assert len(page.all("[data-group=waiting] .job")) == 100
        assert page.read("[data-group=waiting] .state") == "waiting, no. 1"
        page.picture("many jobs")
        assert page.read("[data-group=waiting] > button") == "Show 49 more of 49"
        page.click("[data-group=waiting] > button")
        page.until(lambda: len(page.all("[data-group=waiting] .job")) == 149)
        page.one("#search").send_keys("120MB")
        page.until(lambda: page.read("[data-group=waiting] h3") == "Waiting 1")
        assert page.read("[data-group=ended]").endswith("shows up here.")


@needs_chromium
def test_a_name_that_turns_text_around_changes_nothing_beside_it(page: Page) -> None:
    page.open()
    shown = page.module("""
        const {JobCard} = await import("/static/card.js");
        const {JobRow} = await import("/static/row.js");
        const job = {
          id: "0", model: "lab/evil\u202elamaj", budget: "24GB", state: "failed", reason: "no \u202emodel",
          owner: "\u202eada", host: "", watchers: [], mine: true, attempts: 1, created_at: 1, started_at: 2,
          finished_at: 3, in_words: {}};
        const card = new JobCard(job), row = new JobRow(job);
        card.element.append(row.element);
        const texts = document.createTreeWalker(card.element, NodeFilter.SHOW_TEXT);
        const bare = [];
        while (texts.nextNode()) {
          const {data, parentElement} = texts.currentNode;
          if (data.includes("\u202e") && parentElement.localName !== "bdi") bare.push(data);
        }
        const labels = [...card.element.querySelectorAll("[aria-label]")].map((node) => node.ariaLabel);
        labels.push(row.element.title);
        return [bare, labels.filter((label) => label.includes("\u202e"))];
    """)
    assert shown == [[], []]


@needs_chromium
def test_a_name_that_is_markup_stays_text(page: Page) -> None:
    page.open("#/models")
    page.until(lambda: EVIL in page.read("table"))
    page.script("[...document.querySelectorAll('td a')].find((a) => a.text.startsWith('<')).click()")
    page.until(lambda: page.read("h1") == EVIL)
    assert page.script("return window.pwned") is None
    assert page.script("return document.querySelectorAll('main img, main script').length") == 0


@needs_chromium
def test_what_is_no_budget_is_refused_with_what_is_needed(page: Page) -> None:
    page.open()
    page.one("#size").send_keys("24" + Keys.ENTER)
    assert "24 has no unit" in page.read("#size-wrong")
    page.one("#size").clear()
    page.one("#size").send_keys("1234567.8GB" + Keys.ENTER)
    page.forgiven = ("422",)
    page.click("form [type=submit]")
    page.until(lambda: "1234567.8GB" in page.read("form .alert"))
    assert "pattern" not in page.read("form .alert")


@needs_chromium
def test_a_budget_that_is_too_small_says_so_in_the_queue_or_at_once_if_the_model_is_analyzed(
    page: Page, made: str
) -> None:
    page.open()
    submit(page, EVIL, "20kB")
    page.until(lambda: "too small" in page.read(".job[data-state='failed'] .reason"))
    assert page.read("#announcements").endswith("failed")
    page.forgiven = ("422",)
    Select(page.one("#model")).select_by_value("small-llama")
    page.one("#size").send_keys("20kB" + Keys.ENTER)
    page.click("form [type=submit]")
    page.until(lambda: "smallest" in page.read("form > .alert"))


@needs_chromium
def test_the_end_of_a_job_is_announced_though_it_came_before_the_answer_to_its_submission(
    page: Page, made: str
) -> None:
    page.open()
    page.script(
        "const real = fetch, held = new Promise((go) => { window.answerNow = go; });"
        "window.fetch = async (place, options) => {"
        "  const answer = await real(place, options);"
        "  if (options?.method === 'POST') await held;"
        "  return answer;"
        "}"
    )
    Select(page.one("#model")).select_by_value(EVIL)
    page.one("#size").send_keys("21kB" + Keys.ENTER)
    page.click("form [type=submit]")
    page.until(lambda: "21kB" in page.read("[data-group='ended'] .job[data-state='failed']"))
    page.script("window.answerNow()")
    page.until(lambda: page.read("#announcements").endswith("21kB: failed"))


@needs_chromium
def test_a_model_of_the_hub_is_fetched_in_sight_and_then_submitted(
    browser: Any, tmp_path: Path, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_hub() as hub:
        hub.add("Owner/tiny", roots / "small-llama")
        hub.holds["model.safetensors"] = 1 << 15
        for name, value in hub.environment(tmp_path / "hub").items():
            monkeypatch.setenv(name, value)
        with (
            serving(tmp_path / "data", roots, "--slots", "0", "--allow-hub") as url,
            watched(browser, url) as page,
        ):
            page.forgiven = ("409",)  # the console shows every answer that is an error
            page.open()
            page.script("arguments[0].value = ''", page.one("#model"))
            page.one("#model").send_keys("Owner/tiny")
            page.one("#size").send_keys("5bpw")
            page.click("form [type=submit]")
            page.until(lambda: re.search(r"Fetching Owner/tiny from the hub: \d+ % of \d", page.read("form .taken")))
            page.picture("fetch")
            hub.go.set()
            page.until(lambda: page.read("form .taken") == "Submitted one job.")
            page.until(lambda: "tiny" in page.read(".job[data-state='queued']"))


@needs_chromium
def test_a_token_is_typed_once_and_travels_in_a_header_only(browser: Any, tmp_path: Path, roots: Path) -> None:
    token = make_token(tmp_path, "ada")
    with serving(tmp_path, roots, "--slots", "0") as url, watched(browser, url) as page:
        page.forgiven = ("401",)
        page.open()
        page.one("#token").send_keys("mint_wrong" + Keys.ENTER)
        page.until(lambda: "does not know" in page.read(".alert"))
        page.picture("sign-in")
        page.one("#token").clear()
        page.one("#token").send_keys(token + Keys.ENTER)
        submit(page, EVIL, "4.5bpw")
        page.driver.refresh()
        page.until(lambda: page.read(".queue .owner") == "ada")
        assert EVIL in page.read(".queue") and page.script("return window.pwned") is None
        page.click(".job button[aria-label^='Cancel']")
        page.until(lambda: page.all(".job[data-state='cancelled']"))
        sent = page.requests()
        assert not any(token in request["url"] or token in request.get("postData", "") for request in sent)
        assert any(request["headers"].get("Authorization") == f"Bearer {token}" for request in sent)
        assert token not in page.script("return JSON.stringify({...localStorage}) + document.cookie")
        page.click("#leave")
        page.one("#token")
        assert token not in page.script("return JSON.stringify({...sessionStorage})")


@needs_chromium
def test_a_card_shows_how_far_every_host_is(page: Page) -> None:
    page.open()
    drawn = page.module("""
        const {JobCard} = await import("/static/card.js");
        const job = {
          id: "0", model: "lab/large", budget: "24GB", state: "analyzing", reason: "", owner: "ada", host: "studio",
          watchers: ["ada", "grace"], mine: true, attempts: 2, created_at: 1, started_at: 2, finished_at: null};
        const card = new JobCard(job);
        document.querySelector("main").replaceChildren(card.element);
        const hosts = [
          {host: "studio", done: 3e9, bytes_per_second: 2e9},
          {host: "mini", done: 1e9, bytes_per_second: 0}];
        const item = "model.layers.3.mlp.up_proj";
        card.progress({stage: "analyze", done: 4e9, total: 16e9, item, hosts});
        const bars = [...document.querySelectorAll(".track progress, .hosts progress")].map((bar) => bar.value);
        return [document.querySelector(".job").innerText.split("\\n").map((line) => line.trim()), bars];
    """)
    lines, bars = drawn
    assert "25 % · 4 GB of 16 GB · model.layers.3.mlp.up_proj" in lines
    assert "3 GB · 2 GB/s" in lines and "1 GB" in lines
    assert any(line.startswith("asked by ada, grace · on studio") and line.endswith("attempt 2") for line in lines)
    assert bars == [1, 0.25, 0, 0, 0, 0, 1, pytest.approx(1 / 3)]


@needs_chromium
def test_a_stream_that_breaks_off_goes_on_after_the_last_event(page: Page) -> None:
    page.open()
    got, last_ids = page.module("""
        const {follow} = await import("/static/stream.js");
        const answers = ['id: 1\\nevent: note\\ndata: {"at": 1}\\n\\nid: 2\\nevent: no', null,
          ': hello\\r\\n\\r\\nid: 2\\r\\nevent: note\\r\\ndata: {"at": 2,\\r\\ndata: "x": "é"}\\r\\n\\r\\n'];
        const [real, asked, got] = [window.fetch, [], []];
        window.fetch = async (path, {headers}) => {
          asked.push(headers["Last-Event-ID"] ?? null);
          const text = answers.shift();
          if (text === null) throw new TypeError("the network is gone");
          if (text === undefined) return new Response(null, {status: 204});
          const bytes = new TextEncoder().encode(text);
          return new Response(new ReadableStream({pull(to) {  // a byte at a time, so that every cut is tried
            to.enqueue(bytes.slice(this.at, this.at + 1)), this.at += 1;
            if (this.at >= bytes.length) to.close();
          }, at: 0}));
        };
        await follow("/v1/jobs/0/events", {onEvent: (e) => { got.push(e); }, signal: new AbortController().signal});
        window.fetch = real;
        return [got, asked];
    """)
    assert got == [
        {"seq": 1, "kind": "note", "at": 1, "body": {}},
        {"seq": 2, "kind": "note", "at": 2, "body": {"x": "é"}},
    ]
    assert last_ids == [None, "1", "1", "2"]


@needs_chromium
def test_ticks_are_round_ordered_few_and_on_the_axis(page: Page) -> None:
    page.open()
    wrong = page.module("""
        const {fitting, ticks} = await import("/static/scale.js");
        const wrong = [];
        for (const low of [1e-9, 0.003, 0.7, 1, 42, 1e7, 3.3e9])
          for (const factor of [1.01, 1.7, 5, 13, 400, 1e7])
            for (const count of [2, 3, 6, 10]) {
              const scale = fitting(low, low * factor, 0, 500), found = ticks(scale, count), places = found.map(scale);
              const good = found.length <= 2 * count + 1 && (found.length >= 1 || scale.isLog)
                && places.every((p, i) => p >= -1e-6 && p <= 500 + 1e-6 && (i === 0 || p > places[i - 1]))
                && found.every((v) => Math.abs(Number(v.toPrecision(5)) - v) < 1e-9 * v);
              if (!good) wrong.push([low, factor, count, found]);
            }
        return wrong;
    """)
    assert not wrong


def test_the_page_holds_nothing_inline_and_asks_no_other_host() -> None:
    for path in WEB.iterdir():
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", text), path
        assert not re.search(r"(?<!xmlns=\")https?://(?!www\.w3\.org/)", text), path
        assert len(text.splitlines()) <= 400, path
    html = (WEB / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
