"""Six questions under alignments of every kind, in the prompt, in the weights, on the next-token
scores and by search: one batch, side by side. `--engine llama.cpp` runs it on llama.cpp."""

import argparse
from typing import get_args

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel

from fader import Fader
from fader.backends import EngineName

Alignments = dict[str, dict[str, object]]
PIRATE = {"kind": "contrast", "principle": "Answer like a pirate."}
WORDS = ("market", "apple", "sell", "basket")
SAID = {"kind": "keywords", "words": WORDS, "match": "form"}


def wished(wish: str) -> dict[str, object]:
    """What one person wants, told to the personalised model that guides the answer."""
    guide = {"kind": "personalized", "vectors": {"personal": 1}, "principle": wish}
    return {"guides": [guide]}


QUESTIONS: dict[str, Alignments] = {
    "Why is the sky blue?": {
        "base model": {},
        "prompt: two tiers": {
            "preferences": {
                "provider": "Answer in at most two sentences.",
                "user": "I am seven years old.",
            }
        },
        "guide: like a pirate": {"guides": [PIRATE]},
    },
    "I failed my exam. What should I do?": {
        f"vector: formal = {strength:g}": {"vectors": {"formal": strength}}
        for strength in (-1.0, 0.0, 1.0)
    },
    "My knee hurts after running. What should I do?": {
        "vector: medical = -1": {"vectors": {"medical": -1}},
        "vector: medical = 1": {"vectors": {"medical": 1}},
        "vectors: medical = 0.5, warm = 1": {"vectors": {"medical": 0.5, "warm": 1}},
    },
    "How do I sleep better?": {
        f"{name}: {wish}": wished(wish)
        for name, wish in (
            ("Ada", "Give an example."),
            ("Ben", "End with a question."),
            ("Cleo", "Be warm and encouraging."),
        )
    },
    "Is it worth learning to cook?": {
        f"meta, told to be {manner}": {"vectors": {"meta": 0.8}, "preferences": {"user": wish}}
        for manner, wish in (
            ("warm", "Be warm and encouraging."),
            ("expert", "Answer as if to an expert."),
        )
    },
    f"Write one sentence with these words: {', '.join(WORDS)}.": {
        "plain": {},
        "search: the words as they stand": {
            "search": {"kind": "lookahead", "top_k": 5, "lookahead": 12, "rewards": [SAID]}
        },
    },
}
SAMPLING = {"max_tokens": 60, "repetition_penalty": 1.15}
"""The penalty keeps the small model from saying a sentence again and again."""


def main(console: Console, engine: EngineName = "torch") -> None:
    """Answer and show; all requests run together in one batch."""
    asked = [
        (question, name, alignment)
        for question, alignments in QUESTIONS.items()
        for name, alignment in alignments.items()
    ]
    texts = [""] * len(asked)
    width = max(36, console.width // 3 - 2)

    def view() -> Group:
        parts: list[RenderableType] = []
        for question in QUESTIONS:
            shown = [
                Panel(text.strip() or "...", title=name, width=width)
                for (about, name, _), text in zip(asked, texts, strict=True)
                if about == question
            ]
            parts += [f"[bold]{question}[/]", Columns(shown)]
        return Group(*parts)

    requests = [{"prompt": question, "alignment": alignment} for question, _, alignment in asked]
    with (
        Fader(engine=engine) as fader,
        Live(view(), console=console, refresh_per_second=8, vertical_overflow="visible") as live,
    ):
        for place, chunk in fader.stream_batch(requests, sampling=SAMPLING):
            texts[place] += chunk.text
            live.update(view())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=get_args(EngineName), default="torch")
    main(Console(), parser.parse_args().engine)
