"""What was measured once on this machine, kept as a file in the cache folder for the next load."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import BaseModel, ConfigDict

from fader.engine import builtin
from fader.files import write_whole

_BUSY = 0.2  # share of the CPUs: above that, other processes disturb a measurement
_WATCHED = 0.2  # seconds
_RESTING = ("idle", "iowait", "guest", "guest_nice")  # guests' time is counted in users' already


class Measured(BaseModel):
    """What was measured, as it is kept; `key` is all that it depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: dict[str, Any]
    quiet: bool
    """Whether the machine had nothing else to do; if not, it is measured anew once it has not."""


T = TypeVar("T", bound=Measured)


def kept(kind: type[T], key: dict[str, Any]) -> T | None:
    """The measurement that is kept under that key; None where there is none that can be read."""
    with suppress(OSError, ValueError):
        found = kind.model_validate_json(_file(key).read_bytes())
        if found.key == key and (found.quiet or is_busy()):
            return found
    return None


def keep(found: Measured) -> None:
    """Write what was measured; where there is no room for it, the next load measures again."""
    file = _file(found.key)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, found.model_dump_json(indent=1))


def is_busy() -> bool:
    """Whether other processes compute at present. What this one does does not count: its threads
    may still spin after a load."""
    process = psutil.Process()
    before, own_before = psutil.cpu_times(), process.cpu_times()
    time.sleep(_WATCHED)
    after, own_after = psutil.cpu_times(), process.cpu_times()
    whole = sum(after) - sum(before)
    rest = sum(getattr(after, kind, 0.0) - getattr(before, kind, 0.0) for kind in _RESTING)
    own = own_after.user + own_after.system - own_before.user - own_before.system
    return whole - rest - own > _BUSY * whole


def cpu() -> str:
    """The CPU's name with what it can do, as far as the system tells."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        found = [re.search(rf"^{line}\s*: (.*)$", text, re.M) for line in ("model name", "flags")]
        if all(found):
            name, flags = (match[1] for match in found if match)
            able = [flag for flag in flags.split() if re.match("avx|amx|fma|f16c", flag)]
            return " ".join([name, *sorted(able)])
    return f"{platform.machine()} {platform.processor()}"


def _file(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return builtin.cache_folder() / "kernels" / f"{digest}.json"
