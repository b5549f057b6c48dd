"""Look-ahead search (DeAL): words that must be said, a vector as a reward, and a Python function of
your own, all at once."""

from collections.abc import Sequence

from fader import Fader, Resources

WORDS = ["market", "apple", "sell"]


def few_commas(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """A reward is a function of prompts and texts: one number per text, higher is better."""
    return [-float(text.count(",")) for text in texts]


SEARCH = {
    "kind": "lookahead",
    "top_k": 5,
    "lookahead": 12,
    "rewards": [
        {"kind": "keywords", "words": WORDS},
        {"kind": "python", "name": "few commas", "weight": 0.05},
        {
            "kind": "implicit",
            "policy": {"vectors": {"formal": -1}},
            "length_normalized": True,
            "squash": True,
            "weight": 0.2,
        },
    ],
}

with Fader(resources=Resources(callables={"few commas": few_commas})) as fader:
    for search in (None, SEARCH):
        result = fader.generate(
            f"Write one sentence with these words: {', '.join(WORDS)}.",
            max_tokens=24,
            alignment={"search": search},
        )
        print(f"{result.usage.rows:4} rows: {result.text.strip()}")
