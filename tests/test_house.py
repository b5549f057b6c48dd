"""The plan of the house: imports go down only, and what goes in and comes out needs no torch."""

import ast
from pathlib import Path

import pytest

from recipes.docs import ROOMS

ROOT = Path(__file__).parent.parent


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(file): file
    for folder in ("fader", "recipes", "reproductions", "benchmarks", "examples")
    for file in sorted((ROOT / folder).glob("**/*.py"))
}


def imported(file):
    """The project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found = next((one for one in (name, name.rpartition(".")[0]) if one in MODULES), None)
            if found is not None:
                yield found


def room(module):
    """The place of a module's room in the order; the package itself is the front."""
    parts = module.split(".")
    name = (parts[1] if len(parts) > 1 else "fader") if parts[0] == "fader" else parts[0]
    return next(place for place, rooms in enumerate(ROOMS) if name in rooms)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    if module == "fader":
        return  # the package hands on what its users need
    above = [one for one in imported(MODULES[module]) if room(one) > room(module)]
    assert not above, f"{module} imports {above} from a higher room"


@pytest.mark.parametrize("module", ["fader.request", "fader.answer", "fader.profiles"])
def test_what_goes_in_and_comes_out_needs_no_torch(module):
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        text = MODULES[name].read_text()
        assert not [
            node
            for node in ast.walk(ast.parse(text))
            if (
                isinstance(node, ast.Import)
                and any(
                    alias.name.split(".")[0] in ("torch", "transformers") for alias in node.names
                )
            )
            or (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").split(".")[0] in ("torch", "transformers")
            )
        ], f"{name} imports torch"
        todo += imported(MODULES[name])


def test_requests_need_only_the_settings_of_rewards():
    found = {one for one in imported(MODULES["fader.request"]) if one.startswith("fader.rewards")}
    assert found == {"fader.rewards.specs"}
