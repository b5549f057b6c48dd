"""What a search is after: rewards of texts and of policies, and those that are no numbers."""

import math

import pytest
from conftest import random_vectors

from fader import Fader, Resources, Vector, load

SAMPLING = {"max_tokens": 4, "temperature": 1.0}


def best(*rewards):
    return {"search": {"kind": "best-of-n", "n": 2, "rewards": rewards}}


@pytest.fixture(scope="module")
def moved(tiny_folder, tmp_path_factory):
    """A tiny model with a vector and functions that give odd marks."""
    odd = Resources(
        callables={
            "big": lambda prompts, texts: [1e300] * len(texts),
            "fine": lambda prompts, texts: [1.0] * len(texts),
            "none": lambda prompts, texts: [math.nan] * len(texts),
        }
    )
    with Fader(load(str(tiny_folder)), resources=odd) as fader:
        [(name, folder)] = random_vectors(fader, tmp_path_factory.mktemp("v"), ["v"]).items()
        fader.add_vector(Vector.load(folder, name))
        yield fader


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"kind": "python", "name": "none"}, r"rewards.python: 'none' must return .*finite"),
        (
            {"kind": "python", "name": "big", "weight": 1e10},
            r"rewards.python \(big\): gave 1e\+300 times its weight 1e\+10",
        ),
        (
            {"kind": "implicit", "policy": {"vectors": {"v": 1}}, "beta": 1e308, "weight": 1e308},
            r"rewards.implicit: gave .*policy .* with the vectors v at 1, reference",
        ),
    ],
)
def test_a_reward_that_is_no_number_is_named(moved, reward, message):
    fine = {"kind": "python", "name": "fine"}
    with pytest.raises(ValueError, match=message):
        moved.generate("the sea", **SAMPLING, alignment=best(fine, reward))
    assert moved.generate("the sea", **SAMPLING, alignment=best(fine)).answers[0].search.reward == 1


def test_an_implicit_reward_is_the_difference_of_two_likelihoods(moved):
    implicit = {"kind": "implicit", "policy": {"vectors": {"v": 0.5}}, "beta": 2.0, "weight": 3.0}
    compared = 0
    for seed in range(40):
        answer = moved.generate("the sea", **SAMPLING, seed=seed, alignment=best(implicit)).answers[
            0
        ]
        mine, base = (
            moved.score("the sea", answer.text or "x", alignment=alignment)
            for alignment in ({"vectors": {"v": 0.5}}, {})
        )
        if tuple(detail.id for detail in mine.details) == answer.token_ids:
            compared += 1
            assert answer.search.reward == pytest.approx(
                6 * (mine.logprob - base.logprob), abs=1e-2
            )
    assert compared
