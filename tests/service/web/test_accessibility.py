"""Every part of the page against the rules of axe-core, in both themes and on a phone: WCAG 2.1, levels A and AA."""

import importlib.util
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("selenium")
pytest.importorskip("axe_core_python", reason="pip install axe-core-python")

from cluster.service.data.database import connect
from cluster.service.data.tokens import Tokens
from cluster.service.settings import Settings
from tests.worlds.page_world import Page, needs_chromium, serving, watched

pytestmark = needs_chromium
_SPEC = importlib.util.find_spec("axe_core_python")
AXE = Path(_SPEC.origin).with_name("axe.min.js") if _SPEC and _SPEC.origin else Path()
_RUN = """
const done = arguments[0];
axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}).then(({violations}) =>
  done(violations.map(({id, nodes}) => [id, ...nodes.slice(0, 3).map(({html}) => html.slice(0, 160))].join(" | "))),
  (error) => done([String(error)]));
"""


def violations(page: Page) -> list[str]:
    """The rules that the page breaks now, each with the elements."""
    page.script(AXE.read_text())
    found: list[str] = page.driver.execute_async_script(_RUN)
    return found


def test_no_part_of_the_page_breaks_a_rule(page: Page, made: str) -> None:
    page.open()
    job = str(page.script("return document.querySelector('.job a').hash"))
    broken = {}
    for name, address, ready in (
        ("jobs", "#/", ".job"), ("models", "#/models", "table"), ("model", made, ".plan .big"),
        ("job", job, ".artifact"), ("admin", "#/admin", "[data-key^=quota]"), ("nowhere", "#/nowhere", ".alert"),
    ):  # fmt: skip
        for width, dark in ((1280, False), (390, True)):
            page.open(address, width=width, dark=dark)
            page.one(ready)
            page.script("for (const each of document.querySelectorAll('details')) each.open = true")
            if rules := violations(page):
                broken[name, width] = rules
    assert not broken


def test_neither_a_dialog_nor_the_sign_in_breaks_a_rule(page: Page, made: str, browser: Any, tmp_path: Path) -> None:
    page.open("#/admin")
    page.click("[data-key^=quota]")
    page.until(lambda: page.all("dialog input"))
    assert not violations(page)
    with closing(connect(Settings(tmp_path).database_url)) as database:
        Tokens(database).create("ada", ["read"])
    with serving(tmp_path, tmp_path, "--slots", "0") as url, watched(browser, url) as closed:
        closed.forgiven = ("401",)
        closed.open()
        closed.one("#token")
        assert not violations(closed)
