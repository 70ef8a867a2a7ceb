"""The page of administrators in a real Chromium: what they see, and what they do with it, by keyboard too."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("selenium")

from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import mint
from cluster.service.data.database import connect
from cluster.service.data.tokens import Tokens
from cluster.service.queue.queue import Queue
from cluster.service.settings import Settings
from tests.worlds.page_world import Page, make_token, needs_chromium, serving, watched

pytestmark = needs_chromium


@pytest.fixture
def lab(tmp_path: Path, roots: Path) -> Iterator[tuple[str, str]]:
    """A service that runs no job itself: one job runs elsewhere, one failed, one waits; and the token of its admin."""
    with closing(connect(Settings(tmp_path).database_url)) as database:
        scopes = {"root": ["admin"], "ada": ["read", "submit"], "grace.hopper@lab": ["read", "submit"]}
        tokens = {name: Tokens(database).create(name, may) for name, may in scopes.items()}
    with serving(tmp_path, roots, "--slots", "0") as url:
        with mint.Client(url, tokens["ada"]) as ada, mint.Client(url, tokens["grace.hopper@lab"]) as grace:
            ada.submit("small-llama", ["1MB", "2MB"])
            grace.submit("small-llama", ["3GB"])
            with closing(connect(Settings(tmp_path).database_url)) as database:
                queue = Queue(database)
                failed = queue.claim("mini")
                assert failed
                queue.advance(failed, "failed", reason="the disk of mini is broken")
                running = queue.claim("studio")
                assert running
                queue.emit(running, "note", {"message": "hello"})
        log = Settings(tmp_path).log_path(failed.job.id)
        log.parent.mkdir(exist_ok=True)
        log.write_text("loading\nOSError: broken\n")
        yield url, tokens["root"]


@pytest.fixture
def page(browser: Any, lab: tuple[str, str]) -> Iterator[Page]:
    url, token = lab
    with watched(browser, url) as page:
        page.forgiven = ("401",)
        page.open()
        page.one("#token").send_keys(token + Keys.ENTER)
        page.until(lambda: page.read("#admin") == "Administration")
        page.open("#/admin")
        yield page
        page.click("#leave")
        page.one("#token")


def choose(page: Page, states: str) -> None:
    Select(page.one("#job-states")).select_by_value(states)


def test_an_admin_sees_jobs_people_machines_disk_and_the_audit_log(page: Page) -> None:
    text = page.until(lambda: page.read("main"))
    for said in ("Running\n1", "Waiting\n1", "Failed\n1", "studio", "grace.hopper@lab", "Nothing is stored yet.",
                 "job.submitted"):  # fmt: skip
        assert said in text, said
    choose(page, "failed")
    page.until(lambda: "the disk of mini is broken" in page.read("main"))
    page.one("#audit-search").send_keys("refused")
    page.until(lambda: "job.submitted" not in page.read("main section:last-child"))


def test_an_admin_requeues_pauses_and_reads_logs(page: Page) -> None:
    choose(page, "failed")
    page.until(lambda: "broken" in page.read("table"))
    page.click("[data-key^=Log]")
    page.until(lambda: "OSError: broken" in page.read("dialog .output"))
    page.picture("admin-log")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog"))
    page.click("[data-key^=Requeue]")
    page.until(lambda: "Waiting\n2" in page.read("main .facts"))
    choose(page, "waiting")
    page.until(lambda: len(page.all("[data-key^=Pause]")) == 2)
    page.click("[data-key^=Pause]")
    page.until(lambda: "paused" in page.read("main table"))


def test_an_admin_changes_a_quota_drains_a_machine_and_cancels_by_keyboard_alone(page: Page) -> None:
    page.script("document.querySelector('[data-key=\"quota-ada\"]').focus()")
    page.press(Keys.ENTER)
    page.until(lambda: page.all("dialog"))
    page.press("1", Keys.TAB, "5", Keys.TAB, "2.5", Keys.TAB, "vision, speech", Keys.ENTER)
    page.until(lambda: "1 running, 5 unfinished, 2.5 GB" in page.read("main"))
    assert "speech, vision" in page.read("main")
    assert page.script("return document.activeElement.dataset.key") == "quota-ada"
    page.script("document.querySelector('[data-key=drain-studio]').focus()")
    page.press(Keys.ENTER)
    page.until(lambda: "begins no job, by root" in page.read("main"))
    assert page.script("return document.activeElement.dataset.key") == "drain-studio"
    page.press(Keys.SPACE)
    page.until(lambda: "begins no job" not in page.read("main"))
    page.script("document.querySelector('[data-key^=Cancel]').focus()")
    page.press(Keys.ENTER)
    page.until(lambda: page.all("dialog"))
    page.press(Keys.ENTER)  # the button of the dialog has the focus
    page.until(lambda: not page.all("dialog") and "job.cancelled" in page.read("main section:last-child"))


def test_it_fits_every_screen(page: Page) -> None:
    for width in (390, 1600):
        for theme in ("light", "dark"):
            page.open("#/admin", width=width, dark=theme == "dark")
            page.until(lambda: page.all("[data-key^=Log]"))
            assert page.script("return document.documentElement.scrollWidth") <= width
            page.picture(f"admin-{width}-{theme}")


def test_others_neither_see_the_link_nor_the_page(browser: Any, tmp_path: Path, roots: Path) -> None:
    token = make_token(tmp_path, "ada")
    with serving(tmp_path, roots, "--slots", "0") as url, watched(browser, url) as page:
        page.forgiven = ("401",)
        page.open()
        page.one("#token").send_keys(token + Keys.ENTER)
        page.until(lambda: page.read("#leave") == "Sign out ada")
        assert not page.one("#admin").is_displayed()
        page.open("#/admin")
        page.until(lambda: "scope admin" in page.read("main"))
        page.click("#leave")
        page.one("#token")
