"""The tasks that `fader eval` knows. A task asks the suite and yields metrics; to add one: a
function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fader.evaluation.aims import judges
from fader.evaluation.conflict import conflict
from fader.evaluation.economies import personalized_economies
from fader.evaluation.flip import control, flip, implicit
from fader.evaluation.general import ability, fluency, meta_ability, styles
from fader.evaluation.generation import generation
from fader.evaluation.levels import curve, levels, prompting, spillover
from fader.evaluation.metrics import Metric
from fader.evaluation.pairs import pairs
from fader.evaluation.persona import persona
from fader.evaluation.personal import (
    personalized,
    personalized_baselines,
    personalized_sweep,
)
from fader.evaluation.steer import steer
from fader.evaluation.suite import Suite

TASKS: Mapping[str, Callable[[Suite], Iterator[Metric]]] = {
    "levels": levels,
    "curve": curve,
    "prompting": prompting,
    "generation": generation,
    "spillover": spillover,
    "fluency": fluency,
    "ability": ability,
    "styles": styles,
    "pairs": pairs,
    "personalized": personalized,
    "personalized-baselines": personalized_baselines,
    "personalized-sweep": personalized_sweep,
    "personalized-economies": personalized_economies,
    "flip": flip,
    "control": control,
    "conflict": conflict,
    "implicit": implicit,
    "persona": persona,
    "steer": steer,
    "meta-ability": meta_ability,
    "judges": judges,
}
