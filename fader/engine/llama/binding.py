"""llama.cpp's library, started once, in a version that was tried.

Much of what llama.cpp cannot do ends the process. So nothing is called here or beside that was not
checked before.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

OLDEST, BELOW = (0, 3, 36), (0, 4)
"""The versions of llama-cpp-python that are served, as in the extra `llama`."""
ERROR, CONTINUED = 4, 5  # levels of its log
_said: deque[str] = deque(maxlen=4)  # the last lines of errors
_kept: list[Any] = []  # callbacks, which must outlive the library


@cache
def library() -> Any:
    """The module `llama_cpp.llama_cpp`, its backends loaded. Raises ValueError where it is not
    installed, or in a version that was not tried."""
    try:
        import llama_cpp
        from llama_cpp import llama_cpp as found
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            "engine: llama.cpp needs llama_cpp: pip install 'fader[llama]' (it is compiled: a C++"
            f" compiler is needed) ({error})"
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", llama_cpp.__version__)[:3])
    if not OLDEST <= version < BELOW:
        raise ValueError(
            f"engine: llama-cpp-python is {llama_cpp.__version__}; fader runs on"
            f" {'.'.join(map(str, OLDEST))} up to, but not including,"
            f" {'.'.join(map(str, BELOW))}: pip install 'fader[llama]'"
        )
    log = found.llama_log_callback(_note)
    _kept.append(log)
    found.llama_log_set(log, ctypes.c_void_p(0))
    _load_backends(Path(found.__file__).parent / "lib")
    found.llama_backend_init()
    return found


def why() -> str:
    """What llama.cpp said last of an error, and forget it."""
    said = " ".join(" ".join(_said).split())[:300]
    _said.clear()
    return said or "it gave no reason"


def _note(level: int, text: bytes, _: Any) -> None:
    if level == ERROR or (level == CONTINUED and _said):
        _said.append(text.decode(errors="replace"))


def _load_backends(folder: Path) -> None:
    """A build whose backends are files of their own has to be told where they are."""
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or folder)
    if not list(folder.glob("libggml-cpu-*")):
        return
    for name in ("libggml.so", "libggml.so.0", "libggml.dylib", "ggml.dll"):
        if (folder / name).is_file():
            load = ctypes.CDLL(str(folder / name)).ggml_backend_load_all_from_path
            load.argtypes, load.restype = [ctypes.c_char_p], None
            load(os.fsencode(os.path.realpath(folder)))
            return
