"""Random batches of good and bad requests on a tiny model: a bad one is refused or ends alone, and
each good one equals its lonely run.

By hand for an hour, and from another seed:
FADER_FUZZ_SECONDS=3600 FADER_FUZZ_SEED=1000000 pytest --long tests/test_isolation_fuzz.py -s
"""

import logging
import os
import random
import time
from itertools import count

import pytest
import torch
from conftest import TEXT, random_vector

from fader import Fader, Resources, Vector, load
from fader.methods import decode, search
from fader.methods.sampling import uniform

SECONDS = float(os.environ.get("FADER_FUZZ_SECONDS", 60))
FIRST = int(os.environ.get("FADER_FUZZ_SEED", 0))
BATCHES = 200 if "FADER_FUZZ_SECONDS" not in os.environ else None
WORDS = TEXT.split()


def raises(prompts, texts):
    raise RuntimeError("the reward is out")


REWARDS = {
    "letters": lambda prompts, texts: [text.count("e") / 10 for text in texts],
    "raises": raises,
    "nan": lambda prompts, texts: [float("nan")] * len(texts),
    "few": lambda prompts, texts: [],
    "text": lambda prompts, texts: ["good"] * len(texts),
}


@pytest.fixture(scope="module")
def desk(tiny_folder):
    """A tiny model with vectors of which one is far too strong, and rewards of which most fail."""
    resources = Resources(callables=REWARDS)
    with Fader(load(str(tiny_folder)), resources=resources) as fader:
        for seed, name in enumerate(("mild", "wild")):
            fader.add_vector(random_vector(fader, name, seed))
        factors = fader.vector("mild").factors
        broken = {layer: (a * torch.inf, b) for layer, (a, b) in factors.items()}
        fader.add_vector(Vector("broken", broken))
        yield fader


def best(chance, reward):
    return {
        "kind": "best-of-n",
        "n": chance.randint(2, 3),
        "rewards": [{"kind": "python", "name": reward}],
    }


def good(chance):
    """A request that can be answered."""
    strength = chance.choice([-1.0, 0.3, 0.8])
    alignment, temperature = {}, chance.choice([0, 0.8])
    if chance.random() < 0.5:
        alignment["vectors"] = {chance.choice(["mild", "wild"]): strength}
    if chance.random() < 0.3:
        alignment["guides"] = [{"kind": "contrast", "principle": "be kind", "weight": 1.2}]
    if chance.random() < 0.3:
        alignment["preferences"] = {"user": chance.choice(WORDS)}
    if chance.random() < 0.2:
        alignment["search"], temperature = best(chance, "letters"), 0.8
    sampling = {"temperature": temperature, "seed": chance.randint(0, 9)}
    return {
        "prompt": " ".join(chance.choices(WORDS, k=chance.randint(1, 30))),
        "alignment": alignment,
        "sampling": {**sampling, "max_tokens": chance.randint(1, 12)},
    }


def spoiled(request, chance):
    """The same, with something that is found at once or only while it runs."""
    alignment, sampling = request["alignment"], request["sampling"]
    search = {"search": best(chance, chance.choice([*REWARDS][1:]))}
    return chance.choice(
        [
            {**request, "alignment": {**alignment, "vectors": {"mild": 1e38}}},
            {**request, "alignment": {**alignment, "vectors": {"broken": 1}}},
            {**request, "alignment": {**alignment, "vectors": {"unknown": 1}}},
            {**request, "sampling": {**sampling, "max_tokens": 10**6}},
            {**request, "sampling": {**sampling, "max_tokens": "many"}},
            {**request, "prompt": ["no", "message"]},
            {**request, "prompt": 3},
            {**request, "model": "another"},
            {
                **request,
                "alignment": {**alignment, **search},
                "sampling": {**sampling, "temperature": 0.8},
            },
        ]
    )


def start(fader, request):
    """What runs, or the error of what was refused."""
    try:
        return fader.backend.submit(fader.request(request))
    except ValueError as error:
        return error


def tied(desk, request, answers, monkeypatch):
    """Whether a chance that falls that little elsewhere gives these answers: other rows change a
    distribution by 1e-6, so where it falls on the edge of two tokens, company decides. Of tokens
    that are nearly impossible several edges lie within that, and each nudge finds another."""
    for nudge in (1e-7, -1e-7, 3e-7, -3e-7, 1e-6, -1e-6, 1e-5, -1e-5):
        with monkeypatch.context() as patch:
            for module in (decode, search):
                patch.setattr(module, "uniform", lambda *key, by=nudge: uniform(*key) + by)
            if desk.generate(request).answers == answers:
                return True
    return False


@pytest.mark.long
def test_good_requests_are_as_if_alone_beside_bad_ones(desk, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fader"), "disabled", True)
    end, ended = time.monotonic() + SECONDS, {"good": 0, "refused": 0, "failed": 0}
    ties = 0
    for number in range(BATCHES) if BATCHES else count():
        if time.monotonic() > end:
            break
        chance = random.Random(FIRST + number)
        batch = [(good(chance), chance.random() < 0.4) for _ in range(chance.randint(2, 8))]
        batch = [(spoiled(one, chance) if bad else one, bad) for one, bad in batch]
        started = [start(desk, request) for request, _ in batch]
        for (request, bad), running in zip(batch, started, strict=True):
            case = f"batch {FIRST + number}: {request}"
            if isinstance(running, Exception):
                assert bad, f"{case}: {running}"
                ended["refused"] += 1
            elif bad:
                assert running.exception(timeout=120) is not None, case
                ended["failed"] += 1
            else:
                answers, alone = running.result(timeout=120).answers, desk.generate(request).answers
                if answers != alone:
                    assert tied(desk, request, answers, monkeypatch), f"{case}: {answers} {alone}"
                    ties += 1
                ended["good"] += 1
        assert desk.backend.stats().live == 0
    del started, running
    assert min(ended.values()) > 10
    assert ties <= 3 + ended["good"] / 1000
    print(f"{number} batches: {ended}, {ties} ties")
    assert desk.backend.backbones[desk.model].memory.taken == 0
