"""Writes `docs/playground.png`, the playground on the built-in model:
`PYTHONPATH=.browser/python python -m recipes.playground_picture` after `make test-browser`."""

import base64
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

from fader import Fader
from fader.server import run
from fader.server.app import create_app
from fader.server.keys import Keys

ROOT = Path(__file__).parent.parent
PIRATE = {"kind": "contrast", "principle": "Answer like a pirate.", "weight": 3}
STATE = {
    "question": "I failed my exam. What should I do?",
    "sampling": {"temperature": 0, "max_tokens": 60},
    "columns": [
        {"name": "Formal", "alignment": {"vectors": {"formal": 1}}},
        {"name": "Pirate", "alignment": {"guides": [PIRATE]}},
    ],
}
"""What the page shows, as its links hold it."""


@contextmanager
def served() -> Iterator[str]:
    """Within: a server on the built-in model, at this address."""
    with Fader() as fader:
        app, serving = create_app(fader.backend, Keys(Path("/nonexistent/keys.json")))
        listening = socket.create_server(("127.0.0.1", 0))
        server = run.server(app, serving)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def main() -> None:
    """Ask, wait for the answers, and keep the screen."""
    chromium = os.environ.get("FADER_CHROMIUM") or shutil.which("chromium")
    link = base64.urlsafe_b64encode(json.dumps(STATE).encode()).decode().rstrip("=")
    with served() as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        page = browser.new_page(
            viewport={"width": 1280, "height": 780}, color_scheme="light", reduced_motion="reduce"
        )
        page.set_default_timeout(600_000)
        page.goto(f"{url}/#{link}")
        ask = page.get_by_role("button", name="Ask", exact=True)
        ask.click()
        page.get_by_role("button", name="Stop").first.wait_for()
        ask.wait_for()
        page.get_by_role("button", name="Adjust column B").click()
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=ROOT / "docs" / "playground.png")
        browser.close()


if __name__ == "__main__":
    main()
