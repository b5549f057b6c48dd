"""What a model gains in what it writes: the prompts, the ways of asking, gains and ratios by hand,
and the four tasks of a personalised model, on a tiny model with random vectors."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from test_guidance import backbone

from fader.evaluation import aims, asking, economies, steer
from fader.evaluation.aims import AIMS, own_texts
from fader.evaluation.cache import Measurement
from fader.evaluation.gains import (
    PROMPTS,
    Comparison,
    Written,
    compared,
    gains,
    judged,
    questions,
    requests,
    text_ratios,
    written,
)
from fader.evaluation.metrics import part_over_all, ratio
from fader.evaluation.personal import SWEPT
from fader.evaluation.suite import Suite
from fader.evaluation.tasks import TASKS
from fader.methods.budget import SILENT
from fader.methods.prompt import prompt_ids
from fader.request import Message, Preferences
from fader.starter.shipped import (
    DOMAINS,
    STYLES,
    starter_families,
    starter_levels,
    starter_pairs,
)


@pytest.fixture(scope="session")
def kept_states(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def apart(kept_states, monkeypatch):
    """No public data, few texts that teach the judges, and a cache folder of the tests' own."""
    monkeypatch.delenv("FADER_DATA", raising=False)
    monkeypatch.setenv("FADER_CACHE", str(kept_states))
    few = {aim: own_texts(aim)[:40] for aim in AIMS}
    monkeypatch.setattr(aims, "own_texts", few.__getitem__)


def test_a_ratio_of_two_means_is_of_items_drawn_together():
    found = ratio("t", "m", "c", "x", [2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high, found.n) == (2, 2, 2, 3)
    apart = ratio("t", "m", "c", "x", [2.0, 4.0, 6.0], [3.0, 2.0, 1.0])
    assert apart.low < 1.5 < apart.value == 2 < 2.5 < apart.high
    with pytest.raises(ValueError, match=r"the same items twice \(got 2 and 1\)"):
        ratio("t", "m", "c", "x", [1.0, 2.0], [1.0])


def test_a_part_is_compared_with_all():
    values, part = [1, 0, 1, 1, 0, 0], [True, False, True, False, False, False]
    found = part_over_all("t", "m", "c", "x", values, part)
    assert (found.value, found.n) == (0.5, 2)
    assert found.low < 0.5 < found.high
    assert part_over_all("t", "m", "c", "x", values, [True] * 6).high == 0
    whole = part_over_all("t", "m", "c", "x", values * 20, part * 20)
    assert whole.low > 0
    together = part_over_all("t", "m", "c", "x", values * 20, part * 20, prompts=[*range(6)] * 20)
    assert together.low < whole.low  # six witnesses


@pytest.mark.parametrize(("split", "count"), [("test", PROMPTS), ("dev", SWEPT)])
@pytest.mark.long
def test_prompts_are_ones_that_nothing_learned_from(split, count):
    suite = Suite(None, levels={}, vectors={}, split=split)
    found = questions(suite)
    assert len(found) == len(set(found)) >= count >= 60
    asked = {turns[-1].content for turns in found}
    for name in (*STYLES, "harmless", "helpful"):
        assert not asked & {p.messages[-1].content for p in starter_pairs(name) if p.split != split}
    for name in (*DOMAINS, "other"):
        assert not asked & {one.query for one in starter_levels(name) if one.split != split}
    for aim in AIMS:
        assert not asked & {one.prompt for one in own_texts(aim)}
    assert questions(suite, split) == questions(suite)
    with pytest.raises(ValueError, match="no family has prompts of 'nope' alone"):
        questions(suite, "nope")


def test_the_bar_of_150_prompts_is_kept():
    assert PROMPTS >= 150


def test_wishes_are_said_in_words_that_were_never_taught():
    taught = {
        text
        for family in starter_families()
        for texts in (*family.wordings, *family.unseen)
        for text in texts
    }
    assert asking.WISHES.keys() == AIMS.keys()
    assert not taught & set(asking.WISHES.values())


def planned(fader, asks, wanted=tuple(AIMS)):
    return fader.backend.plan(fader.request("the sea", **asks(wanted)))


def test_every_method_reads_the_wishes_in_the_one_rendering(fader):
    told = Preferences(user=tuple(asking.WISHES.values()), rendering="principle")
    messages = [Message(role="user", content="the sea")]
    ids = tuple(prompt_ids(messages, [told], backbone(fader).tokenizer))
    guided = planned(fader, asking.personalized("warm")).guided
    contrast = planned(fader, asking.contrast(**asking.AS_PERSONALIZED)).guided
    drafts = planned(fader, asking.best_of("warm"))
    (implicit,) = drafts.objective.implicit
    assert guided.terms[0].policy.prompt == ids
    assert planned(fader, asking.prompting()).guided.base.prompt == ids
    assert implicit.policy == guided.terms[0].policy
    assert implicit.reference == drafts.guided.base == guided.base
    assert not guided.base.vectors
    (term,) = contrast.terms
    assert (term.policy.prompt, term.policy.vectors, term.reference) == (ids, (), guided.base)
    assert (term.weight, term.plausible) == (guided.terms[0].weight, guided.terms[0].plausible)


def test_examples_obey_and_are_of_each_aim():
    taught = {aim: {p.chosen: p for p in starter_pairs(aim) if p.split == "train"} for aim in AIMS}
    for seed in range(6):
        before = asking.few_shot(seed)(tuple(AIMS))["before"]
        for aim, question, answer in zip(AIMS, before[::2], before[1::2], strict=True):
            pair = taught[aim][answer["content"]]
            assert pair.messages[-1].content == question["content"]
        alone = asking.few_shot(seed)(("humorous",))["before"]
        assert len({one["content"] for one in alone}) == 2 * asking.EXAMPLES
        assert taught["humorous"].keys() > {one["content"] for one in alone[1::2]}


def test_models_and_vectors_of_the_aims_have_equal_shares(fader):
    mixed = planned(fader, asking.mixed_vectors).guided.base.vectors
    assert {vector.name: strength for vector, strength in mixed} == dict.fromkeys(AIMS, 1 / 3)
    terms = planned(fader, asking.mixed_models).guided.terms
    assert [term.policy.vectors for term in terms] == [((fader.vector(a), 1.0),) for a in AIMS]
    assert [term.weight for term in terms] == [1 / 3] * 3


def wrote(method, accepted, means, words=("a", "b", "c", "d"), wanted=tuple(AIMS)):
    said = [Measurement(text, 0.0, place + 1, 0, 1.0) for place, text in enumerate(words)]
    found = {aim: np.array(values, dtype=float) for aim, values in zip(AIMS, accepted, strict=True)}
    return Written(method, wanted, said, found, np.array(means))


BASE = wrote("base", [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], [-1, -2, -1, -2])
GUIDED = wrote("guided", [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]], [-2, -3, math.nan, -3])
BY_HAND = Comparison(Suite(None, levels={}, vectors={}), "t", [()] * 4, {}, BASE)


def test_gains_are_shares_less_the_bases_on_the_same_prompts():
    found = {(one.metric): one for one in gains(BY_HAND, GUIDED, BASE)}
    assert {name: one.value for name, one in found.items()} == {
        "share_helpful": 0.75,
        "share_harmless": 0.75,
        "share_humorous": 0.5,
        **dict.fromkeys(("gain_helpful", "gain_humorous"), 0.5),
        "gain_harmless": -0.25,
        "gain_mean": 0.25,
    }
    assert {one.n for one in found.values()} == {4}
    assert {one.case for one in found.values()} == {"together"}
    own = [one for one in gains(BY_HAND, BASE) if one.metric.startswith("gain")]
    assert len(own) == 4
    assert all(one.low == one.value == one.high == 0 for one in own)
    alone = [one.metric for one in gains(BY_HAND, replace(GUIDED, aims=("helpful",)))]
    assert "gain_mean" not in alone
    assert "gain_harmless" in alone  # what it does to the others
    prompted = replace(BASE, method="prompting")
    over = [one for one in gains(BY_HAND, GUIDED, prompted) if one.metric.endswith("prompting")]
    assert {one.metric: one.value for one in over} == {
        "gain_helpful_over_prompting": 0.5,
        "gain_harmless_over_prompting": -0.25,
        "gain_humorous_over_prompting": 0.5,
        "gain_mean_over_prompting": 0.25,
    }


def test_what_the_text_costs_by_hand(capsys):
    said = replace(
        GUIDED,
        said=[replace(one, text="go go go go", tokens=2 * one.tokens) for one in BASE.said],
    )
    found = {one.metric: one for one in text_ratios(BY_HAND, said)}
    assert found["ppl_ratio"].value == pytest.approx(math.e, abs=1e-4)
    assert found["ppl_ratio"].n == 3  # one answer has no words
    assert found["distinct2_ratio"].value == pytest.approx(1 / 3, abs=1e-4)
    assert (found["length_ratio"].value, found["length_ratio"].low) == (2, 2)
    silent = replace(GUIDED, means=np.full(4, math.nan))
    assert "ppl_ratio" not in {one.metric for one in text_ratios(BY_HAND, silent)}
    assert "guided, together: no words" in capsys.readouterr().err


@pytest.fixture
def ready(suite, monkeypatch):
    """The suite, with examples that a tiny model has room for, and short answers."""
    short = [replace(p, split="train") for p in suite.pairs[:4]]
    monkeypatch.setattr(asking, "starter_pairs", lambda _: short)
    monkeypatch.setattr("fader.evaluation.gains.LENGTH", 8)
    return suite


def test_answers_are_judged_and_read_by_the_base_model(ready):
    judges = {}

    def judge(aim, accepts):
        quality = None
        judges[aim] = aims.AimJudge(aim, accepts, quality)

    judge("helpful", lambda texts: [0.6] * len(texts))
    judge("harmless", lambda texts: [None] * len(texts))
    judge("humorous", lambda texts: [float("say" in one.messages[0].content) for one in texts])
    comparison = compared(ready, "t", judges)
    assert [turns[0].content for turns in comparison.prompts] in (
        ["say 2", "say 3"],
        ["say 3", "say 2"],
    )
    fader = ready.cache.fader
    found = written(comparison, "prompting", asking.prompting())
    assert found.accepted["helpful"].tolist() == found.accepted["humorous"].tolist() == [1, 1]
    assert found.accepted["harmless"].tolist() == [0, 0]  # says neither yes nor no
    for turns, one, mean in zip(comparison.prompts, found.said, found.means, strict=True):
        (request,) = [r for r in requests(comparison, asking.base, ()) if r.messages == turns]
        assert fader.score(request, one.text).mean == pytest.approx(mean, abs=1e-4)
        told = {"user": list(asking.WISHES.values()), "rendering": "principle"}
        own = fader.generate(turns[0].content, alignment={"preferences": told}, max_tokens=8)
        assert own.text == one.text


def test_an_answer_of_no_words_has_no_aim(ready, monkeypatch):
    asked = []

    def accept(texts):
        asked.extend(texts)
        return [1.0] * len(texts)

    judges = {aim: aims.AimJudge(aim, accept, None) for aim in AIMS}
    empty = Measurement("  ", 0.0, 1, 0, 0.1)
    monkeypatch.setattr(type(ready.cache), "ask", lambda self, queries: [empty] * len(queries))
    comparison = compared(ready, "t", judges)
    assert not any(values.any() for values in comparison.base.accepted.values())
    assert not asked
    assert np.isnan(comparison.base.means).all()


def table(found):
    assert len(found) == len({(one.method, one.case, one.metric) for one in found})
    for one in found:
        assert one.low <= one.value + 1e-6
        assert one.value <= one.high + 1e-6
        json.dumps(asdict(one), allow_nan=False)
    return {(one.method, one.case, one.metric): one for one in found}


GAINS = [*(f"gain_{aim}" for aim in AIMS), "gain_mean"]
TEXT = ["ppl_ratio", "distinct2_ratio", "length_ratio"]


@pytest.mark.long
def test_the_personalised_model_ranks_and_gains(ready):
    found = table(list(TASKS["personalized"](ready)))
    assert {one.task for one in found.values()} == {"personalized"}
    assert [found["judge", aim, "judge_ok"].value for aim in AIMS] == [0, 0, 0]
    for method in ("base", "prompting", "personalized"):
        assert found[method, "together", "share_helpful"].n == 2
        assert all((method, "together", metric) in found for metric in GAINS)
    assert all(found["base", "together", metric].value == 0 for metric in GAINS)
    for method in ("prompting", "personalized"):
        assert all((method, "together", metric) in found for metric in TEXT)
    for metric in GAINS:
        assert ("personalized", "together", f"{metric}_over_prompting") in found
    cases = {case for method, case, _ in found if method == "contrast"}
    for case in cases:
        for metric in ("accuracy", "raw", "accuracy_over_contrast", "accuracy_over_longer"):
            assert ("personalized", case, metric) in found
        matched = found["personalized", case, "accuracy_matched"]
        assert 0 < matched.n < found["personalized", case, "accuracy"].n
        assert ("longer", case, "accuracy_matched") in found
        more = found["personalized", case, "accuracy_matched_over_all"].value
        assert matched.value - found["personalized", case, "accuracy"].value == pytest.approx(
            more, abs=2e-4
        )


def test_a_vector_that_is_not_there_is_said_before_anything_is_measured(ready, monkeypatch):
    monkeypatch.setattr(type(ready.cache), "ask", lambda *_: pytest.fail("it measures"))
    for task in (name for name in TASKS if name.startswith("personalized")):
        with pytest.raises(ValueError, match="nope"):
            list(TASKS[task](replace(ready, personal="nope")))


@pytest.mark.long
def test_baselines_are_asked_the_same_and_cost_what_they_cost(ready):
    found = table(list(TASKS["personalized-baselines"](ready)))
    methods = {method for method, case, _ in found if case == "together"}
    assert methods == {
        "base",
        "personalized",
        "prompting",
        "prompting-system",
        "few-shot",
        "contrast",
        "contrast-preset",
        "mod",
        "vectors",
        "best-of-10",
    }
    for method in methods:
        for metric in (*GAINS, "rows_per_token", "tokens_per_second", "kv_positions"):
            assert found[method, "together", metric].n == 2
        if method not in ("base", "personalized"):
            assert (method, "together", "gain_mean_over_personalized") in found
    held = {method: found[method, "together", "kv_positions"].value for method in methods}
    assert held["personalized"] > 3 * held["base"]  # three rows, two of which are told
    assert held["best-of-10"] > 10 * held["base"]
    read = {method: found[method, "together", "rows_per_token"].value for method in methods}
    assert read["best-of-10"] > read["personalized"] > 2 * read["vectors"]
    for aim in AIMS:
        for method in ("personalized", "prompting"):
            alone = {
                metric for one, case, metric in found if (one, case) == (method, f"{aim} alone")
            }
            assert alone >= {f"gain_{aim}", *TEXT}
            assert "gain_mean" not in alone


@pytest.mark.long
def test_a_sweep_is_of_dev_and_shows_the_reward(ready):
    found = table(list(TASKS["personalized-sweep"](replace(ready, split="test"))))
    methods = {method for method, case, _ in found if case == "together"}
    assert {"beta=0.5", "beta=8", "k=2", "k=50", "reference=told,base=untold"} <= methods
    assert sum(method.startswith("reference=") for method in methods) == 6
    for metric in (*GAINS, *TEXT, "reward"):
        one, two = (found[name, "together", metric].value for name in ("beta=1", "k=10"))
        assert one == two == found["reference=told,base=untold", "together", metric].value
    assert ("base", "together", "reward") in found
    lines = ready.cache.file.read_text().splitlines()
    asked = {json.loads(line)["request"]["messages"][-1]["content"] for line in lines}
    assert asked == {"say 4", "say 5"}


@pytest.mark.long
def test_preferences_in_tiers_steer_what_is_written(ready, monkeypatch, capsys):
    monkeypatch.setattr(steer, "SEARCH", {**steer.SEARCH, "lookahead": 2, "top_k": 2})
    suite = replace(ready, meta="harmless", one_stage="helpful", rendering="tiers")
    found = table(list(TASKS["steer"](suite)))
    assert [found["judge", aim, "judge_ok"].value for aim in AIMS] == [0, 0, 0]
    told = {"prompting", "system", "few-shot", "contrast", "meta", "meta-one-stage"}
    methods = {method for method, case, _ in found if case == "together"}
    assert methods == {"base", *told, "meta-contrast", "meta-pad", "meta-deal"}
    for method in methods - {"base"}:
        for metric in (*GAINS, *TEXT, "rows_per_token"):
            assert found[method, "together", metric].n == 2
    for method in told - {"prompting"}:
        assert (method, "together", "gain_mean_over_prompting") in found
    for method in ("meta-pad", "meta-deal"):
        assert (method, "together", "gain_mean_over_meta") in found
    rows = {name: found[name, "together", "rows_per_token"].value for name in methods}
    assert rows["meta"] < rows["meta-pad"] < rows["meta-deal"]
    for aim in AIMS:
        assert ("meta", f"{aim} alone", f"gain_{aim}_over_prompting") in found
    assert "meta-pad" in steer.on_top(suite)
    assert steer.on_top(replace(suite, personal="nope")).keys() == {"meta-deal"}
    assert "meta-pad: left out, there is no vector nope" in capsys.readouterr().err


def test_the_tiers_are_told_in_what_is_on_top(ready):
    suite = replace(ready, meta="harmless", personal="warm", rendering="tiers")
    told = Preferences(user=tuple(asking.WISHES.values()), rendering="tiers")
    messages = [Message(role="user", content="the sea")]
    fader = ready.cache.fader
    ids = tuple(prompt_ids(messages, [told], backbone(fader).tokenizer))
    plans = {
        name: fader.backend.plan(fader.request("the sea", max_tokens=8, **ask(tuple(AIMS))))
        for name, ask in steer.on_top(suite).items()
    }
    for plan in plans.values():
        base = plan.guided.base
        assert base.prompt == ids
        assert base.vectors == ((fader.vector("harmless"), 1.0),)
    (term,) = plans["meta-pad"].guided.terms
    assert (term.policy.vectors, term.reference.vectors) == (((fader.vector("warm"), 1.0),), ())
    (implicit,) = plans["meta-deal"].objective.implicit
    assert implicit.policy == base
    assert (implicit.reference.vectors, implicit.reference.prompt == ids) == ((), False)


@pytest.mark.long
def test_economies_are_of_dev_and_the_bound_is_exact(ready):
    found = table(list(TASKS["personalized-economies"](replace(ready, split="test"))))
    methods = {method for method, case, _ in found if case == "together"}
    assert {"guided", "every=2", "base at most 0.5", "clip", "clip, bound"} <= methods
    assert found["guided", "together", "same"].value == 1
    assert found["clip, bound", "together", "same"].value == 1
    rows = {name: found[name, "together", "rows_per_token"].value for name in methods - {"base"}}
    assert rows["every=4"] < rows["every=2"] < rows["guided"]
    assert rows["clip, bound"] <= rows["clip"]
    for alpha in ("alpha=0.1", "alpha=0.2"):  # too few answers for a threshold: nothing is touched
        assert found[alpha, "helpful", "threshold"].value == SILENT
        assert found[alpha, "helpful alone", "gain_helpful"].value == 0


def test_a_budget_holds_on_average_over_halves():
    dice = np.random.default_rng(0)
    for alpha in (0.1, 0.2):
        found = economies.touched_on_average("m", dice.exponential(size=120), alpha, 0)
        assert found.value == pytest.approx(alpha, abs=0.02)
        assert found.value <= alpha + 0.002
        assert 0 <= found.low < found.value < found.high


@pytest.mark.long
def test_a_budget_is_calibrated_on_one_half_and_counted_on_the_other(ready, monkeypatch):
    monkeypatch.setattr(economies, "ALPHAS", (0.5,))
    comparison = compared(ready, "t", judged(ready, "t")[0], "dev")
    fine = replace(comparison.base, accepted={**comparison.base.accepted, "helpful": np.ones(2)})
    found = table(list(economies.budgets(replace(comparison, base=fine))))
    edge = found["alpha=0.5", "helpful", "threshold"]
    assert (edge.n, found["alpha=0.5", "helpful", "touched"].n) == (1, 1)
    assert 0 < edge.value < SILENT
