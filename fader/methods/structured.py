"""Answers that are JSON by a schema: a mask of the tokens that may come next, one per answer.

llguidance keeps the state of the grammar. The mask is laid over the guided scores, so that vectors,
preferences and guides still choose among what is allowed. A schema with what it cannot enforce is
refused, and nothing is fetched for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fader.engine.protocols import Backbone
from fader.schema import Invalid


class Mask:
    """Which tokens may come next in one answer."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        # one bit a token, in words of 32
        self._bits = torch.zeros(-(-vocabulary // 32), dtype=torch.int32)

    def banned(self, size: int) -> Tensor:
        """The ids of tokens that may not come next, of those below `size`."""
        bits = self._bits
        self._matcher.unsafe_compute_mask_ptr(bits.data_ptr(), 4 * len(bits))
        each = (bits[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        allowed = torch.zeros(size, dtype=torch.int32)
        known = each.flatten()[:size]
        allowed[: len(known)] = known
        return (allowed == 0).nonzero()[:, 0]

    def add(self, token: int) -> None:
        """The answer goes on with this token."""
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"a mask allowed token {token}: {self._matcher.get_error()}")


def masks(schema: Mapping[str, Any], backbone: Backbone) -> Callable[[], Mask]:
    """Makes the mask of an answer that is JSON by this schema. Raises `Invalid` for a schema that
    cannot be enforced, or where llguidance is not installed."""
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError:
        raise Invalid("needs llguidance: pip install 'fader[json]'") from None
    if "x-guidance" in schema:  # its options could turn the refusals off
        raise Invalid("x-guidance is no keyword of JSON Schema; leave it out")
    ends, size = tuple(sorted(backbone.end_tokens)), backbone.vocabulary
    reader = _reader(backbone.tokenizer, size, ends)
    # laid out in one way: free white space would let a model write it for ever
    grammar = LLMatcher.grammar_from_json_schema(
        json.dumps(schema),
        overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    )
    first = LLMatcher(reader, grammar)
    if first.is_error():
        raise Invalid(f"cannot be enforced: {str(first.get_error())[:500]}")
    return lambda: Mask(first.deep_copy(), size)


@lru_cache(maxsize=8)
def _reader(tokenizer: Any, size: int, ends: tuple[int, ...]) -> Any:
    from llguidance.hf import from_tokenizer

    try:
        return from_tokenizer(tokenizer, n_vocab=size, eos_token=list(ends))
    except ValueError as error:
        raise Invalid(f"cannot be enforced with this model's tokenizer: {error}") from None
