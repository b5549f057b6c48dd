"""Regular expressions that may come from anybody: bounded in time and memory.

There is one dialect, that of the package `regex`. A pattern of thirty characters can take all
memory while it is compiled. So each is first compiled in a process of its own, within limits.
Matching is stopped by the clock.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex  # type: ignore[import-untyped]

from fader.schema import Invalid, short

SECONDS = 0.1
"""So long a pattern may take for one text."""
COMPILING = 2
"""So many seconds of the processor, and `MEMORY` bytes, compiling may take."""
MEMORY = 2**28
_TRIAL = """
import json, sys
from_folder, seconds, memory = sys.argv[1:]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
except (ImportError, ValueError, OSError):
    pass
sys.path.insert(0, from_folder)
import regex
for pattern in json.load(sys.stdin):
    try:
        regex.compile(pattern, cache_pattern=False)
        print("null", flush=True)
    except MemoryError:
        raise
    except Exception as error:
        print(json.dumps(str(error)), flush=True)
"""


def compiled(patterns: Sequence[str], field: str) -> list[Any]:
    """The patterns, ready to match. Raises `Invalid` under `field` for what is no regular
    expression or takes too much to become one."""
    distinct = tuple(dict.fromkeys(patterns))
    for pattern, fault in zip(distinct, _tried(distinct), strict=True):
        if fault is not None:
            raise Invalid(f"no regular expression: {fault} (got {short(pattern)})", field)
    return [_compiled(pattern) for pattern in patterns]


def matches(pattern: Any, text: str) -> bool:
    """Whether a compiled pattern is found in the text; not within `SECONDS` is no."""
    try:
        return pattern.search(text, timeout=SECONDS) is not None
    except TimeoutError:
        return False


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> Any:
    return regex.compile(pattern)


@lru_cache(maxsize=256)
def _tried(patterns: tuple[str, ...]) -> list[str | None]:
    """What is wrong with each pattern, found where it can do no harm."""
    if not patterns:
        return []
    folder = str(Path(regex.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-c", _TRIAL, folder, str(COMPILING), str(MEMORY)]
    try:
        trial = subprocess.run(
            command, input=json.dumps(patterns), capture_output=True, text=True, timeout=10
        )
        lines = trial.stdout.splitlines()
    except subprocess.TimeoutExpired as error:
        lines = (error.stdout or b"").decode().splitlines()
    faults: list[str | None] = [json.loads(line) for line in lines]
    late = (
        f"it takes more than {COMPILING} seconds or {MEMORY >> 20} MB to compile; make it simpler"
    )
    return faults + [late] * (len(patterns) - len(faults))
