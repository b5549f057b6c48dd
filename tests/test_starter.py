"""What ships: the vectors that obey what they are told, and profiles that use them."""

import pytest

from fader.engine import builtin
from fader.profiles import SHIPPED, load_alignment
from fader.request import Alignment
from fader.starter.shipped import TOLD
from fader.vectors.store import available, find
from recipes.starter import FOLDER, NAMES

MOST = {"personal": 6e6, "meta": 3e6}
"""Bytes of their folders."""


def vectors_of(alignment):
    """Every vector that an alignment names."""
    found = {*alignment.vectors}
    for guide in alignment.guides:
        found |= {*getattr(guide, "vectors", {})}
    return found


def test_every_vector_that_ships_has_a_recipe():
    assert {folder.name for folder in FOLDER.iterdir()} <= {*NAMES}


@pytest.mark.parametrize("name", [name for name in TOLD if name in available()])
def test_vectors_that_obey_are_small_and_tell_how_they_were_made(name):
    vector = find(name)
    assert sum(file.stat().st_size for file in (FOLDER / name).iterdir()) <= MOST[name]
    assert vector.card["base_model"] == builtin.NAME
    assert vector.base == find("warm").base
    told = vector.card
    while told:  # from the last training back to the first
        assert told["recipe"]["loss"] in ("dpo", "flip", "simpo", "sft")
        assert all(told[field] for field in ("data", "lessons", "seconds"))
        (told,) = told["started_from"] or [None]
    assert "/" not in str(vector.card)  # no folder of whoever trained it


def test_the_personalised_models_card_says_what_was_measured():
    vector = find("personal")
    effect = vector.card["effect"]
    assert (effect["vector"], effect["base"]) == (vector.digest, vector.base)
    found = {(one["method"], one["case"], one["metric"]): one for one in effect["metrics"]}
    for case in ("seen", "near", "far"):
        one = found["personalized", case, "accuracy"]
        assert one["low"] <= one["value"] <= one["high"]
        assert one["n"] > 30
        assert ("contrast", case, "accuracy") in found


@pytest.mark.parametrize("file", sorted(SHIPPED.iterdir()), ids=lambda file: file.stem)
def test_profiles_that_ship_name_what_ships(file):
    alignment = load_alignment(str(file))
    assert alignment != Alignment()
    assert vectors_of(alignment) <= {folder.name for folder in FOLDER.iterdir()}
    assert vectors_of(alignment) & {*TOLD}
