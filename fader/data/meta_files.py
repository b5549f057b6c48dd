"""Files of MetaAlign's data (`meta.py`): records of items and of samples.

An item record has `part`, `prompt` (a text, or messages), `answers` (two), `texts` (two, each a
wording or several, of which either answer follows one; none for consensus), and may have `harmful`
(which of query, first, second), `refusal`, `family` and `split`. A sample record has `part`,
`provider`, `user`, `facts`, `history`, `prompt`, `chosen`, `rejected`, and may have `cell`,
`family` and `split`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args

from fader.data import sources, splits
from fader.data.conversations import NoPreference, refuse_misspelt, unknown
from fader.data.meta import (
    HARMS,
    PARTS,
    Harm,
    Item,
    Sample,
    matrix,
)
from fader.data.preferences import once, plain
from fader.data.records import pair_of
from fader.request import Preferences
from fader.schema import at, parse, short, whole_characters

FIELDS = ("part", "family", "prompt", "texts", "answers", "harmful", "refusal", "split")
TOLD = ("provider", "user", "facts", "history")
SAMPLE_FIELDS = ("part", "cell", "family", *TOLD)


def read_items(source: Path | str) -> list[Item]:
    """The items of a file of item records. Raises ValueError naming the record and the field that
    is wrong."""
    found = [_item(row.sound, row.where) for row in sources.rows(source)]
    if not found:
        raise ValueError(f"{source}: no records")
    return found


def read_samples(source: Path | str) -> list[Sample]:
    """The samples of a file. Raises ValueError naming the record and the field that is wrong."""
    found = [_sample(row.sound, row.where) for row in sources.rows(source)]
    if not found:
        raise ValueError(f"{source}: no records")
    return found


def row_of(sample: Sample) -> dict[str, Any]:
    """The record that is read as this sample."""
    told = sample.told.model_dump(include=set(TOLD), exclude_defaults=True)
    return {
        "part": sample.part,
        **({"cell": str(sample.cell)} if sample.cell else {}),
        **({"family": sample.family} if sample.family else {}),
        **{name: [*value] for name, value in told.items()},
        **splits.row_of(sample.pair),
    }


def _part(fields: Mapping[str, Any], where: str) -> Any:
    if (part := fields.get("part")) not in PARTS:
        raise ValueError(f"{where}: part must be one of {', '.join(PARTS)} (got {short(part)})")
    return part


def _item(fields: Mapping[str, Any], where: str) -> Item:
    refuse_misspelt(fields, where, FIELDS)
    if surplus := [name for name in fields if name not in FIELDS]:
        raise ValueError(f"{where}: {surplus[0]}: no field of an item is called so; take it out")
    part = _part(fields, where)
    prompt = fields.get("prompt")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError(f"{where}: prompt must be a question, or messages (got {short(prompt)})")
    answers = fields.get("answers")
    if not _are_texts(answers) or len(answers) != 2:
        raise ValueError(f"{where}: answers must be two texts (got {short(answers)})")
    texts = fields.get("texts") or [[], []]
    if not isinstance(texts, list) or len(texts) != 2:
        raise ValueError(f"{where}: texts must be two opposed ones (got {short(texts)})")
    sides = [[text] if isinstance(text, str) else text for text in texts]
    if part == "consensus":
        if any(sides):
            raise ValueError(
                f"{where}: texts: consensus holds whatever is told; take them out (got"
                f" {short(texts)})"
            )
    elif not all(map(_are_texts, sides)):
        raise ValueError(f"{where}: texts must be two, and none empty (got {short(texts)})")
    if set(map(plain, sides[0])) & set(map(plain, sides[1])):
        raise ValueError(f"{where}: texts: both sides say the same (got {short(texts)})")
    for name, said in (("texts", [*sides[0], *sides[1]]), ("refusal", [fields.get("refusal")])):
        with at(f"{where}: {name}"):
            for text in said:
                if isinstance(text, str):
                    whole_characters(text)
    harmful = fields.get("harmful") or []
    if not isinstance(harmful, list) or any(what not in HARMS for what in harmful):
        raise ValueError(
            f"{where}: harmful must be a list of some of {', '.join(HARMS)} (got {short(harmful)})"
        )
    if harmful and part != "priority":
        raise ValueError(f"{where}: part must be priority where something is harmful (got {part})")
    refusal = fields.get("refusal") or ""
    if (harmful or refusal) and not _are_texts([refusal]):
        raise ValueError(
            f"{where}: refusal must be a text that declines what is harmful (got {short(refusal)})"
        )
    for what, answer in zip(HARMS[1:], answers, strict=True):
        if {what, "query"} & set(harmful) and answer.strip() == refusal.strip():
            raise ValueError(
                f"{where}: refusal is the {what} answer too, which follows what is harmful (got"
                f" {short(refusal)}); give an answer that does"
            )
    pair = _pair(fields, answers, where)
    return Item(
        part,
        pair.messages,
        (pair.chosen, pair.rejected),
        (once(sides[0]), once(sides[1])),
        frozenset(harmful),
        refusal,
        _name(fields, where),
        pair.split,
    )


def _pair(fields: Mapping[str, Any], answers: Sequence[str], where: str) -> Any:
    rest = {name: fields[name] for name in ("prompt", "split") if name in fields}
    try:
        return pair_of({**rest, "chosen": answers[0], "rejected": answers[1]}, where)
    except NoPreference:
        raise ValueError(
            f"{where}: answers: the two are equal (got {short(answers[0])}); take the record out"
        ) from None


def _sample(fields: Mapping[str, Any], where: str) -> Sample:
    refuse_misspelt(fields, where, SAMPLE_FIELDS)
    rest = {name: value for name, value in fields.items() if name not in SAMPLE_FIELDS}
    if surplus := unknown(rest):
        raise ValueError(f"{where}: {surplus[0]}: no field of a sample is called so; take it out")
    part = _part(fields, where)
    named = fields.get("cell") or ""
    known = {str(cell): cell for cell in matrix()}
    if named and named not in known:
        raise ValueError(
            f"{where}: cell must be of the priority matrix, such as {next(iter(matrix()))} (got"
            f" {short(named)}); its places are {', '.join(get_args(Harm))}"
        )
    told = parse(Preferences, {name: fields[name] for name in TOLD if fields.get(name)}, where)
    if told.empty:
        raise ValueError(f"{where}: one of {', '.join(TOLD)} must say something")
    try:
        pair = pair_of(rest, where)
    except NoPreference as why:
        raise ValueError(f"{where}: {why}; take the record out") from None
    return Sample(part, told, pair, _name(fields, where), known.get(named))


def _name(fields: Mapping[str, Any], where: str) -> str:
    family = fields.get("family") or ""
    if not isinstance(family, str):
        raise ValueError(f"{where}: family must be a text (got {short(family)})")
    with at(f"{where}: family"):
        whole_characters(family)
    return family


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(text, str) and text.strip() for text in value)
    )
