"""Alignment vectors as knobs: one question under the shipped vectors at several strengths, mixed
per request; a mixture saved as one vector."""

import tempfile
from pathlib import Path

from fader import Fader, Vector

with Fader() as fader, tempfile.TemporaryDirectory() as scratch:
    medical, warm = fader.vector("medical"), fader.vector("warm")
    folder = (medical + 0.5 * warm).named("sum").save(Path(scratch) / "sum")
    fader.add_vector(Vector.load(folder))
    mixtures: list[dict[str, float]] = [
        {},
        {"medical": -1.0},
        {"medical": 1.0},
        {"warm": 1.0},
        {"medical": 1.0, "warm": 0.5},
        {"sum": 1.0},
    ]
    requests = [
        {
            "prompt": "My knee hurts after running. What should I do?",
            "alignment": {"vectors": mixture},
        }
        for mixture in mixtures
    ]
    for mixture, result in zip(mixtures, fader.batch(requests, max_tokens=32), strict=True):
        print(f"{mixture!s:32} {' '.join(result.text.split())!r}")
