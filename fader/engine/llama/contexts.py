"""Contexts of llama.cpp: each has KV memory of its own and computes with one mixture of vectors at
a time.

A change of mixture makes llama.cpp plan its graphs anew, which costs about two steps. So mixtures
get contexts of their own, as far as there are some; beyond that the one that was used least
recently computes with several in turns.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fader.engine.llama.adapters import AdapterStore
from fader.engine.llama.binding import library, why
from fader.engine.protocols import Delta, Mixture

MOST = 4
"""Contexts at most: one for rows without vectors, and for three mixtures beside."""


class Context:
    """One context, the mixture that it computes with now, and the slots whose rows it holds."""

    def __init__(self, model: Any, settings: Any) -> None:
        self.handle = library().llama_init_from_model(model, settings)
        if not self.handle:
            raise MemoryError(f"llama.cpp could not make a context: {why()}")
        self.memory = library().llama_get_memory(self.handle)
        self.mixture: Mixture = ()
        self.slots: set[int] = set()
        self.used = 0
        """When it was last used, as a number that grows."""


class Contexts:
    """The contexts of one model; the first is there from the start."""

    def __init__(self, model: Any, settings: Any, adapters: AdapterStore, most: int = MOST) -> None:
        self._model, self._settings, self._adapters = model, settings, adapters
        self.all: list[Context] = [Context(model, settings)]
        self._most, self._clock = most, 0

    def for_mixture(self, mixture: Mixture) -> Context:
        """The context in which new rows of a mixture are to be read."""
        found = next((one for one in self.all if one.mixture == mixture), None)
        if found is None and len(self.all) < self._most:
            found = self._made()
        if found is None:
            idle = [one for one in self.all if not one.slots]
            found = min(idle or self.all, key=lambda one: one.used)
        return found

    def _made(self) -> Context | None:
        try:
            self.all.append(Context(self._model, self._settings))
        except MemoryError as error:
            self._most = len(self.all)
            logging.getLogger("fader").warning(
                "%s; %d are used in turns, which is slower", error, self._most
            )
            return None
        return self.all[-1]

    def use(self, context: Context, mixture: Mixture) -> None:
        """Compute in this context with a mixture from now on."""
        self._clock += 1
        context.used = self._clock
        if mixture != context.mixture:
            self._adapters.set(context.handle, mixture)
            context.mixture = mixture

    def forget(self, vector: Delta) -> None:
        """Compute nowhere with this vector any more."""
        for context in self.all:
            if any(one is vector for one, _ in context.mixture):
                self.use(context, ())

    def set_threads(self, one: int, several: int) -> None:
        """How many threads all of them, those to come too, compute with where a call reads one
        token, and where it reads several."""
        self._settings.n_threads, self._settings.n_threads_batch = one, several
        for context in self.all:
            library().llama_set_n_threads(context.handle, one, several)


def free(contexts: Sequence[Context], model: Any) -> None:
    """Give the memory of a model and its contexts back. Nothing of them may be used again."""
    for context in contexts:
        library().llama_free(context.handle)
    library().llama_model_free(model)
