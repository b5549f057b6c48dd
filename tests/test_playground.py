"""The page's files as the server gives them; `test_browser.py` uses the page."""

import re
from html.parser import HTMLParser

import pytest
from serving import serve

from fader.server.keys import Keys
from fader.server.playground import FOLDER, KINDS, files


@pytest.fixture(scope="module")
def served(tiny):
    with serve(tiny.backend) as found:
        yield found


def test_the_page_and_its_files_are_served_with_a_strict_policy(served):
    assert served.http.get("/").text.startswith("<!doctype html>")
    for address, (content, kind) in files().items():
        answer = served.http.get(address)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content == content
        policy = dict(
            part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert answer.headers["x-frame-options"] == "DENY"
    assert "unsafe" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "address", ["/page/", "/page/../keys.py", "/page/%2e%2e/keys.py", "/page//etc/passwd", "/x"]
)
def test_nothing_else_is_a_file_of_the_page(served, address):
    found = served.http.get(address)
    assert found.status_code == 404
    assert found.json()["error"]["message"]


def test_the_page_needs_no_key_and_the_api_does(tiny, tmp_path):
    Keys(tmp_path / "keys.json").add("me")
    with serve(tiny.backend, tmp_path / "keys.json") as served:
        assert served.http.get("/").status_code == 200
        assert served.http.get("/page/app.js").status_code == 200
        assert served.http.get("/v1/models").status_code == 401


class _Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.inline = [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.found += [given[name] for name in ("src", "href") if given.get(name)]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]


def test_the_page_loads_its_own_files_alone():
    page = _Addresses()
    page.feed((FOLDER / "index.html").read_text())
    assert all(f"/{address}" in files() for address in page.found)
    assert not page.inline
    for file in FOLDER.rglob("*.js"):
        for name in re.findall(r'from "(\./[^"]+)"', file.read_text()):
            assert (file.parent / name).is_file(), f"{file.name} imports {name}"
    for file in FOLDER.glob("*.*"):  # what is written here; others' code names its own sites
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", file.read_text()), file


def test_text_never_becomes_markup():
    for file in FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerously|\beval\(",
            file.read_text(),
        ), file


def test_what_is_from_others_has_its_licence_beside_it():
    vendor = FOLDER / "vendor"
    for name in ("preact", "htm", "signals", "uplot"):
        assert "Copyright" in (vendor / f"LICENSE.{name}.txt").read_text()
    told = (vendor / "README.md").read_text()
    for file in vendor.iterdir():
        if file.suffix in KINDS:
            assert f"`{file.name}`" in told
