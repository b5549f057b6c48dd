"""`fader data meta --own`: items whose answers a model writes itself, with one of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fader.cli.data import messages
from fader.cli.show import needing
from fader.data.meta import Item
from fader.engine.backbone import quick_dtype
from fader.fader import Fader
from fader.starter.shipped import starter_families, starter_items
from fader.vectors.store import open_vector

if TYPE_CHECKING:
    from fader.data.meta_builder import Built
    from fader.data.meta_own import Own, OwnPlan, Written
    from fader.data.rounds import Place
    from fader.request import Request
    from fader.vectors.vector import Vector

READ_BY_OWN = {"own", "out", "data", "count", "seed", "model", "dry_run", "force", "as_json"}
"""The options of `data meta` that are read where the model writes the answers."""


def planned(
    source: str, items: Sequence[Item] | None, count: int, seed: int
) -> tuple[Vector, OwnPlan]:
    """The vector that is named so or lies there, and which items are answered with it; None: of
    those that `train meta` teaches."""
    with needing("making data of the model's own answers", "train,eval"):
        import sklearn  # noqa: F401  (missed here, before anything is made)

        from fader.data.meta_own import own_plan
        from fader.training.meta import taught_items

    if not source:
        raise ValueError("--own: is empty; give a vector by name or folder, or leave it out")
    vector = open_vector(source)
    if items is None:
        items = taught_items(starter_families(), starter_items(), seed)
    return vector, own_plan(items, Path(vector.name).name, count, seed)


def build(vector: Vector, plan: OwnPlan, model: str, place: Place, alone: int = 0) -> Built:
    """The samples of a plan, written to their place by the model. What it has answered is kept
    there: a stopped run goes on, and a repeated one asks nothing."""
    from fader.data.meta_builder import build_own
    from fader.data.meta_own import Written
    from fader.evaluation.cache import Query, ResultCache

    def write(requests: Sequence[Request]) -> list[Written]:
        messages.print(
            f"About {len(requests)} answers, less what is kept from an earlier run.",
            highlight=False,
        )
        with Fader(model, dtype=quick_dtype()) as fader:
            fader.add_vector(vector, plan.vector)
            cache = ResultCache(fader, place.part / "answers.jsonl")
            said = cache.ask(
                [
                    Query("own answers", plan.vector, "", str(number), request)
                    for number, request in enumerate(requests)
                ]
            )
        return [Written(one.text, one.finish == "stop") for one in said]

    return build_own(plan, model, write, place, alone)


def row_of(plan: OwnPlan, own: Own | None = None) -> dict[str, Any]:
    """What is shown of a plan and of what came of it. `judges`: the accuracy of those that have
    their say, by part and family; `left_out`: how many families have none."""
    outcome = {"dropped": own.dropped, "unused": own.unused} if own else {}
    judges: dict[str, dict[str, float]] = {}
    for (part, family), judge in plan.judges.items():
        if judge.earned:
            judges.setdefault(part, {})[family] = round(judge.accuracy, 3)
    return {
        "tried": len(plan.drawn),
        "answers": len(plan.requests),
        **outcome,
        "judges": judges,
        "left_out": sum(not judge.earned for judge in plan.judges.values()),
    }
