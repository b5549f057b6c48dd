"""Search over whole answers: draw eight, keep the one that holds most of the words."""

from fader import Fader

SEARCH = {
    "kind": "best-of-n",
    "n": 8,
    "rewards": [{"kind": "keywords", "words": ["dog", "beach", "ball"]}],
}

with Fader() as fader:
    for search in (None, SEARCH):
        result = fader.generate(
            "Write one sentence about a day out.",
            max_tokens=30,
            temperature=1.0,
            alignment={"search": search},
        )
        print(f"{result.usage.rows:4} rows: {result.text.strip()}")
