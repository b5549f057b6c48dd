"""Commands that train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from fader.cli.show import (
    AsJson,
    Model,
    Rating,
    SkipBad,
    commands,
    named_value,
    needing,
    print_json,
    screen,
    table,
)
from fader.data.meta import Sample
from fader.data.meta_files import read_samples
from fader.data.preferences import Judged, flips_of, read_judged, unflipped
from fader.data.records import Item, Pair, read
from fader.data.records import split as of_split
from fader.data.sources import split_name
from fader.engine import builtin
from fader.starter.shipped import (
    DOMAINS,
    starter_families,
    starter_items,
    starter_levels,
    starter_rows,
)
from fader.training.lessons import at_one, lessons_of
from fader.training.lessons import cotrain as side_by_side
from fader.vectors.store import open_vector, vector_folder
from fader.vectors.vector import Vector

if TYPE_CHECKING:
    from fader.training.personal_head import PreferenceWeights
    from fader.training.vector import Recipe


class Loss(StrEnum):
    """The losses of comparisons."""

    simpo = "simpo"
    dpo = "dpo"


class TrainingStages(StrEnum):
    """The stages of `train meta`."""

    one = "one"
    two = "two"
    preferences = "preferences"


class Told(StrEnum):
    """When lessons of `train meta` tell the rule for conflicts."""

    always = "always"
    never = "never"
    mixed = "mixed"


class Stage(StrEnum):
    """The stages of `train personal`; the second has two arms."""

    backbone = "backbone"
    map = "map"
    weights = "weights"


Force = Annotated[
    bool, typer.Option("--force", help="Replace another vector that is in the folder.")
]
MaxLength = Annotated[
    int | None,
    typer.Option(help="Leave out what has more tokens, prompt and answer together [1024]."),
]
Out = Annotated[
    str | None,
    typer.Option(help="Folder to write; left out: the user's vectors folder, where requests look."),
]
Rank = Annotated[int | None, typer.Option(help="Rank of the vector.")]
Beta = Annotated[float | None, typer.Option(help="How sharply a preference counts.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
messages = Console(stderr=True)
app = commands("Train vectors (needs the extra `train`).")


@app.command(
    epilog=(
        "Example: `fader train vector tax --data tax.jsonl --retain other.jsonl`, then `fader"
        " generate '…' --align '{\"vectors\": {\"tax\": 1}}'`"
    )
)
def vector(
    name: Annotated[str, typer.Argument(help="What requests will call the vector.")],
    data: Annotated[
        str,
        typer.Option(
            help=(
                "Pairs in any common form (prompt, chosen, rejected) or levels (query, avoidance,"
                " generic, expert): JSONL, JSON, CSV, parquet, a folder, or a data set's hub id."
            )
        ),
    ],
    out: Out = None,
    model: Model = builtin.NAME,
    split: Annotated[
        str | None,
        typer.Option(
            help=(
                "Train on the records of this split; left out: `train`, or all where none is"
                " marked."
            )
        ),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Data whose answers are to stay as likely as they are; against spill-over."
                " Repeatable."
            )
        ),
    ] = None,
    negate: Annotated[
        bool, typer.Option("--negate", help="Swap chosen and rejected of pairs.")
    ] = False,
    loss: Annotated[
        Loss,
        typer.Option(
            help=(
                "`simpo`: the preference is taught along the whole line of strengths; `dpo`: as in"
                " the paper, plain DPO of chosen over rejected (expert over avoidance) at"
                " strength 1."
            ),
        ),
    ] = Loss.simpo,
    rank: Rank = None,
    targets: Annotated[
        str | None, typer.Option(help="Names of the linear layers to adapt, comma-separated.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the lessons.")] = None,
    beta: Beta = None,
    learning_rate: LearningRate = None,
    sft_epochs: Annotated[
        float | None, typer.Option(help="Supervised passes before the comparisons.")
    ] = None,
    length_normalized: Annotated[
        bool | None, typer.Option(help="Compare log-probabilities per token, or of whole answers.")
    ] = None,
    max_length: MaxLength = None,
    rating: Rating = None,
    skip_bad: SkipBad = 0,
    force: Force = False,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Train an alignment vector along its whole line, resumable, and measure what it does. About
    six minutes for 120 pairs on two cores."""
    with needing("training", "train,eval"):
        from fader.evaluation.effect import note_effect
        from fader.training.vector import DPO, Recipe, train_vector

    items = [
        item.swapped if negate and isinstance(item, Pair) else item
        for item in _read(data, rating, skip_bad)
    ]
    if negate and not any(isinstance(item, Pair) for item in items):
        raise ValueError(
            "--negate: swaps the sides of pairs, and there are none; a vector trained on levels"
            " works both ways already"
        )
    plain = loss is Loss.dpo
    if plain and retain:
        raise ValueError(
            "--retain: plain DPO (--loss dpo) has no lessons that retain other subjects; give one"
            " of the two"
        )
    if split == "":
        raise ValueError("--split: is empty; name a split, or leave it out")
    taught = of_split(items, split_name(split, "--split")) if split else _taught(items)
    left_alone = [item for source in retain or [] for item in _taught(_read(source))]
    recipe = _with(
        DPO if plain else Recipe(),
        rank=rank,
        targets=None if targets is None else tuple(targets.split(",")),
        epochs=epochs,
        beta=beta,
        learning_rate=learning_rate,
        sft_epochs=sft_epochs,
        length_normalized=length_normalized,
        max_length=max_length,
        seed=seed,
    )
    folder = vector_folder(name, out, "NAME")
    lessons = at_one(taught) if plain else lessons_of(taught, left_alone, seed)
    _say(f"Taught: {len(taught)} of {len(items)} items, in {len(lessons)} lessons.")
    trained = train_vector(name, lessons, folder, recipe, model=model, force=force)
    _show(note_effect(trained, folder, model=model, **_measured(items, taught)), folder, as_json)


@app.command(
    epilog="Example: `fader train cotrain tax=tax.jsonl pensions=pensions.jsonl --retain o.jsonl`"
)
def cotrain(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=DATA...", help="Vectors and their data; as for `train vector`."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder to write the vectors' folders into; left out: the user's vectors folder."
        ),
    ] = None,
    model: Model = builtin.NAME,
    retain: Annotated[
        list[str] | None,
        typer.Option(help="Data whose answers are to stay as likely as they are. Repeatable."),
    ] = None,
    max_length: MaxLength = None,
    skip_bad: SkipBad = 0,
    force: Force = False,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Train several vectors side by side, so that each keeps to its own subject when they are
    mixed."""
    with needing("training", "train,eval"):
        from fader.evaluation.effect import note_effect
        from fader.training.vector import Recipe, train_vectors

    sources = [named_value(text, "NAME=DATA") for text in data]
    if len({name for name, _ in sources}) < len(sources):
        raise ValueError(f"NAME=DATA: names a vector twice (got {' '.join(data)})")
    given = {name: _read(source, skip_bad=skip_bad) for name, source in sources}
    left_alone = [item for source in retain or [] for item in _taught(_read(source))]
    lessons = side_by_side(
        [lessons_of(_taught(items), seed=seed) for items in given.values()], left_alone, seed
    )
    folders = {name: vector_folder(name, f"{out}/{name}" if out else out, "NAME") for name in given}
    recipe = _with(Recipe(), max_length=max_length, seed=seed)
    for trained in train_vectors(folders, lessons, recipe, model, force=force):
        items = given[trained.name]
        noted = note_effect(
            trained, folders[trained.name], model=model, **_measured(items, _taught(items))
        )
        _show(noted, folders[trained.name], as_json)


@app.command(
    epilog=(
        "Example: `fader train personal mine --data preferences.jsonl`, then `fader generate '…'"
        ' --align \'{"guides": [{"kind": "personalized", "vectors": {"mine": 1}, "principle":'
        ' "Be brief."}]}\'`'
    )
)
def personal(
    name: Annotated[str, typer.Argument(help="What requests will call the model's vector.")],
    data: Annotated[
        str | None,
        typer.Option(
            help=(
                "Records {preference, prompt, chosen, rejected, family, pole, split}; left out: the"
                " preferences that ship."
            )
        ),
    ] = None,
    out: Out = None,
    model: Model = builtin.NAME,
    stage: Annotated[
        Stage,
        typer.Option(
            help=(
                "`backbone`: stage 1, the model under preferences; `map`, `weights`: stage 2, a"
                " part before the head of the model that --start names. `map` gives a vector,"
                " `weights` only what is measured."
            )
        ),
    ] = Stage.backbone,
    start: Annotated[
        str | None,
        typer.Option(help="Vector to go on from, by name or folder; stage 2 needs one."),
    ] = None,
    passes: Annotated[
        int, typer.Option(min=1, help="Passes over the pairs, each in other wordings.")
    ] = 4,
    rank: Rank = None,
    beta: Beta = None,
    learning_rate: LearningRate = None,
    max_length: MaxLength = None,
    force: Force = False,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Train PAD's personalised reward model on pairs under preferences, resumable. About two hours
    for the preferences that ship, on two cores."""
    with needing("training", "train,eval"):
        from fader.training.personal import PERSONAL, train_personal
        from fader.training.personal_head import RECIPES, train_personal_head
        from fader.training.told import taught_flips

    others: Counter[str] = Counter()
    begun = _begun(start)
    if stage is not Stage.backbone and start is None:
        raise ValueError(
            f"--start: the stage {stage.value} goes on from a trained model; give the vector of"
            " stage 1, by name or folder"
        )
    if data is None:
        flips: list[tuple[Judged, ...]] = [*taught_flips(starter_families(), seed)]
    else:
        records, others = _of_train(read_judged(data), data)
        flips = flips_of(records)
        if alone := unflipped(records):
            _say(
                f"{data}: {len(alone)} answers are liked more often than disliked, or less; from"
                " them the model can learn what is liked without reading a preference"
            )
    idle = [row["text"] for row in starter_rows("preferences/irrelevant", "train")]
    given: dict[str, Any] = {
        "rank": rank,
        "beta": beta,
        "learning_rate": learning_rate,
        "max_length": max_length,
        "seed": seed,
    }
    folder = vector_folder(name, out, "NAME")
    _say(f"Taught: {len(flips)} pairs, {passes} times.")
    trained: Vector | PreferenceWeights
    if stage is Stage.backbone:
        recipe = _with(PERSONAL, **given)
        trained = train_personal(
            name, flips, idle, folder, recipe, passes, model=model, start=begun, force=force
        )
    else:
        part = _with(RECIPES[stage.value], **given)
        trained = train_personal_head(
            name, begun[0], flips, idle, folder, part, passes, model=model, force=force
        )
    row = {
        "name": trained.name,
        "folder": str(folder),
        **{key: trained.card[key] for key in ("lessons", "retained", "seconds")},
        "not_taught": dict(others),
    }
    print_json(row) if as_json else screen.print(row)


@app.command(
    epilog=(
        "Example: `fader train meta meta`, then `fader generate '…' --align '{\"vectors\":"
        ' {"meta": 1}, "preferences": {"user": "Be brief."}}\'`'
    )
)
def meta(
    name: Annotated[str, typer.Argument(help="What requests will call the model's vector.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Samples as `fader data meta` writes them, of which those of the split train are"
                " taught. Repeatable; left out: the items that ship."
            )
        ),
    ] = None,
    out: Out = None,
    model: Model = builtin.NAME,
    loss: Annotated[
        Loss | None,
        typer.Option(
            help=(
                "Of the preferences. `simpo`, also if left out: log-probabilities per token as they"
                " are; `dpo`: as in the paper, less the base model's, told the same."
            )
        ),
    ] = None,
    stages: Annotated[
        TrainingStages,
        typer.Option(
            help=(
                "`two`: supervised, then preferences (the first stage is written too, as"
                " NAME-one-stage); `one`: supervised alone; `preferences`: these alone."
            )
        ),
    ] = TrainingStages.two,
    start: Annotated[
        str | None,
        typer.Option(
            help=(
                "Vector to go on from, by name or folder, such as `personal`, which reads"
                " preferences already; one of higher rank is cut."
            )
        ),
    ] = None,
    rule: Annotated[
        Told | None,
        typer.Option(
            help=(
                "Whether the lessons tell the rule for conflicts in words; left out: mixed, in"
                " every other one."
            )
        ),
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Passes, each in tiers drawn anew.")] = 2,
    share: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Teach only the first lessons, for trials.")
    ] = 1.0,
    rank: Rank = None,
    beta: Beta = None,
    learning_rate: LearningRate = None,
    max_length: MaxLength = None,
    force: Force = False,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Train MetaAlign's model, which obeys the preferences in its prompt, resumable. Some hours for
    the items that ship, on two cores."""
    with needing("training", "train,eval"):
        from fader.training.meta import (
            META,
            META_DPO,
            SUPERVISED,
            meta_lessons,
            sample_lessons,
            taught_items,
            train_meta,
        )

    if stages is TrainingStages.one:
        for option, value in (("--beta", beta), ("--loss", loss)):
            if value is not None:
                raise ValueError(f"{option}: the stage `one` compares no answers; leave it out")
    begun = _begun(start)
    idle = [row["text"] for row in starter_rows("preferences/irrelevant", "train")]
    others: Counter[str] = Counter()
    told = rule or Told.mixed
    if data:
        files = ", ".join(data)
        samples, others = _of_train([one for file in data for one in read_samples(file)], files)
        lessons = [
            one
            for place in range(passes)
            for one in sample_lessons(samples, idle, told.value, seed + place)
        ]
    else:
        items = taught_items(starter_families(), starter_items(), seed)
        general = [
            one
            for domain in ("other", *DOMAINS)
            for one in starter_levels(domain)
            if one.split == "train"
        ]
        lessons = [
            one
            for place in range(passes)
            for one in meta_lessons(items, idle, general, told.value, seed + place)
        ]
    preferences = META_DPO if loss is Loss.dpo else META
    recipe = _with(
        SUPERVISED if stages is TrainingStages.one else preferences,
        rank,
        beta=beta,
        learning_rate=learning_rate,
        max_length=max_length,
        seed=seed,
    )
    if share < 1:
        lessons = lessons[: max(1, round(share * len(lessons) / recipe.batch)) * recipe.batch]
    folder = vector_folder(name, out, "NAME")
    _say(f"Taught: {len(lessons)} lessons.")
    trained = train_meta(
        name,
        lessons,
        folder,
        stages.value,
        recipe,
        begun,
        model=model,
        force=force,
    )
    row = {
        "name": trained.name,
        "folder": str(folder),
        **{key: trained.card[key] for key in ("lessons", "retained", "seconds")},
        "not_taught": dict(others),
    }
    print_json(row) if as_json else screen.print(row)


def _of_train(found: Sequence[Record], source: str) -> tuple[list[Record], Counter[str]]:
    """The records of the split train, and how many there are of the others; says so."""
    records = [one for one in found if one.split == "train"]
    others = Counter(one.split for one in found if one.split != "train")
    said = ", ".join(f"{count} of {split}" for split, count in others.items())
    if not records:
        raise ValueError(f"--data: {source} has no records of the split train (there are {said})")
    if others:
        _say(f"{source}: {len(records)} of {len(found)} records are taught, not {said}")
    return records, others


def _begun(start: str | None) -> list[Vector]:
    """The vector that a training goes on from, if any."""
    if start == "":
        raise ValueError("--start: is empty; give a vector by name or folder, or leave it out")
    return [open_vector(start)] if start else []


Settings = TypeVar("Settings", bound="Recipe")
Record = TypeVar("Record", Judged, Sample)


def _with(recipe: Settings, rank: int | None = None, **settings: Any) -> Settings:
    """A recipe with the settings that were given, not None; alpha goes with the rank."""
    if rank is not None:
        settings |= {"rank": rank, "alpha": recipe.alpha * rank // recipe.rank}
    return replace(recipe, **{key: value for key, value in settings.items() if value is not None})


def _read(source: str, rating: str | None = None, skip_bad: int = 0) -> list[Item]:
    """The items of a source; says on standard error what was read, left out and ignored."""
    found = read(source, rating, skip_bad)
    for line in [*found.notes(), found.summary()]:
        _say(line)
    return list(found.items)


def _taught(items: Sequence[Item]) -> list[Item]:
    """The items marked train; all where none is marked at all."""
    marked = [item for item in items if item.split == "train"]
    if not marked and len({item.split for item in items}) > 1:
        raise ValueError("--data: no item is marked train; name the split with --split")
    return marked or list(items)


def _measured(items: Sequence[Item], taught: Sequence[Item]) -> dict[str, Any]:
    """What a trained vector is measured on: the items of dev, else those of test, unless they were
    taught; where there are none, the taught ones. What is taught of a split is taught whole."""
    used = {"train", *(item.split for item in taught)}
    unseen = [item for item in items if item.split not in used]
    chosen = [item for item in unseen if item.split == "dev"] or unseen
    return {
        "items": chosen or taught,
        "seen": not chosen,
        "held_out": [item for item in unseen if isinstance(item, Pair)],
    }


def _say(line: str) -> None:
    messages.print(line, markup=False, highlight=False, soft_wrap=True)


def _show(trained: Vector, folder: Path, as_json: bool) -> None:
    row = {
        "name": trained.name,
        "folder": str(folder),
        **{key: trained.card[key] for key in ("lessons", "retained", "seconds", "effect")},
    }
    if as_json:
        print_json(row)
        return
    effect = {key: value for key, value in row["effect"].items() if key != "held_out"}
    screen.print({**row, "effect": effect})
    if held_out := row["effect"].get("held_out"):
        table("Held-out pairs: the chosen answer is the likelier one", _by_strength(held_out))


def _by_strength(held_out: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy and margin side by side, each with its interval."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in held_out:
        said = "{value:.2f} ({low:.2f} to {high:.2f})".format_map(one)
        row = found.setdefault(
            (one["case"], one["method"]),
            {"split": one["case"], "pairs": one["n"], "strength": one["method"].split("=")[1]},
        )
        row[one["metric"]] = said
    return list(found.values())
