"""Look-ahead search (DeAL) against the paper's formula without shortcuts, batched and cached, and
against plain greedy decoding, on sets of words that are to stand in one sentence. One answer at a
time; `-together`: all of them in one batch; `-32`: with a look-ahead of 32 in place of 16. Where
both sides search, their tokens must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.interleave import Side, chosen, compare, main
from fader import Fader
from fader.starter.shipped import starter_rows

FIELDS = ("prompt", "alignment")


def task(concepts: list[str]) -> str:
    """What is asked of the model."""
    return f"Write one sentence with these words: {', '.join(concepts)}."


def alignment(concepts: list[str], **settings: Any) -> dict[str, Any]:
    """The search for a sentence that holds the words."""
    search = {
        "kind": "lookahead",
        "top_k": 10,
        "lookahead": 16,
        "weight": 10,
        "rewards": [{"kind": "keywords", "words": concepts}],
    }
    return {"search": {**search, **settings}}


TARGETS: dict[str, float | None] = {
    "against-reference": 10.0,
    "against-greedy": 0.4,
    "against-reference-32": 10.0,
    "against-greedy-32": 0.4,
    "against-greedy-together": 0.7,
}


def run(
    case: str | None = None, count: int = 2, tokens: int = 40, rounds: int = 3
) -> Iterator[dict[str, Any]]:
    """All comparisons, in answers per second."""
    cases = chosen(case, TARGETS)
    sets = [row["concepts"] for row in starter_rows("concepts", "dev")[:count]]

    with Fader(share_prompts=False) as fader:

        def side(settings: Mapping[str, Any] | None, together: bool = False) -> Side:
            asked = [
                {
                    "prompt": task(words),
                    **({} if settings is None else {"alignment": alignment(words, **settings)}),
                }
                for words in sets
            ]

            def answer() -> float:
                results = [
                    result
                    for group in ([asked] if together else [[one] for one in asked])
                    for result in fader.batch(group, max_tokens=tokens)
                ]
                if settings is not None:
                    found = tuple(result.answers[0].token_ids for result in results)
                    if expected.setdefault(settings["lookahead"], found) != found:
                        raise AssertionError(
                            f"{settings}: the tokens are not those of the other side"
                        )
                return float(len(results))

            return answer

        expected: dict[int, Any] = {}
        for name, target in cases.items():
            settings = {"lookahead": 32 if name.endswith("-32") else 16}
            reference = {**settings, "optimizations": ()} if "reference" in name else None
            together = name.endswith("-together")
            sides = side(settings, together), side(reference, together)
            yield compare("deal", name, *sides, target, rounds, "answers/s")


if __name__ == "__main__":
    main(run)
