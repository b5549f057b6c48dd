"""The data that ships, reading of data that people bring, and a short training run from pairs to a served vector."""

import gzip
import json
from collections import Counter

import pytest
import torch

from fader import Fader, load
from fader.methods.vector import Vector
from fader.training.data import DOMAINS, LEVELS, STARTER, STYLES, read_levels, read_pairs, split, starter_levels, starter_pairs

warnings_of_the_trainer = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("domain", DOMAINS)
def test_shipped_levels(domain):
    items = starter_levels(domain)
    assert Counter(item.split for item in items) == {"train": 72, "dev": 18, "test": 30}
    ranges = {"avoidance": (12, 35), "generic": (22, 48), "expert": (45, 85)}
    for item in items:
        assert item.persona
        for level, (low, high) in ranges.items():
            assert low <= len(item.answers[level].split()) <= high
    assert len({item.query for item in items}) == len(items)
    openings = Counter(" ".join(item.answers["avoidance"].split()[:4]) for item in items)
    assert max(openings.values()) <= 3


@pytest.mark.parametrize("style", STYLES)
def test_shipped_styles(style):
    pairs = starter_pairs(style)
    assert len(pairs) == 80
    assert Counter(pair.split for pair in pairs) == {"train": 52, "dev": 10, "test": 18}
    assert len({pair.messages for pair in pairs}) == 80
    assert all(pair.chosen != pair.rejected for pair in pairs)


def test_pairs_in_every_common_form(tmp_path):
    turns = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": turns, "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]},
        {"messages": turns, "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
        {"chosen": [*turns, {"role": "assistant", "content": "a"}], "rejected": [*turns, {"role": "assistant", "content": "b"}]},
    ]
    file = tmp_path / "pairs.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)))
    pairs = read_pairs(file)
    assert len(set(pairs)) == 1
    assert pairs[0].swapped.swapped == pairs[0]
    levels = tmp_path / "levels.jsonl"
    levels.write_text(json.dumps({"query": "q", **{level: level for level in LEVELS}}))
    assert (read_pairs(levels)[0].chosen, read_pairs(levels)[0].rejected) == ("expert", "avoidance")
    assert read_pairs(levels, "generic", "expert")[0].chosen == "generic"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "data.jsonl:1: not valid JSON"),
        ("[1]", "data.jsonl:1: must be a JSON object"),
        ("", "no records"),
        ('{"prompt": "q", "chosen": "a"}', "data.jsonl:1: rejected: must be a text"),
        ('{"chosen": "a", "rejected": "b"}', "data.jsonl:1: prompt must be"),
        ('{"prompt": [{"role": "robot", "content": "x"}], "chosen": "a", "rejected": "b"}', "data.jsonl:1: prompt.0.role"),
        ('{"query": "q", "generic": "g", "expert": "e"}', "data.jsonl:1: avoidance must be a text"),
    ],
)
def test_faulty_data_is_named(tmp_path, line, said):
    file = tmp_path / "data.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=r".") as caught:
        read_pairs(file)
    assert said in str(caught.value)


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no item is marked 'later'"):
        split(starter_levels("legal"), "later")
    assert len(split(read_levels(__file__.replace("test_training.py", "../fader/starter/data/levels/legal.jsonl")), "dev")) == 18


@warnings_of_the_trainer
def test_from_pairs_to_a_served_vector(tmp_path, tiny_folder):
    from fader.training.vector import Recipe, train_vector

    pairs = read_pairs_of(
        [("the sea", " is wide and calm", " zz qq"), ("a cat", " sat on a mat", " qq zz"), ("one two", " three four", " zz zz")] * 2, tmp_path
    )
    recipe = Recipe(rank=2, epochs=6, batch=2, learning_rate=5e-3)
    vector = train_vector("liked", pairs, tmp_path / "vectors" / "liked", recipe, model=str(tiny_folder), dtype="float32", progress=False)
    assert [folder.name for folder in (tmp_path / "vectors").iterdir()] == ["liked"]  # checkpoints are gone
    assert vector.card["curve"][-1]["loss"] < vector.card["curve"][0]["loss"]
    assert vector.card["pairs"] == 6
    with Fader(load(str(tiny_folder)), vectors={"liked": tmp_path / "vectors" / "liked"}) as fader:
        margins = []
        for amount in (-1.0, 0.0, 1.0):
            alignment = {"vectors": {"liked": amount}}
            good, bad = (fader.score("a cat", text, alignment=alignment).mean for text in (" sat on a mat", " qq zz"))
            margins.append(good - bad)
    assert margins == sorted(margins)
    assert margins[2] > margins[0] + 0.1
    assert all(torch.isfinite(up).all() for _, up in Vector.load(tmp_path / "vectors" / "liked").factors.values())


def read_pairs_of(rows, folder):
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in rows))
    return read_pairs(file)


SHIPPED = sorted(file.parent.name for file in (STARTER.parent / "vectors").glob("*/adapter_config.json"))


def test_the_domains_are_shipped():
    assert set(DOMAINS) <= set(SHIPPED) <= {*DOMAINS, *STYLES}


@pytest.mark.parametrize("name", SHIPPED)
def test_starter_vectors_fit_and_move(name, builtin):
    """Each shipped vector is small, carries its card, and at lambda 1 ranks its own side higher than at -1 on unseen pairs."""
    folder = STARTER.parent / "vectors" / name
    assert (folder / "adapter_model.safetensors").stat().st_size <= 3 * 2**20
    vector = Vector.load(folder)
    vector.check(builtin.backbones[builtin.model])
    assert {"data", "recipe", "curve", "pairs"} <= vector.card.keys()
    file = STARTER / ("levels" if name in DOMAINS else "styles") / f"{name}.jsonl"
    margins = {}
    for amount in (-1.0, 1.0):
        asked = [
            ({"prompt": pair.messages[-1].content, "alignment": {"vectors": {name: amount}}}, pair) for pair in split(read_pairs(file), "dev")[:4]
        ]
        found = builtin.score_batch([(request, text) for request, pair in asked for text in (pair.chosen, pair.rejected)])
        margins[amount] = sum(good.mean - bad.mean for good, bad in zip(found[::2], found[1::2], strict=True))
    assert margins[1.0] > margins[-1.0]
