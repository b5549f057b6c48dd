"""All four places in one request: preferences in two tiers that `meta` reads, a vector in the
weights, a personalised guide and a look-ahead. It runs beside eight other requests, and each place
is switched off in turn: a table shows what it moves. `--engine` says who runs the model."""

import argparse
from typing import Any, get_args

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from fader import Fader
from fader.backends import EngineName

QUESTION = "How do I keep basil alive on my balcony?"
WORDS = ["water", "sun", "leaves"]
ALL: dict[str, Any] = {
    "preferences": {"provider": "Recommend no pesticides.", "user": "Answer with a list."},
    "vectors": {"formal": 0.5, "meta": 0.5},
    "guides": [
        {
            "kind": "personalized",
            "vectors": {"personal": 1},
            "principle": "Be warm and encouraging.",
            "weight": 0.5,
        }
    ],
    "search": {
        "kind": "lookahead",
        "top_k": 3,
        "lookahead": 8,
        "rewards": [{"kind": "keywords", "words": WORDS}],
    },
}
OFF: dict[str, dict[str, Any]] = {
    "context": {**ALL, "preferences": {}},
    "weights": {**ALL, "vectors": {"meta": 0.5}},
    "scores": {**ALL, "guides": []},
    "sequences": {**ALL, "search": None},
}
"""The request with one place switched off."""
PAIRS = {
    "context": (
        "- Water it every morning.\n- Turn the pot once a week.\n- Pick the tips.",
        "Water it every morning, turn the pot once a week, and pick the tips.",
    ),
    "weights": (
        "The plant should be watered daily and placed in a sheltered position.",
        "Just give it a splash every day and stick it somewhere cozy.",
    ),
    "scores": (
        "You are doing great! Water it every day, and it will thank you with lovely leaves.",
        "Water it every day. Remove the flowers. Place the pot out of the wind.",
    ),
}
"""Two answers for each place that a given text can measure: the first is what it asks for."""
FIGURES = {
    "context": "a list over prose, nats per token",
    "weights": "formal over casual, nats per token",
    "scores": "warm over neutral, nats per token",
    "sequences": "share of the words that are said",
}
OTHERS: list[dict[str, Any]] = [
    {"prompt": QUESTION, "alignment": OFF["sequences"]},
    {"prompt": QUESTION},
    {"prompt": QUESTION, "sampling": {"temperature": 1, "seed": 1}},
    {"prompt": "Name a river.", "sampling": {"max_tokens": 8}},
    {"prompt": "Why is the sky blue?", "alignment": {"vectors": {"plain": 1}}},
    {"prompt": "Why is the sky blue?", "alignment": {"vectors": {"plain": -1, "warm": 0.5}}},
    {"prompt": "What is a bond?", "alignment": {"preferences": {"user": "I am seven."}}},
    {
        "prompt": "Tell me about the sea.",
        "alignment": {"guides": [{"kind": "contrast", "principle": "Answer like a pirate."}]},
    },
]
SAMPLING = {"max_tokens": 24, "repetition_penalty": 1.15}


def margins(fader: Fader) -> dict[str, list[float]]:
    """By how much the answer that a place asks for is the likelier one, in nats per token: with all
    four places, and without this one. A given text is not searched for, and may hold any token."""
    asked = []
    for place, answers in PAIRS.items():
        for alignment in (ALL, OFF[place]):
            guides = [{**guide, "plausible": None} for guide in alignment["guides"]]
            read = {**alignment, "guides": guides, "search": None}
            asked += [({"prompt": QUESTION, "alignment": read}, answer) for answer in answers]
    found = iter(one.mean for one in fader.score_batch(asked))
    return {place: [next(found) - next(found) for _ in (ALL, OFF[place])] for place in PAIRS}


def said(text: str) -> float:
    """The share of the words that a text says."""
    return sum(word in text.lower() for word in WORDS) / len(WORDS)


def main(console: Console, engine: EngineName = "torch") -> None:
    """Answer alone and in company, and measure."""
    request = {"prompt": QUESTION, "alignment": ALL}
    with Fader(engine=engine) as fader:
        alone = fader.generate(request, sampling=SAMPLING).text
        beside, unsearched, *_ = fader.batch([request, *OTHERS], sampling=SAMPLING)
        moved = {**margins(fader), "sequences": [said(beside.text), said(unsearched.text)]}
    console.print(f"[bold]{QUESTION}[/]")
    console.print(Panel(beside.text.strip(), title="all four places in one request"))
    console.print(
        f"alone and beside eight others: {'the same' if beside.text == alone else 'other'}"
    )
    table = Table("place", "what it asks for", "all four", "without it")
    for place, (on, off) in moved.items():
        table.add_row(place, FIGURES[place], f"{on:.2f}", f"{off:.2f}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=get_args(EngineName), default="torch")
    main(Console(), parser.parse_args().engine)
