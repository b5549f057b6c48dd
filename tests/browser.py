"""Debian's chromium, driven by playwright, for the tests of the page: `make test-browser`."""

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AXE = ROOT / ".browser" / "axe.min.js"
CHROMIUM = os.environ.get("FADER_CHROMIUM") or shutil.which("chromium")


@contextmanager
def browser():
    """A chromium without a screen; skips where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; run `make test-browser`"
    )
    if CHROMIUM is None:
        pytest.skip("there is no chromium: `apt-get install chromium`, or set FADER_CHROMIUM")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


class Watched:
    """A page in which nothing may fail, and that may load nothing from elsewhere."""

    def __init__(self, context, url, link=""):
        self.url, self.wrong, self.asked = url, [], []
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", self._requested)
        self.page.goto(url + "/" + link)
        self.settled()
        if not link and self.page.get_by_role("button", name="Reset").is_visible():
            self.page.get_by_role("button", name="Reset").click()
            self.settled()

    def _said(self, message):
        # the browser itself notes answers that are no success
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.wrong.append(message.text)

    def _requested(self, request):
        if not request.url.startswith((self.url, "blob:")):
            self.wrong.append(f"loads {request.url}")
        if request.url.endswith("/v1/chat/completions"):
            self.asked.append(request.post_data_json)

    def column(self, letter):
        return self.page.locator("article.column", has=self.page.locator(f".letter.of-{letter}"))

    def text(self, letter):
        """A column's answer, without the mark of its end."""
        return self.column(letter).locator(".answer").inner_text().replace("▪", "")

    def slider(self, name):
        return self.page.get_by_role("slider", name=name, exact=True)

    def section(self, title):
        """Open a section of the desk."""
        found = self.page.locator("details.section", has=self.page.get_by_text(title, exact=True))
        if found.get_attribute("open") is None:
            found.locator("summary").first.click()
        return found

    def ask(self, question=None, tokens=8, temperature=0):
        """Ask, and wait for all answers."""
        if question is not None:
            self.section("Sampling")
            self.page.get_by_label("Tokens at most").fill(str(tokens))
            self.page.get_by_label("Temperature").fill(str(temperature))
            self.page.get_by_label("Your question").fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        self.settled()

    def settled(self):
        """Wait until the page knows the server, edits are checked, and answers are there."""
        self.page.locator("main[aria-busy=false]").wait_for()

    def faults(self):
        """What axe-core finds, a line each."""
        found = self.page.evaluate(
            "async (source) => { (0, eval)(source); return (await axe.run()).violations; }",
            AXE.read_text(),
        )
        return [
            f"{one['id']}: {node['html'][:160]} {re.sub(chr(10), ' ', node['failureSummary'])}"
            for one in found
            for node in one["nodes"]
        ]
