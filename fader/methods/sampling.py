"""Pure functions on logits: penalties, truncations, and draws that depend on (seed, position)
alone.

The order is transformers': bias, repetition penalty, temperature, top-k, top-p, min-p. Scores are
float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fader.request import Sampling


def penalize(scores: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Scores with the positive ones of `seen` tokens divided by `penalty` and the negative ones
    multiplied."""
    if penalty == 1.0 or not seen:
        return scores
    index = torch.tensor(sorted(set(seen)), device=scores.device)
    picked = scores[index]
    return scores.index_copy(0, index, torch.where(picked < 0, picked * penalty, picked / penalty))


def truncate(
    scores: Tensor, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """Scores [..., vocab] with -inf outside the top-k likeliest tokens, outside the fewest tokens
    that hold probability top-p, and below min-p times the likeliest. The likeliest token always
    stays."""
    if top_k is not None and top_k < scores.shape[-1]:
        least = scores.topk(top_k).values[..., -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if top_p is not None and top_p < 1:
        scores = scores.masked_fill(scores < _nucleus_edge(scores, top_p), float("-inf"))
    if min_p is not None:
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(
            probabilities < min_p * probabilities.amax(-1, keepdim=True), float("-inf")
        )
    return scores


def _nucleus_edge(scores: Tensor, top_p: float, first: int = 256) -> Tensor:
    """The least score within the nucleus [..., 1]. Sorts only the likeliest tokens where they hold
    enough."""
    total = scores.logsumexp(-1, keepdim=True)
    ordered = scores.topk(min(first, scores.shape[-1])).values
    probabilities = (ordered - total).exp()
    before = probabilities.cumsum(-1) - probabilities
    if first < scores.shape[-1] and bool((before[..., -1] < top_p).any()):
        return _nucleus_edge(scores, top_p, first=scores.shape[-1])
    return ordered.masked_fill(before >= top_p, float("inf")).amin(-1, keepdim=True)


def uniform(seed: int, stream: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone: a hash, so no generator's state is
    shared."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def without(scores: Tensor, banned: Tensor, otherwise: Tensor) -> Tensor:
    """Scores [vocab] with -inf for the banned token ids. Where that leaves none, those of
    `otherwise` [vocab]: the plausible tokens of guides may all be banned."""
    index = banned.to(scores.device)
    left = scores.index_fill(0, index, float("-inf"))
    return left if bool(left.amax().isfinite()) else otherwise.index_fill(0, index, float("-inf"))


def biased(scores: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Scores [vocab] with these added."""
    if not bias:
        return scores
    index = torch.tensor(list(bias), device=scores.device)
    return scores.index_add(0, index, torch.tensor(list(bias.values())).to(scores))


def draw(scores: Tensor, how: Sampling, seen: Sequence[int], chance: float) -> int:
    """One token id from `scores` [vocab]: the likeliest at temperature 0, else where `chance` in
    [0, 1) falls in the distribution."""
    scores = penalize(biased(scores, how.logit_bias), seen, how.repetition_penalty)
    if how.temperature == 0:
        return int(scores.argmax())
    # shifted first, and in doubles: a temperature near 0 must neither overflow nor become 0
    scores = (scores - scores.max()).double() / how.temperature
    scores = truncate(scores, how.top_k, how.top_p, how.min_p)
    cumulated = scores.softmax(-1).cumsum(-1)
    return int(
        torch.searchsorted(cumulated, chance * float(cumulated[-1]), right=True).clamp(
            max=scores.shape[-1] - 1
        )
    )
