"""The kinds of values that a request is made of, and `parse`, which names every fault in one of
them.

A schema is frozen and closed: a checked value never changes, and a field that is not listed is an
error.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


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


class Frozen(BaseModel):
    """Immutable, and closed: a field that is not in the schema is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, use_attribute_docstrings=True
    )


Schema = TypeVar("Schema", bound=BaseModel)


def parse(schema: type[Schema], value: Any, where: str = "") -> Schema:
    """`value` as `schema`. Raises ValueError naming each faulty field, what is wrong with it and
    the value given."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        lines = []
        faults = error.errors()
        deepest = [
            fault
            for fault in faults
            if not any(
                f["loc"][: len(fault["loc"])] == fault["loc"] and f is not fault for f in faults
            )
        ]
        for fault in deepest or faults:
            path = (
                ".".join(str(part) for part in (*filter(None, [where]), *fault["loc"]))
                or schema.__name__.lower()
            )
            said = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                said = "no such field"
            given = "" if fault["type"] == "missing" else f" (got {short(fault['input'])})"
            lines.append(f"{path}: {said}{given}")
        raise ValueError("\n".join(lines)) from None


def short(value: Any) -> str:
    """A value as it is quoted in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
