"""One service, one browser and one finished model for all tests of the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.worlds.zoo import write_model

if TYPE_CHECKING:
    from tests.worlds.page_world import Page


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of them with a name that is also markup."""
    from tests.worlds.page_world import EVIL

    folder = tmp_path_factory.mktemp("roots")
    write_model("llama", folder / "small-llama", tokenizer=True)
    write_model("llama", folder / EVIL, seed=1)
    return folder


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, roots: Path) -> Iterator[str]:
    """A service that works."""
    from tests.worlds.page_world import serving

    with serving(tmp_path_factory.mktemp("service"), roots) as url:
        yield url


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def browser(downloads: Path) -> Iterator[Any]:
    from tests.worlds.page_world import chromium

    with chromium(downloads) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, service: str) -> "Iterator[Page]":
    from tests.worlds.page_world import watched

    with watched(browser, service) as page:
        yield page


@pytest.fixture(scope="session")
def made(browser: Any, service: str) -> str:
    """The address of a model that was submitted in the page with a budget and is done."""
    from tests.worlds.page_world import Page, submit

    page = Page(browser, service)
    page.open()
    submit(page, "small-llama", "5bpw")
    page.until(lambda: "done" in page.read("[data-state='done'] .state"))
    page.open("#/models")
    return str(page.script("return [...document.querySelectorAll('td a')].find((a) => a.text === 'small-llama').hash"))
