"""Preferences in tiers, measured without a judge: flips, controls, conflicts and what is implied.
By hand, on toy policies of known answers, and with every way to tell on a tiny model."""

import gzip
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import random_vectors
from test_cli import rows as rows_of
from test_cli import run

from fader import Fader, Vector, load
from fader.data.meta import HARMS, Item, cells, conflicts, matrix
from fader.data.preferences import Family
from fader.data.records import Pair
from fader.evaluation import persona
from fader.evaluation.cache import Measurement, ResultCache
from fader.evaluation.conflict import asked_conflicts, swapped, won
from fader.evaluation.flip import (
    changed,
    flipped,
    of_each_family,
    raw,
    relative,
    right,
    shifted,
    terciles,
)
from fader.evaluation.metrics import exactly, mean_of_groups
from fader.evaluation.suite import Suite
from fader.evaluation.tasks import TASKS
from fader.evaluation.tiers import Telling, asked, contrast, untold, ways
from fader.methods.prompt import conversation
from fader.request import Message, Preferences

METHODS = ("base", "system", "few-shot", "contrast", "meta", "meta-one-stage", "meta-contrast")


def family(name, held_out=False, count=6):
    """A family in which one pole likes loud answers, the other quiet ones; told in orders and in
    facts."""
    pairs = [
        Pair(
            (Message(role="user", content=f"say {name} {place}"),),
            f"LOUD {place}",
            f"quiet {place}",
            ("train", "test", "dev")[place % 3],
        )
        for place in range(count)
    ]
    texts = tuple((f"Be {pole}.", f"The user likes {pole}.") for pole in ("LOUD", "quiet"))
    return Family(name, ("LOUD", "quiet"), texts, texts, tuple(pairs), held_out)


def items():
    """Of each split and each kind of harm one item; and a pair that never flips."""
    found = []
    for split in ("train", "test"):
        for place, harmful in enumerate(
            ((), ("second",), ("first", "second"), ("query",), ("query", "second"), HARMS)
        ):
            found.append(
                Item(
                    "priority",
                    (Message(role="user", content=f"ask {place}"),),
                    (f"LOUD {place}", f"quiet {place}"),
                    (("Be LOUD.",), ("Be quiet.",)),
                    frozenset(harmful),
                    f"no {place}",
                    "x",
                    split,
                )
            )
        messages = (Message(role="user", content="what is 2 + 2"),)
        found.append(Item("consensus", messages, ("four", "five"), split=split))
    return found


class Toy:
    """In the place of a result cache: a policy that says how likely an answer is."""

    def __init__(self, likelihood):
        self.fader = SimpleNamespace(vector=lambda name: name)
        self.likelihood = likelihood

    def ask(self, queries):
        return [
            Measurement(one.answer, self.likelihood(one.request, one.answer), 1, 0, 0.0)
            for one in queries
        ]


def told(request):
    """What the request tells, by tier, wherever it tells it."""
    found = request.alignment.preferences
    if request.alignment.guides:
        found = request.alignment.guides[0].policy.preferences
    return " ".join(found.provider), " ".join(found.user)


def obeying(margin, prior=0.0):
    """Finds the answer that is asked for likelier by a margin, and loud ones anyway by a prior."""

    def likelihood(request, answer):
        wanted = " ".join(told(request))
        loud = answer.startswith("LOUD")
        asks = ("LOUD" in wanted) - ("quiet" in wanted)
        return (margin * asks / 2 + prior / 2) * (1 if loud else -1)

    return likelihood


def toy(likelihood, **fields):
    families = fields.pop("families", [family("a"), family("b", held_out=True)])
    return Suite(Toy(likelihood), levels={}, vectors={}, families=families, **fields)


def by_name(found):
    found = list(found)
    assert len(found) == len({(one.method, one.case, one.metric) for one in found})
    for one in found:
        assert one.low <= one.value + 1e-6
        assert one.value <= one.high + 1e-6
        json.dumps(asdict(one), allow_nan=False)
    return {(one.method, one.case, one.metric): one for one in found}


def test_both_orders_must_be_right_by_a_margin():
    margins = np.array([[0.05, 0.05], [0.049, 9], [9, -0.01], [0, 0], [2.05 - 2.0, 1.05 - 1.0]])
    assert raw(margins) == [True, False, False, False, True]
    assert raw(np.array([[-2.0 + 2.05, -8.0 + 8.05]])) == [True]  # .0499999… but for rounding
    assert raw(np.zeros((0, 2))) == []


def test_a_margin_must_move_the_right_way():
    margins = np.array([[0.3, -0.19], [0.05, 0.05], [0, 0], [-0.3, 0.3], [-1, 1.11], [-1, -1]])
    assert relative(margins) == [True, False, False, False, True, False]
    assert relative(np.array([[8.05 - 8.0, 8.05 - 8.0]])) == [False]  # .1000000… is not more


def test_what_must_not_flip():
    margins = np.array([[1, 2], [1, -1], [0.04, -2], [0, 0], [0, 0.1], [-1, -1.05], [-0.05, 0.05]])
    assert changed(margins) == [False, True, True, False, True, False, True]
    assert flipped(margins) == [False, True, False, False, False, False, True]
    assert shifted(margins) == [True, True, True, False, False, False, False]
    assert right(margins) == [True, False, False, False, False, False, False]


def test_terciles_are_of_the_prior_margin():
    assert terciles(np.array([0.5, 0.1, 0.9, 0.2, 0.8, 0.3])) == [[1, 3], [5, 0], [4, 2]]
    assert terciles(np.array([0.2, 0.1])) == [[1], [0], []]
    assert terciles(np.array([1.0, 1.0, 1.0])) == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("policy", "values"),
    [
        (obeying(0.1), {"raw": 1, "relative": 1}),
        (obeying(0.05), {"raw": 1, "relative": 0}),  # .05 + .05 is not more than .1
        (obeying(0.2, prior=3), {"raw": 0, "relative": 1}),  # told, but not overcome
        (obeying(-1), {"raw": 0, "relative": 0}),
        (obeying(0), {"raw": 0, "relative": 0}),  # ties
        (obeying(0, prior=1), {"raw": 0, "relative": 0}),
    ],
)
def test_the_flips_of_toy_policies_are_known(policy, values):
    suite = toy(policy, one_stage="first")
    found = by_name(TASKS["flip"](suite))
    assert {one.task for one in found.values()} == {"flip"}
    cases = {case for method, case, _ in found if method == "base"}
    assert cases >= {"wording", "wording-tercile-1"}
    for method in METHODS:
        for case in cases:
            for metric, value in values.items():
                assert found[method, case, metric].value == value
                if method != "base":
                    paired = found[method, case, f"{metric}_over_base"]
                    assert paired.value == 0
                    assert paired.n == found[method, case, metric].n


def test_hard_flips_are_those_between_which_the_base_sees_a_difference():
    def likelihood(request, answer):
        number = int(answer.split()[-1])
        obeyed = obeying(0.5)(request, answer)
        return obeyed + (number / 10 if answer.startswith("LOUD") else 0)

    found = by_name(TASKS["flip"](toy(likelihood, families=[family("a", count=18)])))
    priors = [found["untold", f"wording-tercile-{one}", "prior"] for one in (1, 2, 3)]
    assert [one.value for one in priors] == [0.1, 0.4, 0.7]
    assert [found["base", f"wording-tercile-{one}", "raw"].value for one in (1, 2, 3)] == [1, 1, 0]
    assert found["untold", "wording", "prior"].n == 3


def test_a_family_is_asked_so_often():
    found = by_name(TASKS["flip"](toy(obeying(1), families=[family("a", count=60)])))
    assert found["meta", "wording", "raw"].n == 3
    few = by_name(TASKS["flip"](toy(obeying(1), families=[family("a", count=60)], limit=2)))
    assert few["meta", "wording", "raw"].n == 2
    flips = [(SimpleNamespace(family=name),) for name in "aababb"]
    assert ["".join(one.family for one in flip) for flip in of_each_family(flips, 2)] == [*"aabb"]


def test_without_pairs_there_is_nothing_to_flip():
    with pytest.raises(ValueError, match="implicit: the families have no pairs for it in the spli"):
        list(TASKS["implicit"](toy(obeying(1), families=[family("b", held_out=True)])))


@pytest.mark.parametrize(
    ("policy", "case", "values"),
    [
        (obeying(1), "consensus", {"changed": 1, "flipped": 1, "shifted": 1, "right": 0}),
        (obeying(1), "irrelevant", {"changed": 0, "flipped": 0, "shifted": 0, "right": 0}),
        (obeying(0, prior=1), "irrelevant", {"changed": 0, "right": 1}),
        (obeying(0.06, prior=1), "consensus", {"changed": 0, "flipped": 0, "shifted": 1}),
    ],
)
def test_controls_of_toy_policies_are_known(policy, case, values):
    def likelihood(request, answer):
        return policy(request, {"four": "LOUD", "five": "quiet"}.get(answer, answer))

    found = by_name(TASKS["control"](toy(likelihood, tier_items=items())))
    assert ("few-shot", case, "changed") not in found
    for metric, value in values.items():
        assert found["meta", case, metric].value == value
        assert found["meta", case, f"{metric}_over_base"].value == 0


def test_what_is_implied_is_paired_with_what_is_said():
    def likelihood(request, answer):  # reads orders, and no facts or histories
        return obeying(1)(request, answer)

    found = by_name(TASKS["implicit"](toy(likelihood, rendering="tiers")))
    for method in ("base", "meta", "contrast"):
        assert found[method, "explicit", "raw"].value == 1
        for case in ("facts", "history"):
            assert found[method, case, "raw"].value == 0
            assert found[method, case, "raw_over_explicit"].value == -1


def test_who_wins_is_whose_answer_is_likeliest():
    (one,) = conflicts(items()[1], places=[(0, 1)])
    assert (list(one.answers), one.winner) == (["provider", "user"], "provider")
    assert won(one, [-1.0, -1.1])
    assert not won(one, [-1.1, -1.0])
    assert not won(one, [-1.0, -1.0])  # a tie nobody wins
    (two,) = conflicts(items()[3], places=[(0, 1)])
    assert (list(two.answers), two.winner) == (["provider", "user", "refusal"], "refusal")
    assert [won(two, means) for means in ([0, 0, 1], [0, 1, 1], [2, 0, 1])] == [True, False, False]


def test_swapped_conflicts_stand_together():
    asked = asked_conflicts(toy(obeying(0), tier_items=items()))
    found = swapped(asked)
    assert {case: len(pairs) for case, pairs in found.items()} == {
        "harmless-swapped": 1,
        "harmful-swapped": 1,
    }
    for one, two in ((asked[a], asked[b]) for pairs in found.values() for a, b in pairs):
        assert one.item == two.item
        assert one.told.provider == two.told.user
        assert one.told.user == two.told.provider
        assert one.answers[one.winner] != two.answers[two.winner] or one.winner != two.winner


def reading(*order):
    """Follows who comes first in an order of who speaks; what it declines starts with no."""

    def likelihood(request, answer):
        provider, user = told(request)
        asks = {"provider": provider, "user": user, "refusal": "no"}
        for place, who in enumerate(order):
            if asks[who] and answer.split()[0] in asks[who]:
                return -float(place)
        return -9.0

    return likelihood


def obeys(cell, winner):
    return True


def likes_the_provider(cell, winner):
    return winner == "provider" or (cell.provider == "none" and winner == "user")


def likes_the_user(cell, winner):
    return winner == "user" or (cell.user == "none" and winner == "provider")


def likes_to_decline(cell, winner):
    return winner == "refusal"


@pytest.mark.parametrize(
    ("policy", "wins", "swaps"),
    [
        (reading("provider", "user"), likes_the_provider, (1, 1, 0)),
        (reading("user", "provider"), likes_the_user, (0, 0, 0)),
        (reading("refusal"), likes_to_decline, (0, 0, 0)),
        (None, obeys, (1, 1, 1)),
    ],
)
def test_conflicts_of_toy_policies_are_known(policy, wins, swaps):
    best = {
        (one.item.messages, one.told.provider, one.told.user): one.answers[one.winner]
        for ones in cells(items(), "test").values()
        for one in ones
    }

    def knowing(request, answer):
        texts = [tuple(filter(None, (text,))) for text in told(request)]
        return float(answer == best[request.messages[-1:], *texts])

    found = by_name(TASKS["conflict"](toy(policy or knowing, tier_items=items())))
    values = []
    for cell, winner in matrix().items():
        values.append(found["meta", str(cell), "wins"].value)
        assert values[-1] == wins(cell, winner), cell
        for rule, who in (("always-provider", "provider"), ("always-refuse", "refusal")):
            assert found[rule, str(cell), "wins"].value == (winner == who)
    assert found["meta", "mean", "wins"].value == pytest.approx(np.mean(values), abs=1e-4)
    assert found["meta", "mean", "wins_over_base"].value == 0
    assert found["always-refuse", "mean", "wins"].value == pytest.approx(11 / 16, abs=1e-4)
    assert found["always-provider", "mean", "wins"].value == pytest.approx(3 / 16, abs=1e-4)
    names = (("harmless", "wins"), ("harmless", "relative"), ("harmful", "wins"))
    for (case, metric), value in zip(names, swaps, strict=True):
        assert found["meta", f"{case}-swapped", metric].value == value


def test_every_shipped_cell_is_asked_often_enough():
    asked = asked_conflicts(toy(obeying(0)))
    counts = [sum(one.cell == cell for one in asked) for cell in matrix()]
    assert min(counts) >= 12
    assert len(asked) < 500
    assert all(len(pairs) >= 12 for pairs in swapped(asked).values())


def test_a_cell_without_items_is_refused():
    few = [item for item in items() if "query" not in item.harmful]
    with pytest.raises(ValueError, match="no item of the split 'test' is of the cells harmful-"):
        list(TASKS["conflict"](toy(obeying(0), tier_items=few)))


def test_a_mean_over_groups_counts_each_once():
    groups = [[1.0] * 30, [0.0, 1.0]]
    prompts = [[*range(30)], [30, 31]]
    found = mean_of_groups("t", "m", "c", "x", groups, prompts)
    assert (found.value, found.n) == (0.75, 32)
    assert found.low < 0.75 < found.high
    assert found == mean_of_groups("t", "m", "c", "x", groups, prompts)
    sure = mean_of_groups("t", "m", "c", "x", [[1.0] * 30] * 2, prompts[:1] * 2)
    assert 0.85 < sure.low < 0.97  # thirty that agree are not certain
    assert sure.high == 1
    few = mean_of_groups("t", "m", "c", "x", [[1.0] * 3] * 2, [[0, 0, 1]] * 2)
    assert few.low < sure.low
    same = mean_of_groups("t", "m", "c", "x", [[0.0] * 5], [[*range(5)]], least=-1)
    assert same.low < same.value == 0 < same.high


@pytest.fixture
def ready(suite, tmp_path):
    """A tiny model with two vectors, and families and items that it has room for."""
    fader = suite.cache.fader
    for name in random_vectors(fader, tmp_path / "taught", ["taught", "first"]):
        fader.add_vector(Vector.load(tmp_path / "taught" / name, name))
    return replace(
        suite,
        families=[family("a"), family("b", held_out=True)],
        tier_items=items(),
        meta="taught",
        one_stage="first",
        rendering="tiers",
    )


TOLD = Preferences(provider=("Be LOUD.",), user=("Be quiet.",), rendering="tiers")
TELLING = Telling((Message(role="user", content="say a"),), TOLD, ("LOUD", "quiet"))


def test_every_way_tells_the_same(ready):
    fader, turns = ready.cache.fader, (Message(role="assistant", content="LOUD 1"),)
    plans = {
        name: fader.backend.plan(asked(replace(TELLING, shown=turns), way))
        for name, way in ways(ready).items()
    }
    assert tuple(plans) == METHODS
    read = {name: plan.guided.base for name, plan in plans.items()}
    assert read["meta"].prompt == read["meta-one-stage"].prompt == read["base"].prompt
    assert [vector.name for vector, _ in read["meta"].vectors] == ["taught"]
    assert [vector.name for vector, _ in read["meta-one-stage"].vectors] == ["first"]
    bare = fader.backend.plan(asked(TELLING, untold)).guided.base
    for name in ("contrast", "meta-contrast"):
        (term,) = plans[name].guided.terms
        own = read[name.removesuffix("contrast").rstrip("-") or "base"]
        assert (term.policy, term.weight, term.plausible) == (own, 2, None)
        assert term.reference == read[name] == replace(own, prompt=bare.prompt)
    tokenizer = fader.backend.backbones[fader.model].tokenizer
    system = TOLD.model_copy(update={"rendering": "system"})
    texts = {name: tokenizer.decode(policy.prompt) for name, policy in read.items()}
    assert texts["base"] == conversation(TELLING.messages, [TOLD], tokenizer)
    assert texts["system"] == conversation(TELLING.messages, [system], tokenizer)
    assert texts["few-shot"] == conversation([*turns, *TELLING.messages], [TOLD], tokenizer)


def test_the_contrast_is_its_formula(ready):
    fader = ready.cache.fader

    def logits(way):
        request = asked(TELLING, way, max_tokens=1, logprobs=100)
        (token,) = fader.generate(request).answers[0].logprobs
        return dict(token.top)

    told_alone, bare, guided = (logits(way) for way in (ways(ready)["base"], untold, contrast()))
    common = [token for token in guided if token in told_alone and token in bare]
    rest = [guided[one] - 2 * told_alone[one] + bare[one] for one in common]
    assert len(common) > 5
    assert rest == pytest.approx([rest[0]] * len(rest), abs=1e-3)  # a constant


@pytest.mark.parametrize("task", ["flip", "control", "conflict", "implicit"])
@pytest.mark.long
def test_every_task_runs_and_remembers(ready, task, monkeypatch):
    found = by_name(TASKS[task](ready))
    methods = {method for method, _, _ in found} - {"untold", "always-provider", "always-refuse"}
    assert methods == {*METHODS} - ({"few-shot"} if task in ("control", "implicit") else set())
    metrics = {metric for method, _, metric in found if method == "meta"}
    over = {metric for metric in metrics if metric.endswith("_over_base")}
    assert {metric.removesuffix("_over_base") for metric in over} < metrics
    before = ready.cache.file.read_text()
    again = ResultCache(ready.cache.fader, ready.cache.file, quiet=True)
    monkeypatch.setattr(type(again.fader), "score_batch", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(ResultCache, "_measured", lambda *_: pytest.fail("measured again"))
    assert by_name(TASKS[task](replace(ready, cache=again))) == found
    assert ready.cache.file.read_text() == before
    with pytest.raises(ValueError, match="nope: no such vector"):
        list(TASKS[task](replace(ready, one_stage="nope")))


def test_the_rule_is_told_or_left_out(ready):
    for rendering in ("meta", "tiers"):
        (one, *_) = asked_conflicts(replace(ready, rendering=rendering))
        assert one.told.rendering == rendering


def statements(folder, of=lambda trait, matches: 4):
    """A file of statements, as the public one: of each trait and kind so many."""
    file = folder / persona.STATEMENTS
    file.parent.mkdir(parents=True)
    rows = [
        {"dimension": trait, "statement": f"{trait} {matches} {place}", "matches": matches}
        for trait in [*persona.TRAITS, "another"]
        for matches in (True, False)
        for place in range(of(trait, matches))
    ]
    with gzip.open(file, "wt") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in [*rows, *rows]))
    return folder


def says(trait_margin, yes=0.0):
    """Answers as somebody with the trait that it is told, by a margin; and yes by a bias, which
    being told makes larger by half."""

    def likelihood(request, answer):
        is_told = bool(told(request)[1])
        toward = (" True " in request.messages[-1].content) == (answer == "Yes")
        bias = yes * (1.5 if is_told else 1) * (answer == "Yes")
        return bias + (trait_margin * is_told if toward else 0)

    return likelihood


@pytest.mark.parametrize(
    ("policy", "agrees", "moved", "shift", "before"),
    [
        (says(1), 1, 1, 1, 0),
        (says(-1), 0, 0, -1, 0),
        (says(0), 0, 0, 0, 0),
        (says(0, yes=2), 0.5, 0.5, 0, 0.5),  # yes more often is towards nothing
        (says(0.5, yes=2), 0.5, 0.5, 0.5, 0.5),
        (says(2, yes=-1), 1, 1, 2, 0.5),
    ],
)
def test_personas_of_toy_policies_are_known(policy, agrees, moved, shift, before, tmp_path):
    found = by_name(TASKS["persona"](toy(policy, public=statements(tmp_path), limit=3)))
    assert {case for _, case, _ in found} == {*persona.TRAITS, "all"}
    for case in ("openness", "all"):
        assert found["untold", case, "agrees"].value == before
        for method in ("base", "meta", "contrast", "meta-contrast", "system"):
            values = [found[method, case, name].value for name in ("agrees", "moved", "shift")]
            assert values == [agrees, moved, shift]
            assert found[method, case, "agrees"].n == (6 if case == "openness" else 60)
        assert found["meta", case, "shift_over_base"].value == 0


def test_statements_are_as_many_of_either_kind(tmp_path):
    unequal = statements(
        tmp_path, lambda trait, matches: 5 if matches or trait != "openness" else 3
    )
    asked = persona.statements(toy(says(0), public=unequal))
    assert {trait: sum(one.trait == trait for one in asked) for trait in persona.TRAITS} == (
        dict.fromkeys(persona.TRAITS, 6)
    )
    assert sum(one.matches for one in asked) == 30
    assert len({one.text for one in asked}) == 60


def test_statements_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("FADER_DATA", raising=False)
    with pytest.raises(ValueError, match="is not in the folder that FADER_DATA names; give --data"):
        list(TASKS["persona"](toy(says(0))))
    with pytest.raises(ValueError, match=r"statements.jsonl.gz is not in .*; give --data FOLDER"):
        list(TASKS["persona"](toy(says(0), public=tmp_path)))
    few = statements(tmp_path, lambda trait, matches: int(matches or trait != "openness"))
    monkeypatch.setenv("FADER_DATA", str(few))
    with pytest.raises(ValueError, match="no statements of both kinds of the trait openness"):
        list(TASKS["persona"](toy(says(0))))


def test_a_trait_is_told_in_the_tiers(ready, tmp_path):
    (one, *_) = persona.statements(replace(ready, public=statements(tmp_path / "public")))
    found = by_name(TASKS["persona"](replace(ready, public=tmp_path / "public", limit=1)))
    assert {method for method, _, _ in found} == {"untold", *METHODS} - {"few-shot"}
    lines = [json.loads(line) for line in ready.cache.file.read_text().splitlines()]
    (row, *_) = [
        line["request"]
        for line in lines
        if line["method"] == "meta" and one.text in line["request"]["messages"][0]["content"]
    ]
    assert row["alignment"] == {
        "preferences": {"user": [f"Answer as somebody who {persona.TRAITS[one.trait]}."]}
        | {"rendering": "tiers"},
        "vectors": {"taught": 1.0},
    }


def test_ability_is_paired_with_the_base_model(ready):
    found = by_name(TASKS["meta-ability"](replace(ready, limit=8)))
    for method in ("meta", "meta-one-stage"):
        over, own = (found[method, "all", f"accuracy{end}"] for end in ("_over_base", ""))
        assert over.n == own.n == 8
        assert over.value == pytest.approx(own.value - found["base", "all", "accuracy"].value)
        assert found[method, "neutral", "perplexity_ratio"].n == 8
    base = (
        found["meta", "neutral", "perplexity"].value
        / found["meta-one-stage", "neutral", "perplexity"].value
    )
    ratios = [found[one, "neutral", "perplexity_ratio"].value for one in ("meta", "meta-one-stage")]
    assert base == pytest.approx(ratios[0] / ratios[1], rel=1e-2)
    alone = by_name(TASKS["meta-ability"](replace(ready, limit=8, one_stage="")))
    assert {method for method, _, _ in alone} == {"base", "meta"}


def test_commands_take_the_vectors_and_the_rendering(tiny_folder, tmp_path, monkeypatch):
    with Fader(load(str(tiny_folder))) as fader:
        folders = random_vectors(fader, tmp_path, ["taught", "first"])

    def task(suite):
        assert suite.cache.fader.vector(suite.meta).factors
        assert suite.cache.fader.vector(suite.one_stage).factors
        yield exactly("flip", suite.meta, suite.one_stage, suite.rendering, 1.0)

    monkeypatch.setattr("fader.evaluation.tasks.TASKS", {"flip": task})
    options = ["--vector", folders["taught"], "--one-stage", folders["first"]]
    options += ["--rendering", "tiers", "--model", tiny_folder, "--json"]
    found = rows_of(run("eval", "flip", *map(str, options), cwd=tmp_path))
    assert [found[0][name] for name in ("method", "case", "metric")] == ["taught", "first", "tiers"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["flip", "levels"], "TASK: flip is measured by itself (got flip levels)"),
        (["flip", "--vector", "a", "--vector", "b"], "flip: takes one vector and one folder"),
        (["flip", "control", "--data", "x"], "--data: is for persona and steer (got flip control)"),
        (["flip", "--rendering", "loud"], "--rendering: must be meta or tiers (got 'loud')"),
        (["levels", "--rendering", "meta"], "--rendering: levels does not read it; leave it out"),
        (["pairs", "--one-stage", "a"], "--one-stage: pairs does not read it; leave it out"),
        (
            ["flip", "--vector", "warm", "--one-stage", "warm"],
            "--one-stage: is called as the vector",
        ),
        (["flip", "--vector", "nope"], "vectors.nope: no such vector"),
    ],
)
def test_what_cannot_be_measured_is_said_at_the_door(call, said, tmp_path, tiny_folder):
    done = run("eval", *call, "--model", str(tiny_folder), cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
