"""Look-ahead search (DeAL) against the paper's formula without shortcuts, batched and cached, and
against plain greedy decoding, on sets of words that are to stand in one sentence. One answer at a
time; `-together`: all of them in one batch. Targets, as speed: 3 against the reference (aim 10),
0.25 against greedy. The tokens must be those of the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.interleave import Side, compare, main
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


def run(count: int = 2, tokens: int = 40, rounds: int = 3) -> Iterator[dict[str, Any]]:
    """Cases against-reference and against-greedy with a look-ahead of 16, the same with 32, and
    together, in answers per second."""
    sets = [row["concepts"] for row in starter_rows("concepts", "dev")[:count]]

    with Fader() as fader:

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
                    if expected.setdefault(settings.get("lookahead", 16), found) != found:
                        raise AssertionError(
                            f"{settings}: the tokens are not those of the other side"
                        )
                return float(len(results))

            return answer

        expected: dict[int, Any] = {}
        for far, name in ((16, ""), (32, "-32")):
            fast, plain = {"lookahead": far}, {"lookahead": far, "optimizations": ()}
            yield compare(
                "deal", f"against-reference{name}", side(fast), side(plain), rounds, "answers/s"
            )
            yield compare(
                "deal", f"against-greedy{name}", side(fast), side(None), rounds, "answers/s"
            )
        yield compare(
            "deal", "against-greedy-together", side({}, True), side(None, True), rounds, "answers/s"
        )


if __name__ == "__main__":
    main(run())
