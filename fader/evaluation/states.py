"""Hidden states as features of texts: what a model holds while it reads an answer after its
prompt.

Only the lower layers run: what tells answers apart by their kind lies a little above the middle
(docs/judges.md). Features are kept in the cache folder, by model and texts.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fader.engine import builtin, loading
from fader.engine.apart import apart
from fader.engine.backbone import quick_dtype
from fader.engine.identity import identity
from fader.files import write_whole
from fader.methods.prompt import prompt_ids
from fader.methods.tokens import text_ids
from fader.request import Message

Matrix = NDArray[np.float64]

DEPTH = 17 / 30  # the layer that is read, as a share of all; of the built-in model the 17th
CONTEXT, MOST = 96, 128  # tokens that are read: the last of the prompt, the first of the answer
TOGETHER = 16  # texts that are read at once


@dataclass(frozen=True)
class Text:
    """An answer to be judged, and the conversation that it answers."""

    messages: tuple[Message, ...]
    answer: str

    @classmethod
    def of(cls, prompt: str, answer: str) -> Text:
        """The answer to one question."""
        return cls((Message(role="user", content=prompt),), answer)


Features = Callable[[Sequence[Text]], Matrix]
"""features(texts): numbers for each text [texts, features]."""


def hidden_states(model: str = builtin.NAME) -> Features:
    """Of each text the mean of a layer's states over the answer's tokens, and the state at its end
    [texts, 2 * hidden].

    Raises ValueError for a model that is not whole or whose layers are not found, OSError for one
    that cannot be had.
    """
    reader = _reader(model)
    return lambda texts: _kept(reader, texts)


@dataclass(frozen=True, eq=False)
class _Reader:
    """A model's lower layers, and what says which model it is."""

    body: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @apart
    def read(self, texts: Sequence[Text]) -> Matrix:
        parts = [self._tokens(text) for text in texts]
        order = sorted(range(len(parts)), key=lambda place: sum(map(len, parts[place])))
        found: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), TOGETHER):
            places = order[start : start + TOGETHER]
            found |= zip(places, self._states([parts[place] for place in places]), strict=True)
        return np.array([found[place] for place in range(len(parts))], dtype=float)

    @torch.inference_mode()
    def _states(
        self, parts: Sequence[tuple[list[int], list[int]]]
    ) -> Iterator[NDArray[np.float32]]:
        longest = max(len(prompt) + len(answer) for prompt, answer in parts)
        tokens = torch.zeros((len(parts), longest), dtype=torch.long)  # [rows, tokens]
        mask = torch.zeros_like(tokens)
        for row, (prompt, answer) in enumerate(parts):
            end = len(prompt) + len(answer)
            tokens[row, :end], mask[row, :end] = torch.tensor(prompt + answer), 1
        read: Any = self.body(input_ids=tokens, attention_mask=mask, use_cache=False)
        for states, (prompt, answer) in zip(read.last_hidden_state.float(), parts, strict=True):
            own = states[len(prompt) : len(prompt) + len(answer)]  # [answer's tokens, hidden]
            yield torch.cat((own.mean(0), own[-1])).numpy()

    def _tokens(self, text: Text) -> tuple[list[int], list[int]]:
        prompt = prompt_ids(text.messages, [], self.tokenizer)
        answer = text_ids(text.answer, self.tokenizer)
        end = self.tokenizer.eos_token_id
        return prompt[-CONTEXT:], answer[:MOST] + ([] if end is None else [end])


@cache
@apart
def _reader(model: str) -> _Reader:
    whole, tokenizer = loading.read(model, getattr(torch, quick_dtype()))
    body: Any = whole.base_model.eval()
    body.set_attn_implementation("sdpa")
    if not hasattr(body, "layers") or not hasattr(body, "norm"):
        raise ValueError(
            f"model: {model} ({body.config.model_type}) keeps its layers in another place than the"
            " judges read; take a model such as llama, qwen or mistral"
        )
    body.layers = body.layers[: max(1, round(DEPTH * len(body.layers)))]
    body.norm = torch.nn.Identity()  # the states as the next layer would read them
    name = f"{identity(body, tokenizer)} {quick_dtype()} {CONTEXT} {MOST}"
    return _Reader(body, tokenizer, name)


def _kept(reader: _Reader, texts: Sequence[Text]) -> Matrix:
    content = [[[turn.model_dump() for turn in one.messages], one.answer] for one in texts]
    key = hashlib.sha256(json.dumps([reader.name, content]).encode()).hexdigest()[:32]
    file = builtin.cache_folder() / "judges" / f"{key}.npy"
    if not file.is_file():
        stream = io.BytesIO()
        np.save(stream, reader.read(texts).astype(np.float32))
        write_whole(file, stream.getvalue())
    found: Matrix = np.load(file).astype(float)
    return found
