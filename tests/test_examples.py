"""Every example runs, and shows what it says it shows."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
SHOWS = {
    "demo": "guide: like a pirate",
    "prompt_tiers": "principle",
    "contrast": "weight 2.0: Arr",
    "logprobs": "the guide added +",
    "vectors": "{'sum': 1.0}",
    "best_of_n": "rows: ",
    "lookahead": "rows: ",
    "streaming": "fruit",
    "program": " ",
}


def test_all_examples_are_listed():
    assert {file.stem for file in FOLDER.glob("*.py")} == SHOWS.keys()


@pytest.mark.parametrize("name", SHOWS)
def test_example(name, capsys):
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert SHOWS[name] in said
    assert len(said.split()) > 10
    if name == "contrast":
        assert "Arr" not in said.splitlines()[0]
    if name == "vectors":  # the saved sum is the mixture of its parts
        *_, mixed, summed = (
            line.split("  ")[-1].split("}")[-1].strip() for line in said.strip().splitlines()
        )
        assert mixed == summed
