"""Texts as token ids: what people write is text, whatever it looks like.

A tokenizer turns the spelling of a control token, such as `<|im_end|>`, into that token wherever it
stands. Here only a chat template writes control tokens; in messages, forced beginnings, proposals
and answers to score they are the characters they are written with. A text without them gets the
tokenizer's own ids, exactly.

A text is read in one piece, by a copy of the tokenizer in which control tokens have names that
nobody can guess. So the text around them becomes the same tokens as always.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from fader.schema import Invalid, whole_characters


def text_ids(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    continuing: bool = False,
    begin: bool = False,
) -> list[int]:
    """Token ids of what somebody wrote.

    `continuing`: it goes on from another text, so a tokenizer that puts a space before texts (Llama
    2's, Mistral's) puts none; `begin`: after the tokenizer's own begin tokens. Raises ValueError
    for halves of characters.
    """
    whole_characters(text)
    spaced = continuing and _puts_a_space(tokenizer)
    if not spaced and not _control(tokenizer).search(text):
        return list(tokenizer(text, add_special_tokens=begin)["input_ids"])
    spelled = _spelled(tokenizer, _control(tokenizer), spaced)
    return list(spelled.tokenizer.encode(text, add_special_tokens=begin).ids)


def template_ids(
    text: str, marks: Mapping[str, str], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Token ids of what a chat template wrote, with `marks` in it for what stands for itself."""
    whole_characters(text)
    if not marks:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    spelled = _spelled(tokenizer, _control(tokenizer), False)
    text = _control(tokenizer).sub(lambda found: spelled.names[found[0]], text)
    for mark, written in marks.items():
        text = text.replace(mark, written)
    return list(spelled.tokenizer.encode(text, add_special_tokens=False).ids)


def marked(text: str, marks: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with a mark for each control token that is spelled in it; `marks` gains what each of
    them stands for."""

    def mark(found: Any) -> str:
        marks[name := f"written{secrets.token_hex(8)}"] = found[0]
        return name

    return str(_control(tokenizer).sub(mark, text))


def stop_tokens(stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The stop strings that are special tokens: their ids end an answer as its end token does, for
    its text leaves special tokens out. Raises ValueError for one that holds more than that."""
    special = {
        str(token): place
        for place, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    for string in stop:
        within = next((name for name in special if name in string), None)
        if within is not None and string not in special:
            raise Invalid(
                f"{string!r} is never found, for the text of an answer leaves the special token"
                f" {within!r} out; give {within!r} alone",
                "sampling.stop",
            )
    return frozenset(special[string] for string in stop if string in special)


@dataclass(frozen=True)
class _Spelled:
    """A tokenizer to which the spelling of a control token is text, and the names by which it knows
    its control tokens."""

    tokenizer: Tokenizer
    names: Mapping[str, str]


def _control(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The pattern of all control tokens, the longest first as tokenizers match them."""
    return _control_of(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=16)
def _control_of(tokenizer: PreTrainedTokenizerBase, template: str) -> Any:
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    written = _scaffold(tokenizer)  # some models' turns are marked by tokens that nobody calls so
    names = {name for name, special in added.items() if special or name in written}
    names = {name for name in names | set(tokenizer.all_special_tokens) if name.strip()}
    longest = sorted(names, key=len, reverse=True)
    return regex.compile("|".join(map(regex.escape, longest)) or r"(?!)")


def _scaffold(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template itself writes around the turns of a conversation."""
    talk = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]
    for turns in (talk, talk[1:], talk[1:2]) if tokenizer.chat_template else ():
        try:
            return str(
                tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
        except TemplateError:
            continue
    return ""


@lru_cache(maxsize=16)
def _puts_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    return not tokenizer.tokenize("a")[0].lower().startswith("a")


@lru_cache(maxsize=16)
def _spelled(tokenizer: PreTrainedTokenizerBase, control: Any, continuing: bool) -> _Spelled:
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise ValueError(
            "spells a control token, or continues another text, and this model's tokenizer"
            " (of the slow kind) cannot read that; leave it out, or convert it to a tokenizer.json"
        )
    parts = json.loads(inner.to_str())
    parts["truncation"] = parts["padding"] = None
    names = {}
    for token in parts["added_tokens"]:
        if control.fullmatch(token["content"]):
            names[token["content"]] = token["content"] = f"control{secrets.token_hex(8)}"
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(name, name): place for name, place in model["vocab"].items()}
    else:  # of a unigram model, with scores
        model["vocab"] = [[names.get(name, name), score] for name, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:  # a control token is not to be merged from pieces either
        model["merges"] = [
            pair
            for pair in model["merges"]
            if "".join(pair.split(" ") if isinstance(pair, str) else pair) not in names
        ]
    if continuing:
        for part in ("normalizer", "pre_tokenizer"):
            parts[part] = _without_space(parts[part])
    made = Tokenizer.from_str(json.dumps(parts))
    assert all(made.token_to_id(name) == inner.token_to_id(old) for old, name in names.items())
    return _Spelled(made, names)


def _without_space(part: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no space before a text."""
    if part is None or part["type"] == "Prepend":
        return None
    inner = next((name for name in ("normalizers", "pretokenizers") if name in part), None)
    if inner:
        kept = [one for one in map(_without_space, part[inner]) if one is not None]
        return {**part, inner: kept}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if "add_prefix_space" in part else part
