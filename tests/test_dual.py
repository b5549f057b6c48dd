"""The weight that keeps a bound, found from samples of the base."""

import numpy as np
import pytest

from fader.evaluation.dual import reached, weight_for


def test_the_weight_meets_its_bound_and_no_less_would():
    dice = np.random.default_rng(0)
    r, g = dice.normal(size=(50, 16)), dice.normal(size=(50, 16))
    weight = weight_for(r, g, 0.8)
    assert weight > 0
    assert reached(r, g, weight) == pytest.approx(0.8, abs=1e-4)
    assert reached(r, g, weight * 0.9) < 0.8
    assert weight_for(r, g, 1.2) > weight


def test_the_weights_are_those_of_the_tilted_base():
    r, g = [[0.0, 0.0]], [[0.0, 1.0]]
    weight = weight_for(r, g, 0.75, beta=2.0)
    assert weight == pytest.approx(2 * np.log(3), rel=1e-4)  # odds 3 to 1


def test_a_bound_that_the_base_keeps_needs_no_weight():
    assert weight_for([[0.0, 1.0]], [[0.6, 0.6]], 0.5) == 0.0


def test_a_bound_out_of_reach_says_what_can_be_reached():
    with pytest.raises(
        ValueError, match=r"bound: 0.9 is out of reach of these samples, the best of which give 0.5"
    ):
        weight_for([[0.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], 0.9)
