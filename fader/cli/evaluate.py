"""Commands that measure: eval, and the search for strengths (`vectors tune`)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fader.cli.show import (
    AsJson,
    Model,
    Rating,
    SkipBad,
    Workers,
    given_options,
    named_value,
    needing,
    print_json,
    screen,
    table,
    workers_of,
)
from fader.data.records import LEVELS, Level, LevelItem, as_pairs, read, read_levels
from fader.endpoint import Endpoint
from fader.engine import builtin
from fader.engine.backbone import quick_dtype
from fader.fader import Fader
from fader.files import repeated
from fader.profiles import profile_place, save_profile
from fader.request import Alignment
from fader.starter.shipped import DOMAINS, STYLES, starter_levels
from fader.vectors.store import NAME, available, folders, open_vector
from fader.vectors.vector import Vector

if TYPE_CHECKING:
    from fader.evaluation.cache import Measurement, Query, ResultCache

PERSONAL = frozenset(
    (
        "personalized",
        "personalized-baselines",
        "personalized-sweep",
        "personalized-economies",
    )
)
"""The tasks of a personalised model, which are measured by themselves or with each other."""
TIERS = frozenset(("flip", "control", "conflict", "implicit", "persona", "steer", "meta-ability"))
"""The tasks of preferences in tiers, likewise."""
READ_BY: Mapping[str, frozenset[str]] = {
    "rating": frozenset({"pairs"}),
    "skip_bad": frozenset({"pairs"}),
    "judge": frozenset({"generation", "judges", "steer"}) | PERSONAL,
    "one_stage": TIERS,
    "rendering": TIERS,
}
"""Options that only these tasks read."""
NOT_READ_BY: Mapping[str, frozenset[str]] = {
    "domain": frozenset({"pairs", "judges"}) | PERSONAL | TIERS,
    "split": frozenset({"pairs", "judges"}),
}
"""Options that these tasks, which are measured by themselves, do not read."""
Moved = Annotated[
    list[str] | None,
    typer.Option(
        "--vector",
        help=(
            "DOMAIN=NAME: another vector for a domain. Repeatable. For pairs: its name alone, as"
            " for personalized and its like (left out: personal), and for flip and its like"
            " (left out: meta)."
        ),
    ),
]
Levels = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help=(
            "DOMAIN=FILE: another level file for a domain; without a dev split, the shipped one"
            " serves. Repeatable. For pairs: FILE alone, in any common form. For judges,"
            " personalized, steer and persona: a folder of public data; left out: the one that"
            " FADER_DATA names."
        ),
    ),
]
Ledgered = Annotated[
    str,
    typer.Option(
        "--out",
        help="Result cache: JSONL of all that was measured. A stopped run goes on from it.",
    ),
]
Limited = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="At most this many items of each kind; for a quick look."),
]
Seed = Annotated[int, typer.Option(min=0, help="Another seed, other draws.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16; left out: the one this machine computes faster."),
]
OnRay = Annotated[
    bool,
    typer.Option(
        "--ray",
        help=(
            "Measure by workers on Ray: the cluster that RAY_ADDRESS names, else this machine. Each"
            " has the model, as has the command itself."
        ),
    ),
]


def evaluate(
    context: typer.Context,
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help=(
                "levels, curve, prompting, generation, spillover, fluency, ability, styles; or,"
                " by themselves: pairs, of your own data; judges, how right the judges of"
                " helpful, harmless and humorous are; personalized, personalized-baselines,"
                " personalized-sweep, personalized-economies, of a personalised reward model; flip,"
                " control, conflict, implicit, persona, steer, meta-ability, of preferences in"
                " tiers."
            ),
        ),
    ],
    split: Annotated[
        str, typer.Option(help="Split that is measured; strengths are chosen on dev.")
    ] = "test",
    domain: Annotated[
        list[str] | None,
        typer.Option(help="Domains to measure; left out: medical, legal, financial. Repeatable."),
    ] = None,
    vector: Moved = None,
    one_stage: Annotated[
        str | None,
        typer.Option(
            "--one-stage",
            help="For flip and its like: the vector's first stage, which then has rows of its own.",
        ),
    ] = None,
    rendering: Annotated[
        str | None,
        typer.Option(
            help=(
                "For flip and its like: `meta` tells the rule for conflicts, `tiers` leaves it out;"
                " left out: meta."
            )
        ),
    ] = None,
    data: Levels = None,
    out: Ledgered = "runs/eval.jsonl",
    report: Annotated[
        str | None, typer.Option(help="HTML file to write: tables and plots.")
    ] = None,
    limit: Limited = None,
    rating: Rating = None,
    skip_bad: SkipBad = 0,
    judge: Annotated[
        str | None,
        typer.Option(
            help=(
                "An OpenAI-compatible endpoint that judges, as URL#MODEL, its key in"
                " OPENAI_API_KEY; left out: a classifier."
            )
        ),
    ] = None,
    judge_timeout: Annotated[float, typer.Option(help="Seconds that one try may take.")] = 120.0,
    judge_retries: Annotated[
        int, typer.Option(help="Further tries of a request that fails on the way.")
    ] = 5,
    seed: Seed = 0,
    model: Model = builtin.NAME,
    dtype: Dtype = None,
    ray: OnRay = False,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Measure what vectors do: one metric per line, {task, method, case, metric, value, low, high,
    n, seed}."""
    with needing("evaluation", "eval"):
        from fader.evaluation.judge import KEY, language_model
        from fader.evaluation.report import write_report
        from fader.evaluation.suite import Suite
        from fader.evaluation.tasks import TASKS
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"TASK: no task {task!r}; known: {', '.join(TASKS)}")
    for task in ("pairs", "judges", *PERSONAL, *TIERS):
        alike = {*tasks} <= PERSONAL or {*tasks} <= TIERS
        if task in tasks and len(tasks) > 1 and not alike:
            raise ValueError(f"TASK: {task} is measured by itself (got {' '.join(tasks)})")
    if data and tasks and {*tasks} <= TIERS - {"persona", "steer"}:
        raise ValueError(f"--data: is for persona and steer (got {' '.join(tasks)})")
    _refuse_unread(context, tasks)
    if tasks == ["pairs"]:
        chosen = _of_pairs(vector, data, rating, skip_bad)
    elif tasks == ["judges"]:
        chosen = _of_judges(vector, data)
    elif {*tasks} <= PERSONAL:
        chosen = _of_personal(vector, data)
    elif {*tasks} <= TIERS:
        chosen = _of_tiers(vector, one_stage, rendering, data)
    else:
        chosen = _chosen(domain or DOMAINS, vector, data)
    at = re.fullmatch(r"(https?://[^#]+)#(.+)", judge or "")
    if judge is not None and at is None:
        raise ValueError(f"--judge: must be URL#MODEL (got {judge!r})")
    endpoint = None
    if at is not None:
        endpoint = Endpoint(
            at[1],
            at[2],
            os.environ.get(KEY),
            judge_timeout,
            judge_retries,
            folder=Path(out).with_name(f".{Path(out).name}.judge"),
        )
    given: dict[str, Vector] = {}
    for role in ("personal", "meta", "one_stage"):
        if role in chosen:  # a name, or a folder, which is called by its last part
            moved = open_vector(chosen[role])
            chosen[role] = Path(moved.name).name
            given[chosen[role]] = moved
    make = partial(_fader, model, dtype or quick_dtype(), given)
    with _cache(make, Path(out), workers_of(context)) as cache:
        suite = Suite(
            cache,
            **chosen,
            styles=[name for name in STYLES if name in available()],
            judge=None if endpoint is None else language_model(endpoint),
            endpoint=endpoint,
            split=split,
            seed=seed,
            limit=limit,
        )
        metrics = []
        for task in tasks:
            for metric in TASKS[task](suite):
                metrics.append(metric)
                if as_json:
                    print_json(asdict(metric))
    if report is not None:
        write_report(metrics, Path(report))
    if not as_json:
        table("Metrics", [asdict(metric) for metric in metrics])
        screen.print(f"Measurements: {out}" + (f"; report: {report}" if report else ""))


def tune(
    context: typer.Context,
    want: Annotated[
        str,
        typer.Argument(
            help=(
                "The level for each domain, as in `medical=expert,legal=avoidance`; the vectors"
                " of other domains stay at 0."
            )
        ),
    ],
    profile: Annotated[
        str | None,
        typer.Option(help="Write the found alignment as this profile into `.fader/profiles`."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="The report is of this split; strengths are chosen on dev.")
    ] = "test",
    vector: Moved = None,
    data: Levels = None,
    out: Ledgered = "runs/eval.jsonl",
    limit: Limited = None,
    seed: Seed = 0,
    model: Model = builtin.NAME,
    dtype: Dtype = None,
    ray: OnRay = False,
    workers: Workers = 2,
    as_json: AsJson = False,
) -> None:
    """Find the strengths that bring domains to levels, report what they do, and write them as a
    profile."""
    with needing("tuning", "eval"):
        from fader.evaluation.suite import Suite
        from fader.evaluation.tune import consequences
        from fader.evaluation.tune import tune as search
    pairs = [named_value(text, "DOMAIN=LEVEL") for text in want.split(",")]
    if repeated(name for name, _ in pairs) is not None:
        raise ValueError(f"WANT: names a domain twice (got {want!r})")
    wanted = dict(pairs)
    chosen = _chosen(list(dict.fromkeys([*wanted, *DOMAINS])), vector, data)
    if profile is not None:
        place = profile_place(profile)  # before anything is measured
        if place.exists():
            raise ValueError(f"--profile: {place} is there already; choose another, or remove it")
    for domain, level in wanted.items():
        if level not in LEVELS:
            raise ValueError(f"WANT: {domain} must be one of {', '.join(LEVELS)} (got {level!r})")
    make = partial(_fader, model, dtype or quick_dtype(), {})
    with _cache(make, Path(out), workers_of(context)) as cache:
        suite = Suite(cache, **chosen, split=split, seed=seed, limit=limit)
        found = search(suite, cast("dict[str, Level]", wanted))
        metrics = list(consequences(suite, found, cast("dict[str, Level]", wanted)))
    row: dict[str, Any] = {
        "strengths": found.strengths,
        "reached_on_dev": found.reached,
        "figures": [asdict(metric) for metric in metrics],
    }
    if profile is not None:
        row["profile"] = str(save_profile(profile, Alignment(vectors=found.strengths)))
    if as_json:
        print_json(row)
        return
    table("Metrics", row["figures"])
    screen.print({key: value for key, value in row.items() if key != "figures"})


def _fader(model: str, dtype: str, vectors: Mapping[str, Vector]) -> Fader:
    """The model, with these vectors by name."""
    fader = Fader(model, dtype=dtype)
    for name, vector in vectors.items():
        fader.add_vector(vector, name)
    return fader


@contextmanager
def _cache(make: Callable[[], Fader], out: Path, workers: int | None) -> Iterator[ResultCache]:
    """The result cache in a file, for which the model measures; or, by as many workers, Ray."""
    from fader.evaluation.cache import ResultCache

    if workers is None:
        with make() as fader:
            yield ResultCache(fader, out)
        return
    with needing("--ray", "ray"):
        from fader.backends import ray
    with make() as fader:
        identity = fader.backend.identity(fader.model)
        places = os.pathsep.join(str(folder.absolute()) for folder in folders())
        with ray.Workers(partial(_measuring, make, identity, places), workers) as spread:
            yield ResultCache(fader, out, workers=spread)


def _measuring(
    make: Callable[[], Fader], identity: str, places: str
) -> Callable[[Sequence[Query]], list[Measurement]]:
    """What measures, in a process of its own, with the vectors of these folders. Raises ValueError
    where the model is another one there."""
    from fader.evaluation.cache import measure

    os.environ["FADER_VECTORS"] = places
    fader = make()
    if fader.backend.identity(fader.model) != identity:
        raise ValueError(
            f"--model: a worker has another model under {fader.model}; put the same files there"
        )
    return partial(measure, fader)


def _refuse_unread(context: typer.Context, tasks: Sequence[str]) -> None:
    """Raises ValueError for an option that was given and that none of the tasks reads."""
    given = given_options(context)
    for name, option in given.items():
        if (name in READ_BY and not READ_BY[name] & {*tasks}) or (
            name in NOT_READ_BY and NOT_READ_BY[name] & {*tasks}
        ):
            raise ValueError(f"{option}: {', '.join(tasks)} does not read it; leave it out")
        if name in ("judge_timeout", "judge_retries") and "judge" not in given:
            raise ValueError(f"{option}: there is no --judge; give one, or leave it out")


def _chosen(
    domains: Sequence[str], vector: Sequence[str] | None, data: Sequence[str] | None
) -> dict[str, Any]:
    """The level data and vectors of a suite, as the options say."""
    for name in domains:
        if not re.fullmatch(
            NAME, name
        ):  # cases of metrics are made of domains, as in a=expert,b=generic
            raise ValueError(
                f"domain: {name!r} must be letters, digits, points, hyphens and underscores"
            )
    files = _by_domain("--data DOMAIN=FILE", data)
    moved = _by_domain("--vector DOMAIN=NAME", vector)
    for option, given in (("--data", files), ("--vector", moved)):
        if unknown := [name for name in given if name not in domains]:
            raise ValueError(
                f"{option}: {unknown[0]!r} is none of the domains that are measured"
                f" ({', '.join(domains)})"
            )
    return {
        "levels": {name: _items(name, files.get(name)) for name in domains},
        "vectors": {name: moved.get(name, name) for name in domains},
    }


def _by_domain(form: str, given: Sequence[str] | None) -> dict[str, str]:
    """What an option says of each domain. Raises ValueError for one that is named twice."""
    found = [named_value(text, form) for text in given or ()]
    if (twice := repeated(name for name, _ in found)) is not None:
        raise ValueError(f"{form}: names {twice!r} twice; keep one of the two")
    return dict(found)


def _of_pairs(
    vector: Sequence[str] | None,
    data: Sequence[str] | None,
    rating: str | None,
    skip_bad: int,
) -> dict[str, Any]:
    """The pairs and the vector that the task `pairs` measures."""
    if len(vector or ()) != 1 or len(data or ()) != 1:
        raise ValueError(
            "pairs: needs one file and one vector, as in `fader eval pairs --data mine.jsonl"
            " --vector mine`"
        )
    ((name,), (source,)) = vector or (), data or ()
    found = read(source, rating, skip_bad)
    for line in [*found.notes(), found.summary()]:
        typer.echo(line, err=True)
    return {"pairs": as_pairs(found.items), "levels": {}, "vectors": {name: name}}


def _of_personal(vector: Sequence[str] | None, data: Sequence[str] | None) -> dict[str, Any]:
    """The vector of the personalised model, and the folder of public data that judges learn
    from."""
    if len(vector or ()) > 1 or len(data or ()) > 1:
        raise ValueError(
            "personalized: takes one vector and one folder, as in `fader eval personalized --vector"
            " mine --data FOLDER`"
        )
    named = {"personal": vector[0]} if vector else {}
    return {"public": Path(data[0]) if data else None, "levels": {}, "vectors": {}, **named}


def _of_tiers(
    vector: Sequence[str] | None,
    one_stage: str | None,
    rendering: str | None,
    data: Sequence[str] | None,
) -> dict[str, Any]:
    """The vectors of the model that obeys preferences in tiers, how they are told, and the folder
    of public data."""
    if len(vector or ()) > 1 or len(data or ()) > 1:
        raise ValueError(
            "flip: takes one vector and one folder, as in `fader eval flip --vector mine`"
        )
    if rendering not in (None, "meta", "tiers"):
        raise ValueError(f"--rendering: must be meta or tiers (got {rendering!r})")
    first, last = (Path(source).name for source in (one_stage or "", *(vector or ["meta"])))
    if first == last:
        raise ValueError(f"--one-stage: is called as the vector is (got {first}); rename one")
    named = {
        "meta": vector[0] if vector else None,
        "one_stage": one_stage,
        "rendering": rendering,
        "public": Path(data[0]) if data else None,
    }
    return {"levels": {}, "vectors": {}, **{role: one for role, one in named.items() if one}}


def _of_judges(vector: Sequence[str] | None, data: Sequence[str] | None) -> dict[str, Any]:
    """The folder of public data that the task `judges` tests with."""
    if vector or len(data or ()) > 1:
        raise ValueError(
            "judges: takes no vector and one folder, as in `fader eval judges --data FOLDER`"
        )
    return {"public": Path(data[0]) if data else None, "levels": {}, "vectors": {}}


def _items(domain: str, file: str | None) -> list[LevelItem]:
    """A domain's level items: the file's; where those have no dev split, the shipped one's dev
    items with them."""
    shipped = starter_levels(domain) if file is None or domain in DOMAINS else []
    given = shipped if file is None else read_levels(file)
    return (
        given
        if any(item.split == "dev" for item in given)
        else [*given, *(item for item in shipped if item.split == "dev")]
    )
