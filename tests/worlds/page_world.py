"""A real `mint serve` and a real Chromium that looks at it, for the tests of the page."""

import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.conftest import own_cache

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
EVIL = "<img src=x onerror=window.pwned=1>"  # the name of a model
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
)
PICTURES = Path(__file__).parents[2] / ".artifacts" / "page"
PATIENCE = 120.0  # seconds; a busy machine is slow, and nothing waits longer than it has to
_SERVE = "import sys; from cluster.service.commands.serve import app; app(sys.argv[1:])"
_TOKEN = "import sys; from cluster.service.commands.token import app; app(sys.argv[1:])"
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # which Chromium refuses to have as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@contextmanager
def serving(data: Path, roots: Path, *options: str) -> Iterator[str]:
    """The address of a service that runs as a process of its own."""
    own_cache(data / "cache")
    arguments = ["--data", str(data), "--root", str(roots), "--port", "0", *options]
    process = subprocess.Popen([sys.executable, "-c", _SERVE, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert "http://" in line, f"mint serve said {line!r} and ended with {process.wait()}"
        yield next(word for word in line.split() if word.startswith("http")).rstrip("/")
    finally:
        process.terminate()
        process.wait(timeout=30)
        if process.stdout:
            process.stdout.close()


def make_token(data: Path, name: str, scopes: str = "read,submit") -> str:
    """A new token of `mint token create`."""
    command = [sys.executable, "-c", _TOKEN, "create", name, "--scope", scopes, "--data", str(data)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def chromium(downloads: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that puts what it downloads into a folder."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for switch in (*_SWITCHES, f"--user-data-dir={downloads / 'profile'}"):
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER), env=environment))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page of a service as somebody sees and uses it."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        self.forgiven: tuple[str, ...] = ()  # messages that the console may have

    def open(self, address: str = "#/", *, width: int = 1280, dark: bool = False, calm: bool = False) -> None:
        """Load an address of the page afresh, on a screen of this width."""
        device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/{address}")
        self.until(lambda: self.all("main h1, main h2"))

    def all(self, css: str) -> list[WebElement]:
        """Every element of a selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        """The first element of a selector, once it is there."""
        element: WebElement = self.until(lambda: next(iter(self.all(css)), None))
        return element

    def click(self, css: str) -> None:
        """Click the first element of a selector, once it is there; again where the page has just replaced it."""

        def clicked() -> bool:
            try:
                self.one(css).click()
            except StaleElementReferenceException:
                return False
            return True

        self.until(clicked)

    def read(self, css: str) -> str:
        """The text of the first element of a selector."""
        return str(self.script("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def until(self, what: Callable[[], Any]) -> Any:
        """Wait until something is true, and get it."""
        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.05).until(lambda _: what())

    def press(self, *keys: str) -> None:
        """Type on the keyboard, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def script(self, text: str, *arguments: Any) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(text, *arguments)

    def module(self, text: str) -> Any:
        """Run an async function's body that may import the page's modules, and get what it returns."""
        wrapped = f"const done = arguments[0]; (async () => {{{text}}})().then(done, (e) => done('raised ' + e));"
        return self.driver.execute_async_script(wrapped)

    def picture(self, name: str) -> None:
        """Keep what the page looks like, whole, as .artifacts/page/NAME.png."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        (PICTURES / f"{name}.png").write_bytes(b64decode(shot["data"]))

    def requests(self) -> list[dict[str, Any]]:
        """Every request that left the browser since this was asked last."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [
            message["params"]["request"] for message in messages if message["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> Sequence[str]:
        """Warnings and errors of the console since the last call."""
        messages = [entry["message"] for entry in self._log("browser") if entry["level"] != "INFO"]
        return [message for message in messages if not any(forgiven in message for forgiven in self.forgiven)]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        get_log: Any = self.driver.get_log  # has no annotations
        entries: list[dict[str, Any]] = get_log(kind)
        return entries


@contextmanager
def watched(browser: Any, url: str) -> Iterator[Page]:
    """A page that keeps the console silent and asks nothing of another host, or the test fails."""
    page = Page(browser, url)
    browser.get("about:blank")  # ends the requests of the page before
    page.requests(), page.complaints()
    yield page
    assert not page.complaints()
    foreign = [
        request["url"]
        for request in page.requests()
        if not request["url"].startswith((url, "about:", "data:", "chrome:"))
    ]
    assert not foreign


def submit(page: Page, model: str, *budgets: str) -> None:
    """Fill in the form and send it."""
    Select(page.one("#model")).select_by_value(model)
    for budget in budgets:
        page.one("#size").send_keys(budget + Keys.ENTER)
    page.click("form [type=submit]")
    page.until(lambda: page.read("form .taken"))
