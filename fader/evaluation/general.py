"""What must not be lost: fluency on neutral text, and general ability; and whether style axes are
monotone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from fader.evaluation.figures import Figure, average, distinct, perplexity, perplexity_ratio
from fader.evaluation.lab import Lab, named
from fader.evaluation.ledger import Asked, Said
from fader.fader import Fader
from fader.training.data import STARTER, read_rows, split, starter_pairs

NEUTRAL = "Write a short paragraph."
STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def neutral(lab: Lab, task: str, amounts: Mapping[str, float]) -> list[Figure]:
    """Perplexity per token of the shipped neutral paragraphs under a mixture, and its ratio to the
    bare model's."""
    texts = (STARTER / "neutral.txt").read_text(encoding="utf-8").splitlines()[: lab.limit]

    def read(mixture: Mapping[str, float]) -> list[Said]:
        request = Fader.request(NEUTRAL, alignment={"vectors": dict(mixture)})
        return lab.ledger.ask(
            [
                Asked(task, named(mixture), "neutral", str(place), request, text)
                for place, text in enumerate(texts)
            ]
        )

    bare, said = read({}), read(amounts)
    means, counts = [one.mean for one in said], [one.tokens for one in said]
    return [
        perplexity(task, named(amounts), "neutral", means, counts, lab.seed),
        perplexity_ratio(
            task, named(amounts), "neutral", means, [one.mean for one in bare], counts, lab.seed
        ),
    ]


def fluency(lab: Lab) -> Iterator[Figure]:
    """Perplexity per token of neutral paragraphs, its ratio to the bare model's, and distinct-2 of
    answers to general questions."""
    queries = [item.query for item in lab.items("other")][:12]
    for amounts in _mixtures(lab):
        method, wish = named(amounts), {"alignment": {"vectors": amounts}, "max_tokens": 80}
        yield from neutral(lab, "fluency", amounts)
        written = lab.ledger.ask(
            [
                Asked("fluency", method, "written", str(i), Fader.request(query, **wish))
                for i, query in enumerate(queries)
            ]
        )
        yield average(
            "fluency",
            method,
            "written",
            "distinct_2",
            [distinct(one.text) for one in written],
            lab.seed,
        )


def ability(lab: Lab) -> Iterator[Figure]:
    """Share of simple multiple-choice questions whose right choice has the highest log-probability
    per token."""
    rows = [row for _, row in read_rows(STARTER / "ability.jsonl")][: lab.limit]
    for amounts in _mixtures(lab):
        method, wish = named(amounts), {"alignment": {"vectors": dict(amounts)}}
        asked = [
            Asked(
                "ability",
                method,
                "all",
                f"{place}:{choice}",
                Fader.request(row["question"], **wish),
                choice,
            )
            for place, row in enumerate(rows)
            for choice in row["choices"]
        ]
        means = iter([said.mean for said in lab.ledger.ask(asked)])
        right = [
            float(int(np.argmax([next(means) for _ in row["choices"]])) == row["answer"])
            for row in rows
        ]
        yield average("ability", method, "all", "accuracy", right, lab.seed)


def styles(lab: Lab) -> Iterator[Figure]:
    """For each style axis the margin per token of the styled answer over the other at five amounts,
    and whether it only ever grows."""
    for name in lab.styles:
        pairs = split(starter_pairs(name), lab.split)[: lab.limit]
        margins = []
        for amount in STEPS:
            alignment: dict[str, Any] = {"vectors": {name: amount} if amount else {}}
            margins.append(
                lab.margins("styles", f"{name}={amount:g}", name, pairs, alignment).tolist()
            )
            yield average("styles", f"{name}={amount:g}", name, "margin", margins[-1], lab.seed)
            yield average(
                "styles",
                f"{name}={amount:g}",
                name,
                "preferred",
                [float(margin > 0) for margin in margins[-1]],
                lab.seed,
            )
        means = [float(np.mean(margin)) for margin in margins]
        yield average(
            "styles",
            name,
            name,
            "monotone",
            [float(all(a < b for a, b in pairwise(means)))],
            lab.seed,
        )


def _mixtures(lab: Lab) -> list[dict[str, float]]:
    return [{}, *lab.ends()]
