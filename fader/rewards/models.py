"""Models in this process that judge texts: classifiers and embedders."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from fader.schema import Invalid


@dataclass(frozen=True, eq=False)
class Reader:
    """A model of the library transformers that reads texts, at most `limit` tokens of each."""

    model: Any
    tokenizer: Any
    limit: int

    def logits(self, prompts: Sequence[str], texts: Sequence[str]) -> torch.Tensor:
        """What a classifier says of each answer to its prompt: [texts, outputs]."""
        return self._read(
            [self._fitted(prompt, text) for prompt, text in zip(prompts, texts, strict=True)],
            lambda out, mask: out.logits,
        )

    def embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """The mean of the last hidden states of each text, of length 1: [texts, size]."""

        def mean(out: Any, mask: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(
                (out.last_hidden_state * mask[..., None]).sum(1), dim=-1
            )

        return self._read(
            [_ids(self.tokenizer(text, truncation=True, max_length=self.limit)) for text in texts],
            mean,
        )

    def _fitted(self, prompt: str, text: str) -> dict[str, list[int]]:
        """Prompt and text as the model reads them; what is too long loses the beginning of the
        prompt, then that of the text."""
        parts = [prompt, text]
        for place in (0, 0, 1, 1):  # each twice: what is left may fall into other tokens
            excess = len(self._encoded(*parts)["input_ids"]) - self.limit
            if excess > 0:
                tokens = self.tokenizer(parts[place], add_special_tokens=False, verbose=False)[
                    "input_ids"
                ]
                parts[place] = self.tokenizer.decode(tokens[excess:])
        return {key: ids[-self.limit :] for key, ids in self._encoded(*parts).items()}

    def _encoded(self, prompt: str, text: str) -> dict[str, list[int]]:
        if not self.tokenizer.chat_template:
            return _ids(self.tokenizer(prompt, text, verbose=False))
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        return _ids(
            self.tokenizer.apply_chat_template(
                turns, tokenize=True, return_dict=True, tokenizer_kwargs={"verbose": False}
            )
        )

    def _read(
        self, rows: list[dict[str, list[int]]], pool: Callable[[Any, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        pad = self.model.config.get_text_config().pad_token_id
        size = (
            1 if pad is None else 16
        )  # without padding, rows of different lengths cannot be read together
        found = []
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]

            def padded(
                key: str, fill: int, batch: list[dict[str, list[int]]] = batch
            ) -> torch.Tensor:
                return pad_sequence(
                    [torch.tensor(row[key]) for row in batch], batch_first=True, padding_value=fill
                ).to(self.model.device)

            inputs = {key: padded(key, (pad or 0) if key == "input_ids" else 0) for key in batch[0]}
            mask = inputs["attention_mask"]
            with torch.inference_mode():
                found.append(pool(self.model(**inputs), mask).float().cpu())
        return torch.cat(found) if found else torch.zeros(0, 1)


def _ids(encoded: Mapping[str, Any]) -> dict[str, list[int]]:
    """What a model is given of a text: at least one token, for a text may be empty."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {
        name: list(encoded[name]) or [int(name == "attention_mask")]
        for name in names
        if name in encoded
    }


@lru_cache(maxsize=8)
def load(kind: str, source: str) -> Reader:
    """A model from a folder or the hub, in float32, once per process. Raises ValueError where it
    cannot be had or lacks weights."""
    transformers = package("transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model, report = getattr(transformers, kind).from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Invalid(f"{source!r} cannot be loaded as {kind}: {error}", "model") from error
    missing = sorted(
        name for name in report["missing_keys"] if kind != "AutoModel" or "pooler" not in name
    )
    if missing:
        raise Invalid(
            f"{source!r} is no model for {kind}: it lacks {', '.join(missing[:3])}; declare one"
            " that was trained for this",
            "model",
        )
    tables = [
        module for name, module in model.named_modules() if name.endswith("position_embeddings")
    ]
    skipped = max(
        (
            table.padding_idx + 1
            for table in tables
            if getattr(table, "padding_idx", None) is not None
        ),
        default=0,
    )  # as in RoBERTa
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", 2**20) - skipped
    return Reader(
        model.eval().to("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer,
        min(tokenizer.model_max_length, positions),
    )


def package(name: str) -> Any:
    """A package that only some rewards need. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"needs {error.name or name}: pip install 'fader[rewards]'") from error
