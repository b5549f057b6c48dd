"""All four places in one request: tiers that the vector `meta` reads, a vector in the weights, a
personalised guide and a look-ahead. It runs beside eight other requests, four of which switch one
place off; the table shows what each place moves."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from fader import Fader

QUESTION = "How do I keep basil alive on my balcony?"
WORDS = ["water", "sun", "leaves"]
ALL: dict[str, Any] = {
    "preferences": {"provider": "Recommend no pesticides.", "user": "Answer with a list."},
    "vectors": {"meta": 1, "formal": 0.5},
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
        "top_k": 4,
        "lookahead": 8,
        "rewards": [{"kind": "keywords", "words": WORDS}],
    },
}
OFF = {
    "context": {**ALL, "preferences": {}},
    "weights": {**ALL, "vectors": {"meta": 1}},
    "scores": {**ALL, "guides": []},
    "sequences": {**ALL, "search": None},
}
"""The request with one place switched off; `meta`, which reads the tiers, stays."""
OTHERS: list[dict[str, Any]] = [
    {"prompt": QUESTION},
    {"prompt": "Why is the sky blue?", "alignment": {"vectors": {"plain": 1}}},
    {"prompt": "Name a river.", "sampling": {"max_tokens": 12, "temperature": 1, "seed": 1}},
    {
        "prompt": "Tell me about the sea.",
        "alignment": {"guides": [{"kind": "contrast", "principle": "Answer like a pirate."}]},
    },
]
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
SAMPLING = {"max_tokens": 32, "repetition_penalty": 1.15}


def margins(
    fader: Fader, alignments: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """For each alignment and place, by how much more likely the answer is that the place asks for,
    in nats per token. A given text is not searched for, and may hold any token."""
    scored = [
        {
            **alignment,
            "search": None,
            "guides": [{**guide, "plausible": None} for guide in alignment["guides"]],
        }
        for alignment in alignments.values()
    ]
    asked = [
        ({"prompt": QUESTION, "alignment": alignment}, answer)
        for alignment in scored
        for pair in PAIRS.values()
        for answer in pair
    ]
    found = iter(one.mean for one in fader.score_batch(asked))
    return {name: {place: next(found) - next(found) for place in PAIRS} for name in alignments}


def said(text: str) -> float:
    """The share of the words that a text says."""
    return sum(word in text.lower() for word in WORDS) / len(WORDS)


def main(console: Console) -> None:
    """Answer alone and in company, and measure."""
    alignments = {"all four": ALL, **{f"without {place}": one for place, one in OFF.items()}}
    requests = [{"prompt": QUESTION, "alignment": one} for one in alignments.values()]
    with Fader() as fader:
        texts = [one.text for one in fader.batch([*requests, *OTHERS], sampling=SAMPLING)]
        alone = fader.generate(requests[0], sampling=SAMPLING).text
        moved = margins(fader, alignments)
    console.print(f"[bold]{QUESTION}[/]")
    console.print(Panel(texts[0].strip(), title="all four places in one request"))
    console.print(f"alone and beside eight others: {'the same' if alone == texts[0] else 'other'}")
    table = Table("", *PAIRS, "sequences")
    for (name, row), text in zip(moved.items(), texts, strict=False):
        table.add_row(name, *(f"{value:+.2f}" for value in row.values()), f"{said(text):.2f}")
    console.print(table)


if __name__ == "__main__":
    main(Console())
