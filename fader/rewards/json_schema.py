"""JSON by a schema: the reward `json-schema`.

The schema may come from anybody, so everything about it is bounded: its patterns, while they are
compiled and while they match, the time of a validation, and what it may refer to. Numbers are
decimals, as they are written: 0.3 is a multiple of 0.1.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, localcontext
from typing import Any

import regex  # type: ignore[import-untyped]

from fader.rewards.models import package
from fader.rewards.patterns import SECONDS, compiled, matches
from fader.rewards.reward import UNIT, Resources, Reward
from fader.rewards.specs import JsonSchemaSpec
from fader.schema import at, short

DIGITS = 10_000
"""Of quotients of more digits it is not asked whether they are whole."""
_FENCED = regex.compile(
    r"\s*```(?:json)?[ \t]*\n(.*)\n[ \t]*```\s*", regex.DOTALL | regex.IGNORECASE
)
Check = Callable[[Any, Any, Any, Any], Iterator[Exception]]
"""What a keyword asks: check(validator, the keyword's value, instance, schema)."""


def json_schema(spec: JsonSchemaSpec, resources: Resources) -> Reward:
    """1 for JSON that is valid by the schema, 0.5 for other JSON, 0 for what is none."""
    jsonschema = package("jsonschema")
    dialect = spec.of.get("$schema") if isinstance(spec.of, dict) else None
    kind = jsonschema.Draft202012Validator
    if dialect is not None:
        known = isinstance(dialect, str)
        kind = jsonschema.validators.validator_for(spec.of, default=None) if known else None
        if kind is None or kind is jsonschema.Draft3Validator:
            raise ValueError(
                f"of.$schema {short(dialect)}: no dialect that is read; leave it out, or give the"
                " address of draft 4 or later"
            )
    with at("of"):
        try:
            # no formats: the check of `regex` would be another dialect's, and without bounds
            kind.check_schema(spec.of, format_checker=jsonschema.FormatChecker(formats=()))
            patterns = dict.fromkeys(_patterns(spec.of, kind))
            schema = _exact(spec.of)
        except jsonschema.SchemaError as error:
            raise ValueError(f"no JSON Schema: {error.json_path}: {error.message}") from None
        except RecursionError:
            raise ValueError("nested too deeply; make it flatter") from None
    ready = dict(zip(patterns, compiled(list(patterns), "of"), strict=True))
    validator, clock = _validator(kind, schema, ready)

    def valid(content: Any) -> bool:
        clock.end = time.perf_counter() + SECONDS
        try:
            return bool(validator.is_valid(content))
        except (RecursionError, ArithmeticError, TimeoutError):
            return False

    def value(text: str) -> float:
        fenced = _FENCED.fullmatch(text)
        try:
            content = json.loads(
                fenced[1] if fenced else text, parse_constant=_no_number, parse_float=_decimal
            )
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if valid(content) else 0.5

    return Reward(lambda prompts, texts: [value(text) for text in texts], UNIT)


def _validator(kind: Any, schema: Any, patterns: Mapping[str, Any]) -> tuple[Any, threading.local]:
    """A validator for exact numbers that raises TimeoutError once its clock's `end` is past."""
    jsonschema, referencing = package("jsonschema"), package("referencing")
    clock = threading.local()

    def timed(check: Check) -> Check:
        def asked(validator: Any, wanted: Any, instance: Any, within: Any) -> Iterator[Exception]:
            if time.perf_counter() > clock.end:
                raise TimeoutError
            yield from check(validator, wanted, instance, within) or ()

        return asked

    def plain(value: Any) -> Any:
        """A value that equals and hashes as JSON values do: 1 is 1.0 and not true."""
        if time.perf_counter() > clock.end:
            raise TimeoutError
        if isinstance(value, dict):
            return "object", frozenset((key, plain(part)) for key, part in value.items())
        if isinstance(value, list):
            return "array", tuple(map(plain, value))
        return (bool, value) if isinstance(value, bool) else value

    def keyword(fits: Callable[[Any, Any], bool]) -> Check:
        def check(_: Any, wanted: Any, instance: Any, __: Any) -> Iterator[Exception]:
            if not fits(wanted, instance):
                yield jsonschema.ValidationError("does not fit")

        return check

    own = {
        "pattern": lambda wanted, value: (
            not isinstance(value, str) or matches(patterns[wanted], value)
        ),
        "multipleOf": _multiple,
        "const": lambda wanted, value: plain(wanted) == plain(value),
        "enum": lambda wanted, value: plain(value) in set(map(plain, wanted)),
        "uniqueItems": lambda wanted, value: (
            not wanted or not isinstance(value, list) or len(set(map(plain, value))) == len(value)
        ),
    }
    checks = {
        name: timed(keyword(own[name]) if name in own else check)
        for name, check in kind.VALIDATORS.items()
    }
    types = kind.TYPE_CHECKER.redefine("integer", lambda _, value: _is_whole(value))
    made = jsonschema.validators.extend(kind, checks, type_checker=types)
    return made(schema, registry=referencing.Registry()), clock


def _patterns(schema: Any, kind: Any) -> Iterator[str]:
    """The patterns of a schema, in all its parts that are schemas. Raises ValueError for a
    reference that leads out of it, or for patterns that could not be stopped."""
    library = package("referencing.jsonschema")
    written_for = library.specification_with(kind.META_SCHEMA["$schema"])
    root = written_for.create_resource(schema)
    waiting = [(schema, package("referencing").Registry().resolver_with_root(root))]
    seen: set[int] = set()
    while waiting:
        part, resolver = waiting.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        if "patternProperties" in part:
            raise ValueError(
                f"patternProperties {short(part['patternProperties'])}: not supported; use"
                " `properties`, or `propertyNames` with a `pattern`"
            )
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]
        for key in ("$ref", "$dynamicRef"):
            if isinstance(part.get(key), str):
                try:
                    aim = resolver.lookup(part[key])
                except Exception:
                    raise ValueError(
                        f"{key} {short(part[key])} leads out of the schema;"
                        " put what is meant under $defs and refer to it as #/$defs/NAME"
                    ) from None
                waiting.append((aim.contents, aim.resolver))
        for inner in written_for.subresources_of(part):
            resource = written_for.create_resource(inner)
            waiting.append((inner, resolver.in_subresource(resource)))


def _exact(value: Any) -> Any:
    """The value with decimals for floats, as they are written."""
    if isinstance(value, dict):
        return {key: _exact(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(part) for part in value]
    return Decimal(repr(value)) if isinstance(value, float) else value


def _decimal(text: str) -> Decimal | float:
    try:
        return Decimal(text)
    except ArithmeticError:  # an exponent that no decimal has
        return float(text)


def _is_whole(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _multiple(of: Decimal | int, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return True
    number, step = Decimal(value), Decimal(of)
    digits = abs(number.adjusted() - step.adjusted()) + len(str(number)) + len(str(step))
    if digits > DIGITS:
        return not number
    with localcontext() as context:
        context.prec = 2 * digits
        return number % step == 0


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
