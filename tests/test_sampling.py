import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fader.methods.sampling import draw, penalize, truncate, uniform
from fader.request import Sampling


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([20, 700]),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_truncations_are_those_of_transformers(seed, size, scale):
    scores = torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * scale
    ids = torch.randint(0, size, (1, 9), generator=torch.Generator().manual_seed(seed))
    for mine, theirs in (
        (truncate(scores, top_k=7), TopKLogitsWarper(7)(ids, scores)),
        (truncate(scores, top_p=0.8), TopPLogitsWarper(0.8)(ids, scores)),
        (truncate(scores, min_p=0.1), MinPLogitsWarper(0.1)(ids, scores)),
        (
            penalize(scores[0], ids[0].tolist(), 1.4)[None],
            RepetitionPenaltyLogitsProcessor(1.4)(ids, scores),
        ),
    ):
        assert torch.equal(mine.isinf(), theirs.isinf())
        torch.testing.assert_close(mine, theirs)


def test_draws_follow_the_distribution():
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    how = Sampling(temperature=1.0)
    drawn = torch.tensor([draw(scores, how, (), uniform(5, 0, place)) for place in range(4000)])
    assert (drawn.bincount(minlength=4) / 4000).tolist() == pytest.approx(
        [0.1, 0.2, 0.3, 0.4], abs=0.03
    )
    for cold in (1e-6, 1e-44, 1e-46, 1e-300):
        assert draw(scores, Sampling(temperature=cold), (), 0.5) == 3
    assert draw(scores, Sampling(), (), 0.0) == 3
    assert draw(torch.tensor([float("-inf"), 0.0]), how, (), 0.0) == 1


def test_uniform_depends_on_each_argument():
    assert (
        len(
            {
                uniform(*key)
                for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (11, 0, 0), (1, 1, 0))
            }
        )
        == 6
    )
    assert uniform(3, 4, 5) == uniform(3, 4, 5)
    assert all(0 <= uniform(0, 0, place) < 1 for place in range(100))
