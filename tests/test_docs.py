"""Docs cannot lie: option tables list the schema, the file map lists the files, Python blocks run,
commands are those that the command line takes, and alignments are alignments."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
import typer
import yaml
from test_cli import run

from fader import request
from fader.cli import app
from fader.request import Alignment
from fader.rewards import specs as reward_specs
from fader.schema import Invalid, parse
from recipes import docs

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


class Block(NamedTuple):
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    not_run: str
    """Why it is not run; empty: it is."""


def read_blocks(page):
    text = page.read_text()
    for found in re.finditer(
        r"(?:<!-- not run: (.+?) -->\n+)?^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Block(page.name, line, found[2], found[3], found[1] or "")


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


@pytest.mark.parametrize("path", docs.generated(), ids=lambda path: path.name)
def test_what_the_code_says_is_in_the_docs(path):
    """Tables of fields, the table of files, the picture of the rooms."""
    assert docs.generated()[path] == path.read_text(), "run: python -m recipes.docs"


def test_every_module_says_what_it_is():
    ideas = {file: docs.idea(file) for file in ROOT.glob("fader/**/*.py")}
    assert not [file for file, idea in ideas.items() if not 5 <= len(idea) <= 200]


def test_a_class_needs_a_section_with_a_table():
    page = (ROOT / "docs" / "rewards.md").read_text()
    with pytest.raises(ValueError, match="no section on RegexSpec"):
        docs.with_tables(page.replace("### `RegexSpec`", "### `Regex`"), reward_specs)
    with pytest.raises(ValueError, match="section on RegexSpec has no table"):
        docs.with_tables(page.replace("### `RegexSpec`", "### `RegexSpec`\n\n### x"), reward_specs)


def test_fields_in_words():
    page = docs.with_tables((ROOT / "docs" / "request.md").read_text(), request)
    for line in (
        "| `temperature` | number from 0 | 0 |",
        "| `repetition_penalty` | number above 0 | 1 |",
        "| `lookahead` | integer from 0, `sentence` or `end` | 16 |",
        "| `components` | list of [`Component`](#component), at least one | required |",
        '| `reference` | [`PolicySpec`](#policyspec) | `{"vectors": {}}` |',
    ):
        assert line in page


def commands(block):
    """The commands of a console block, each as its words."""
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block.text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\$ | # .*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    words = shlex.shlex(text, posix=True, punctuation_chars="|\n")
    words.whitespace, words.whitespace_split, words.commenters = " \t", True, ""
    command = []
    for word in [*words, "\n"]:
        if not word.strip("|\n"):
            if command:
                yield command
            command = []
        else:
            command.append(word)


def told():
    """Every `fader` command of the documentation, by its place."""
    for block in BLOCKS:
        if block.language in ("console", "sh", "bash"):
            for command in commands(block):
                if "fader" in command[:1]:
                    yield pytest.param(command[1:], id=f"{block.page}:{block.line}:{command[1]}")


TOLD = list(told())


def test_the_documentation_shows_commands():
    names = {" ".join(one.values[0][:2]) for one in TOLD}
    assert len(TOLD) > 40
    assert {"eval levels", "vectors merge", "data check", "train vector"} <= names


@pytest.mark.parametrize("arguments", TOLD)
def test_commands_of_the_documentation_are_understood(arguments):
    """The real command line parses them: command, options, values and arguments."""
    command, rest = typer.main.get_command(app), [*arguments]
    while hasattr(command, "commands") and (rest or not command.invoke_without_command):
        name = rest.pop(0)
        command = command.commands[name]
    context = command.make_context(name, rest)
    align = context.params.get("align")
    if align and align.startswith("{"):
        parse(Alignment, json.loads(align))


QUICK = [["schema"], ["models"], ["profiles"], ["vectors", "list"]]


@pytest.mark.parametrize("arguments", QUICK)
def test_commands_that_only_show_run(arguments, tmp_path):
    assert run(*arguments, cwd=tmp_path).returncode == 0


def in_page(language):
    """The blocks of a language by page, those of one page in order."""
    found = {}
    for block in BLOCKS:
        if block.language == language:
            found.setdefault(block.page, []).append(block)
    return found


def test_few_blocks_are_not_run():
    left_out = [block for block in BLOCKS if block.not_run]
    assert len(left_out) <= 3
    assert all(block.language == "python" and len(block.not_run) > 10 for block in left_out)


@pytest.mark.parametrize("page", in_page("python"))
def test_python_blocks_run(page, shared, tmp_path, monkeypatch):
    """In order, as in one file: a block goes on with what those before it have made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".fader" / "profiles").mkdir(parents=True)
    (tmp_path / ".fader" / "profiles" / "pirate.yaml").write_text(
        "guides: [{kind: contrast, principle: Answer like a pirate.}]"
    )
    names = {"__name__": "__main__"}
    for block in in_page("python")[page]:
        if not block.not_run:
            code = "\n" * block.line + block.text  # so that a traceback shows the page's lines
            exec(compile(code, page, "exec", dont_inherit=True), names)


@pytest.mark.parametrize(
    "block",
    [
        block
        for block in BLOCKS
        if block.language in ("json", "yaml") and "preferred_output" not in block.text  # data
    ],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_alignments_of_the_documentation_are_alignments(block):
    parse(Alignment, yaml.safe_load(block.text))


def test_requests_of_the_documentation_are_requests():
    """Lines of JSON within commands, such as those of a file of requests."""
    rows = [
        json.loads(line)
        for block in BLOCKS
        if block.language in ("bash", "console")
        for line in block.text.splitlines()
        if line.startswith("{")
    ]
    assert len(rows) >= 5
    for row in rows:
        request.Request.of({name: one for name, one in row.items() if name != "answer"})


def test_errors_of_the_documentation_are_those_that_come():
    starts = ("request.md", "alignment.")
    (shown,) = (b.text for b in BLOCKS if b.page == starts[0] and b.text.startswith(starts[1]))
    guide = {"kind": "contrast", "principle": "", "wieght": 1}
    with pytest.raises(Invalid) as caught:
        parse(Alignment, {"guides": [guide], "vector": {}}, "alignment")
    assert str(caught.value) == shown.strip()


def test_files_that_the_documentation_names_are_there():
    named = r"`((?:fader|recipes|tests|examples|benchmarks|reproductions|docs)/[\w/.-]+\.\w+)`"
    for file in [*PAGES, *ROOT.glob("*.md")]:
        missing = [one for one in re.findall(named, file.read_text()) if not (ROOT / one).exists()]
        assert not missing, f"{file.name}: {missing}"


def test_every_paper_of_the_code_is_in_the_index():
    index = (ROOT / "docs" / "papers.md").read_text()
    for file in ROOT.glob("fader/**/*.py"):
        papers = re.findall(r"\b2\d{3}\.\d{5}\b", file.read_text())
        missing = [one for one in papers if one not in index]
        assert not missing, f"docs/papers.md lacks {missing} of {file}"


def test_the_site_has_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(part):
        if isinstance(part, str):
            return [part]
        parts = part.values() if isinstance(part, dict) else part
        return [page for one in parts for page in pages(one)]

    folder = ROOT / "docs"
    assert {*pages(site["nav"])} == {
        str(page.relative_to(folder)) for page in folder.glob("**/*.md")
    }
    assert site["strict"]
    assert site["theme"]["font"] is False


@pytest.mark.parametrize("picture", ["rooms.svg", "demo.svg"])
def test_pictures_fetch_nothing(picture):
    text = (ROOT / "docs" / picture).read_text()
    ElementTree.fromstring(text)
    assert not re.findall(r"(?:url\(|href=|src=|@import|<script)\s*[\"']?(?:https?:|//)", text)


def test_the_answers_in_the_readme_are_those_that_come(shared):
    """A command, and below it what comes at each strength."""
    (command,) = (
        one
        for block in BLOCKS
        if block.page == "README.md"
        for one in commands(block)
        if "--repetition-penalty" in one
    )
    prompt, *options = command[2:]
    given = dict(zip(options[::2], options[1::2], strict=True))
    (name,) = json.loads(given["--align"])["vectors"]
    shown = re.findall(r"^\| (-?\d) \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [strength for strength, _ in shown] == ["-1", "0", "1"]
    results = shared.batch(
        [{"prompt": prompt, "alignment": {"vectors": {name: float(one)}}} for one, _ in shown],
        max_tokens=int(given["--max-tokens"]),
        repetition_penalty=float(given["--repetition-penalty"]),
    )
    for result, (_, answer) in zip(results, shown, strict=True):
        assert result.text.split() == answer.split()


def test_links_lead_somewhere():
    for file in [*PAGES, *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
