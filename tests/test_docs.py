"""Docs cannot lie: option tables list the schema, the file map lists the files, commands exist."""

import re
from pathlib import Path

import pytest

from fader import request
from fader.cli import app
from fader.rewards import specs as reward_specs

ROOT = Path(__file__).parent.parent


def schema_classes(module):
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, request.Frozen)
    }
    return {
        name: value
        for name, value in found.items()
        if value.model_fields and not name.startswith("_") and value.__module__ == module.__name__
    }


DOCUMENTED = [
    (file, name, value)
    for file, module in (("request.md", request), ("rewards.md", reward_specs))
    for name, value in schema_classes(module).items()
]


@pytest.mark.parametrize(
    ("file", "name", "value"), DOCUMENTED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_field_is_documented(file, name, value):
    text = (ROOT / "docs" / file).read_text()
    section = re.search(rf"^#+ `{name}`$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/{file} has no section on {name}"
    listed = set(re.findall(r"^\| `(\w+)`", section[1], re.MULTILINE))
    assert listed == set(value.model_fields)


def test_the_readme_lists_every_module():
    listed = set(
        re.findall(r"^\| `(fader/[\w/]+\.py)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    assert listed == {
        str(file.relative_to(ROOT))
        for file in ROOT.glob("fader/**/*.py")
        if file.name != "__init__.py"
    }


def test_commands_that_the_docs_name_exist():
    commands = {info.name or info.callback.__name__: set() for info in app.registered_commands}
    for group in app.registered_groups:
        commands[group.name] = {
            info.name or info.callback.__name__ for info in group.typer_instance.registered_commands
        }
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for block in re.findall(r"```(?:console|sh|bash)\n(.*?)```", file.read_text(), re.DOTALL):
            for command, second in re.findall(r"\bfader (\w+) ?([\w-]*)", block):
                assert command in commands, f"{file.name}: fader {command}"
                assert not commands[command] or second in commands[command], (
                    f"{file.name}: fader {command} {second}"
                )


def test_links_lead_somewhere():
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
