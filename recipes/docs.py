"""Writes those parts of the docs that the code says best: `python -m recipes.docs`.

- The tables of fields in `docs/request.md` and `docs/rewards.md`, from the schema: the first table
  in the section of each class. All other text of these pages is written by hand.
- The table of files in `docs/architecture.md`, from the first sentences of modules' docstrings.
- `docs/rooms.svg`, the picture of the rooms.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fader import request, schema
from fader.rewards import specs
from fader.schema import Frozen

ROOT = Path(__file__).parent.parent
ROOMS = (
    ("schema", "files", "endpoint"),
    ("rewards",),
    ("request", "answer"),
    ("profiles",),
    ("engine",),
    ("vectors",),
    ("data",),
    ("starter",),
    ("methods",),
    ("backends", "shards"),
    ("fader", "given"),
    ("training",),
    ("evaluation",),
    ("server",),
    ("cli",),
    ("recipes", "reproductions", "benchmarks", "examples"),
)
"""The rooms from the lowest to the highest; those of one line may import each other."""
WAY = (
    ("fader", "fader/fader.py"),
    ("backends", "fader/backends/local.py"),
    ("methods", "fader/methods/decode.py"),
    ("engine", "fader/engine/loop.py"),
)
"""The four files of a request's way to its tokens, and their rooms."""
KINDS: list[tuple[Any, str]] = [
    (schema.Text, "text"),
    (schema.Texts, "texts"),
    (schema.Share, "share"),
    (schema.Seed, "integer from 0 to 2^63 - 1"),
    (specs.Words, "list of texts, or one"),
    (request.Written, "text or list of token ids"),
    (request.Guide, "[guide](request.md#guides)"),
    (request.RewardSpec, "[reward](rewards.md#the-kinds)"),
    (dict[str, schema.Finite], "vectors"),
    (dict[schema.Text, schema.Finite], "object from text to number"),
    (dict[request.Token, schema.Finite], "object from token id to number"),
    (dict[str, Any], "object"),
    (bool, "true or false"),
    (str, "string"),
]
"""How a kind of value is called in the tables."""


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, on one line, without a full stop."""
    paragraph = " ".join((text or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.?]) (?=[A-Z`])", paragraph, maxsplit=1)[0].removesuffix(".")


def schema_classes(module: ModuleType) -> list[type[Frozen]]:
    """The public classes of a schema module that have fields, in its order."""
    return [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Frozen)
        and value.__module__ == module.__name__
        and value.model_fields
        and not name.startswith("_")
    ]


def joined(parts: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


def _each(part: Any, limits: Sequence[Any]) -> list[str]:
    """The alternatives that one part of a union is."""
    if part is NoneType:
        return []
    if get_origin(part) is Literal:
        return [f"`{value}`" for value in get_args(part)]
    return [said(part, limits)]


def said(kind: Any, limits: Sequence[Any] = ()) -> str:
    """A type of a field in words; `limits` are what its `Field` adds."""
    for known, name in KINDS:
        if kind is known or kind == known:
            return name
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner = [
            one
            for part in parts[1:]
            for one in (part.metadata if isinstance(part, FieldInfo) else [part])
        ]
        return said(parts[0], [*limits, *inner])
    if origin in (Union, UnionType):
        return joined([name for part in parts for name in _each(part, limits)])
    if origin is Literal:
        return joined([f"`{part}`" for part in parts])
    if origin is tuple:
        least = next((one.min_length for one in limits if isinstance(one, MinLen)), 0)
        return f"list of {_plural(said(parts[0]))}" + (", at least one" if least else "")
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"[`{kind.__name__}`](#{kind.__name__.lower()})"
    assert kind in (int, float), f"no words for {kind}"
    return ("integer" if kind is int else "number") + _range(limits)


def _plural(name: str) -> str:
    if "`" in name:
        return name
    return name.replace("]", "s]") if name.startswith("[") else f"{name}s"


def _range(limits: Sequence[Any]) -> str:
    low = next((one.ge for one in limits if isinstance(one, Ge)), None)
    high = next((one.le for one in limits if isinstance(one, Le)), None)
    above = next((one.gt for one in limits if isinstance(one, Gt)), None)
    assert not any(isinstance(one, Lt) for one in limits), limits
    if above is not None:
        return f" above {above}"
    return ("" if low is None else f" from {low}") + ("" if high is None else f" to {high}")


def default(field: FieldInfo) -> str:
    """What a field is when it is left out."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Frozen):
        return f"`{json.dumps(value.model_dump(exclude_defaults=True))}`"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, int | float):
        return f"{value:g}"
    return ", ".join(f"`{one}`" for one in value) if value else "none"


def meaning(owner: type[Frozen], name: str) -> str:
    """What a field's docstring says; where a class only gives it another default, the docstring
    that it had before. `kind` says what the class is."""
    if name == "kind":
        what = first_sentence(owner.__doc__).removeprefix("Reward: ")
        return f"{what[0].upper()}{what[1:]}."
    found = (
        cls.model_fields[name].description
        for cls in owner.__mro__
        if issubclass(cls, Frozen) and name in cls.model_fields
    )
    text = next((one for one in found if one), None)
    assert text, f"{owner.__name__}.{name} has no docstring"
    return " ".join(text.split())


def fields_table(owner: type[Frozen]) -> list[str]:
    """The lines of the table of a class's fields: `kind`, what must be given, its own, the
    others."""
    hints = get_type_hints(owner, include_extras=True)
    own = owner.__annotations__

    def late(name: str) -> tuple[bool, bool, bool]:
        return name != "kind", not owner.model_fields[name].is_required(), name not in own

    rows = [
        (f"`{name}`", said(hints[name], field.metadata), default(field), meaning(owner, name))
        for name in sorted(owner.model_fields, key=late)
        for field in [owner.model_fields[name]]
    ]
    return table(("field", "type", "default", "meaning"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def with_tables(page: str, module: ModuleType) -> str:
    """A page with the first table in the section of each class of the module written anew. Raises
    ValueError where a class has no section, or its section no table."""
    for owner in schema_classes(module):
        heading = re.search(rf"^#+ `{owner.__name__}`\n", page, re.MULTILINE)
        if heading is None:
            raise ValueError(f"no section on {owner.__name__}; add one with a table")
        start = heading.end()
        end = re.compile(r"^#", re.MULTILINE).search(page, start)
        found = re.compile(r"(?:^\|.*\n)+", re.MULTILINE).search(
            page, start, end.start() if end else len(page)
        )
        if found is None:
            raise ValueError(f"the section on {owner.__name__} has no table; begin one with `| |`")
        written = "\n".join(fields_table(owner)) + "\n"
        page = page[: found.start()] + written + page[found.end() :]
    return page


def parts_of(room: str) -> list[Path]:
    """The files of a room, with what a package says of itself first."""
    package = ROOT / "fader" / room
    if not package.is_dir():
        file = package.with_suffix(".py")
        return [file] if file.exists() else []
    return sorted(package.glob("**/*.py"), key=lambda file: (file.name != "__init__.py", file))


def idea(file: Path) -> str:
    """The first sentence of a module's docstring."""
    return first_sentence(ast.get_docstring(ast.parse(file.read_text())))


def files_table() -> list[str]:
    """The lines of the table of files, by room, from the front down."""
    rows = [
        (f"`{file.relative_to(ROOT)}`", idea(file))
        for rooms in reversed(ROOMS)
        for room in rooms
        for file in parts_of(room)
        if file.name != "__init__.py"
    ]
    return table(("file", "idea"), rows)


def with_files(page: str) -> str:
    """A page with its table of files written anew."""
    written, count = re.subn(
        r"^\| file \| idea \|\n(?:\|.*\n)+",
        lambda _: "\n".join(files_table()) + "\n",
        page,
        count=1,
        flags=re.MULTILINE,
    )
    if not count:
        raise ValueError("no table of files; begin one with `| file | idea |` and a line below it")
    return written


WIDTH, MARGIN, GAP, LINE = 880, 16, 8, 16
"""Of the picture, in pixels: its width, its margin, between boxes, and from line to line."""


def rooms_picture() -> str:
    """The rooms as an SVG: a row of boxes for each line of `ROOMS`, the highest at the top, and the
    numbers of a request's way through them."""
    number = {room: place for place, (room, _) in enumerate(WAY, start=1)}
    shown = [[room for room in rooms if parts_of(room)] for rooms in reversed(ROOMS[:-1])]
    body: list[str] = []
    top = MARGIN
    for rooms in filter(None, shown):
        width = (WIDTH - 2 * MARGIN - GAP * (len(rooms) - 1)) // len(rooms)
        lines = [
            textwrap.wrap(idea(parts_of(room)[0]).replace("`", ""), (width - 130) // 7)
            for room in rooms
        ]
        height = LINE * max(map(len, lines)) + 14
        for place, (room, text) in enumerate(zip(rooms, lines, strict=True)):
            left = MARGIN + place * (width + GAP)
            body += _box(left, top, width, height, room, text, number.get(room))
        top += height + GAP
    body.append(
        f'<text x="{WIDTH // 2}" y="{top + 12}" text-anchor="middle" class="note">Imports go down'
        " only. The numbers are a request's way to its tokens.</text>"
    )
    style = (
        "text{font:12px sans-serif;fill:#24292f}.name{font-weight:bold;font-family:monospace}"
        ".note{font-style:italic}.step{fill:#fff;font-weight:bold}"
    )
    height = top + 28
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>The rooms of fader</title>",
            f"<style>{style}</style>",
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _box(
    left: int, top: int, width: int, height: int, room: str, text: Sequence[str], step: int | None
) -> Iterator[str]:
    fill = "#eef4ff" if step is None else "#ffe9d6"
    yield (
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="6" fill="{fill}"'
        ' stroke="#8c959f"/>'
    )
    yield f'<text x="{left + 12}" y="{top + 19}" class="name">{room}</text>'
    for place, line in enumerate(text):
        yield f'<text x="{left + 100}" y="{top + 19 + LINE * place}">{escape(line)}</text>'
    if step is not None:
        yield f'<circle cx="{left + width - 18}" cy="{top + 15}" r="10" fill="#c2410c"/>'
        yield (
            f'<text x="{left + width - 18}" y="{top + 19}" text-anchor="middle" class="step">'
            f"{step}</text>"
        )


def generated() -> dict[Path, str]:
    """Every page and picture that this script writes, as it has to be."""
    docs = ROOT / "docs"
    return {
        docs / "request.md": with_tables((docs / "request.md").read_text(), request),
        docs / "rewards.md": with_tables((docs / "rewards.md").read_text(), specs),
        docs / "architecture.md": with_files((docs / "architecture.md").read_text()),
        docs / "rooms.svg": rooms_picture(),
    }


def main() -> None:
    """Write what has changed, and say so."""
    for path, text in generated().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
