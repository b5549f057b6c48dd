"""The kinds of values in a request, and the faults in them: `parse` names every one by its path.

A schema is frozen and closed: a checked value never changes, and a field that is not listed is an
error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


NUMBER = BeforeValidator(_no_truth)
"""In a number's type: true is not 1. A plain `int` or `float` in a `Frozen` needs it not."""
Finite = Annotated[float, Field(allow_inf_nan=False), NUMBER]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), NUMBER]
Share = Annotated[float, Field(gt=0, le=1), NUMBER]
Seed = Annotated[int, Field(ge=0, lt=2**63), NUMBER]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty; leave the field out instead")
    return text


def not_empty(text: str) -> str:
    """Refuses the empty text."""
    if not text:
        raise ValueError("must not be empty; leave it out instead")
    return text


def listed(value: Any) -> Any:
    """A single text as a list of one."""
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_not_blank)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(listed)]


def _is_number(field: FieldInfo) -> bool:
    """Whether a field takes a plain number, or null."""
    kinds = {*get_args(field.annotation)} or {field.annotation}
    return kinds <= {int, float, NoneType}


def _may_be_none(field: FieldInfo) -> bool:
    return field.is_required() or NoneType in get_args(field.annotation)


class Frozen(BaseModel):
    """Immutable, and closed: a field that is not in the schema is an error. None means "not given"
    unless it is a value of the field. True is no number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _as_given(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        given = dict(value)
        for name, field in cls.model_fields.items():
            one = given.get(name)
            if one is None and not _may_be_none(field):
                given.pop(name, None)
            elif isinstance(one, bool) and _is_number(field):
                given[name] = str(one)  # which pydantic refuses, where 1 would do
        return given


class Invalid(ValueError):
    """A value that cannot be used. `path`: the field, as in `alignment.vectors.medical` (empty: the
    value as a whole); `said`: what is wrong with it and the fix. `others`: further faults of the
    same value; the text has a line for each."""

    def __init__(self, said: str, path: str = "", others: Sequence[Invalid] = ()) -> None:
        super().__init__(said, path, tuple(others))
        self.said, self.path, self.others = said, path, tuple(others)

    def __str__(self) -> str:
        lines = (f"{one.path}: {one.said}" if one.path else one.said for one in self.faults)
        return "\n".join(lines)

    @property
    def faults(self) -> list[Invalid]:
        """Every fault by itself."""
        return [self if not self.others else Invalid(self.said, self.path), *self.others]

    def under(self, *parts: str | int) -> Invalid:
        """The same faults, of a value that is a field of another one."""
        first, *others = (Invalid(one.said, path_of(*parts, one.path)) for one in self.faults)
        return Invalid(first.said, first.path, others)


def path_of(*parts: str | int) -> str:
    """The parts of a path as one text: `path_of("search", "rewards", 0)` is `search.rewards[0]`."""
    named = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts if part != ""]
    return "".join(named).removeprefix(".")


@contextmanager
def at(*parts: str | int) -> Iterator[None]:
    """Around code that reads a field: a ValueError in it becomes `Invalid` under the field's
    path."""
    try:
        yield
    except ValueError as error:
        fault = error if isinstance(error, Invalid) else Invalid(str(error))
        raise fault.under(*parts) from None


@contextmanager
def renamed(name: Callable[[str], str]) -> Iterator[None]:
    """Around code that knows a value's fields by other names: the path of each fault of an
    `Invalid` becomes `name(path)`."""
    try:
        yield
    except Invalid as error:
        first, *others = (Invalid(fault.said, name(fault.path)) for fault in error.faults)
        raise Invalid(first.said, first.path, others) from None


@contextmanager
def within(where: str) -> Iterator[None]:
    """Around code that reads one of several values: its faults say which, as in `request 2:
    alignment.vectors.medical` or `big.jsonl:17: model`."""
    with renamed(lambda path: where + (f": {path}" if path else "")), at():
        yield


class Faults:
    """Collects the faults of one value, so that all of them are raised at once."""

    def __init__(self, *inside: str | int, found: list[Invalid] | None = None) -> None:
        self._inside = inside
        self.found: list[Invalid] = [] if found is None else found

    def inside(self, *parts: str | int) -> Faults:
        """The same collection, for code that reads one of the value's fields."""
        return Faults(*self._inside, *parts, found=self.found)

    @contextmanager
    def at(self, *parts: str | int) -> Iterator[None]:
        """Like `at`, but the fault is collected, and the code after the block runs."""
        try:
            with at(*self._inside, *parts):
                yield
        except Invalid as error:
            known = {str(one) for one in self.found}
            self.found += [one for one in error.faults if str(one) not in known]

    def raise_any(self) -> None:
        """Raise the collected faults as one `Invalid`, if there are any."""
        if self.found:
            first, *others = self.found
            raise Invalid(first.said, first.path, others)


Schema = TypeVar("Schema", bound=BaseModel)


def parse(schema: type[Schema], value: Any, where: str = "") -> Schema:
    """`value` as `schema`. Raises `Invalid` with each faulty field's path (under `where`), what is
    wrong with it and the value given."""
    try:
        whole = where or (schema.__name__.lower() if not isinstance(value, Mapping) else "")
        _refuse_halves(value, [whole] if whole else [])
        return schema.model_validate(value)
    except RecursionError:
        raise Invalid("nested too deeply, or within itself", where) from None
    except ValidationError as error:
        found = error.errors()
    paths = [tuple(_fields(value, fault["loc"])) for fault in found]
    starts = {path[:length] for path in paths for length in range(len(path))}
    faults = Faults()
    for fault, path in zip(found, paths, strict=True):
        if path in starts:
            continue  # one of its own fields says it better
        said = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            said = "no such field"
        given = "" if fault["type"] == "missing" else f" (got {short(fault['input'])})"
        with faults.at(where, *path):
            raise Invalid(said + given, "" if where or fault["loc"] else schema.__name__.lower())
    faults.raise_any()
    raise AssertionError("a validation error without a fault")


def whole_characters(text: str) -> None:
    """Raises `Invalid` for a text with half of a character (a lone surrogate), as programs write
    that cut texts: no tokenizer and no file can hold it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Invalid(
            f"character {error.start + 1} is half of one (U+{ord(text[error.start]):04X}); write"
            f" the whole character (got {short(text)})"
        ) from None


def _refuse_halves(value: Any, path: list[str | int]) -> None:
    if isinstance(value, str):
        with at(*path):
            whole_characters(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            with at(*path):
                whole_characters(str(key))
            _refuse_halves(part, [*path, str(key)])
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            _refuse_halves(part, [*path, place])


_TYPES = {"int", "float", "bool", "str", "none"}


def _fields(value: Any, location: Sequence[str | int]) -> list[str | int]:
    """The fields on the way to a fault. pydantic's location also names the branches of unions: the
    `kind` of a value is kept in lists, where it helps to find the entry; the others are dropped."""
    path: list[str | int] = []
    branch = True  # whether the next part may name a branch: once at every value
    for part in location:
        if branch and isinstance(value, Mapping) and value.get("kind") == part:
            path += [part] if path and isinstance(path[-1], int) else []
            branch = False
            continue
        branch = True
        if isinstance(value, Mapping) and (part in value or _is_field(part)):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int):
            path.append(part)
            value = value[part] if part < len(value) else None
        elif isinstance(value, BaseModel) and part in type(value).model_fields:
            path.append(part)
            value = getattr(value, str(part))
        elif isinstance(part, int) or _is_field(part):
            path.append(part)  # of what a validator has made of the value
    return path


def _is_field(part: str | int) -> bool:
    """Whether a part of pydantic's location may be a field, and no branch of a union."""
    return isinstance(part, str) and part.isidentifier() and part not in _TYPES


def short(value: Any) -> str:
    """A value as it is quoted in an error, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__}, nested too deeply"
    return text if len(text) <= 80 else text[:77] + "..."
