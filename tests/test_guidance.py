"""The proxy guide as its formula, and scores that are no distribution."""

import pytest
import torch
from conftest import TEXT, make_model, random_vector
from transformers import AutoModelForCausalLM

from fader import Fader
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits
from fader.methods.budget import SILENT, largest_advantage, threshold
from fader.methods.decode import Task, decode
from fader.methods.guidance import GuidedPolicy, Term, combine, next_scores
from fader.methods.prompt import prompt_ids
from fader.profiles import load_alignment
from fader.request import Plausible, Preferences, Sampling
from fader.schema import Invalid

BASE, TOLD, UNTOLD = (Policy("model", (place,)) for place in (1, 2, 3))


def test_the_proxy_guide_is_its_formula(tmp_path):
    """log p = log large + w * (log tuned - log untuned), less its normaliser."""
    names, weight = ("large", "tuned", "untuned"), 0.7
    folders = {name: make_model(tmp_path / name, seed=seed) for seed, name in enumerate(names)}
    guide = {"kind": "proxy", "tuned": "tuned", "untuned": "untuned", "weight": weight}
    small = {name: str(folders[name]) for name in names[1:]}
    with Fader(str(folders["large"]), models=small) as fader:
        found = fader.score(
            "the sea", " is wide and the ship", alignment={"guides": [guide]}
        ).details
        prompt = list(fader.backend.plan(fader.request("the sea")).guided.base.prompt)
    ids = [detail.id for detail in found]
    log = {}
    for name, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        log[name] = logits.log_softmax(-1)  # [tokens, vocabulary]
    mixed = (log["large"] + weight * (log["tuned"] - log["untuned"])).log_softmax(-1)
    expected = mixed.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    assert [detail.logprob for detail in found] == pytest.approx(expected, abs=2e-3)


def test_only_plausible_tokens_have_a_probability():
    logits = {BASE: torch.tensor([[3.0, 2.0, 1.0]]), TOLD: torch.tensor([[0.0, 0.0, 9.0]])}
    term = Term("0:contrast", 2.0, TOLD, BASE, Plausible(top_k=2))
    scores = combine(GuidedPolicy(BASE, (term,)), logits, [0]).scores
    assert scores.isinf().tolist() == [[False, False, True]]


@pytest.mark.parametrize("weight", [1e39, 1e300])
def test_a_guide_whose_scores_are_no_numbers_is_named(tiny, weight):
    told = {"preferences": {"user": "be kind"}}
    guide = {"kind": "realign", "aligned": told, "weight": weight}
    alone = tiny.generate("the sea", max_tokens=6).answers
    with pytest.raises(ValueError, match=r"guides: .*no finite numbers.*0:realign \(1e"):
        tiny.generate("the sea", max_tokens=3, alignment={"guides": [guide]})
    with pytest.raises(ValueError, match=r"0:realign"):
        tiny.score("the sea", " wide", alignment={"guides": [guide]})
    assert tiny.generate("the sea", max_tokens=6).answers == alone


def test_scores_beyond_all_numbers_are_a_fault_of_the_guides(tiny):
    guide = {"kind": "contrast", "principle": "a cat", "weight": 1e38}
    with pytest.raises(ValueError, match=r"^alignment\.guides: .* 0:contrast \(1e\+38\)"):
        tiny.generate("the sea", alignment={"guides": [guide]})


QUESTIONS = sorted(set(TEXT.split()))
PERSONAL = {"kind": "personalized", "vectors": {"personal": 1.0}}


@pytest.fixture
def personal(tiny):
    tiny.add_vector(random_vector(tiny, "personal", 11))
    return tiny


@pytest.fixture(params=[(), ("lm_head",)], ids=["stage-1", "map"])
def either(tiny, request):
    """A personalised model without and with a map before its head, which is tied."""
    layers = ("q_proj", "v_proj", "down_proj", *request.param)
    tiny.add_vector(random_vector(tiny, "personal", 11, targets=layers))
    return tiny


def ask(fader, program):
    """One program on the engine; its result."""
    return fader.backend.engine.run(program, {fader.model: (40, 400)}).result(timeout=60)


def read(fader, question, told=(), vectors=()):
    """Log-probabilities of the answer's first token [vocabulary], from a read by itself."""
    ids = prompt_ids(fader.request(question).messages, told, backbone(fader).tokenizer)

    def program():
        return (yield NextLogits(Policy(fader.model, tuple(ids), tuple(vectors)), [Prefix()]))

    return ask(fader, program())[0].log_softmax(-1)


def backbone(fader):
    return fader.backend.backbones[fader.model]


def plan(fader, question, *guides):
    return fader.backend.plan(fader.request(question, alignment={"guides": guides}))


def principle(text):
    return Preferences(user=(text,), rendering="principle")


@pytest.mark.parametrize("reference", ["told", "untold", "base"])
@pytest.mark.parametrize("tell_base", [False, True])
def test_the_personalised_guide_is_its_formula(either, reference, tell_base):
    """log base + w * (log personal - log reference) over the base's top 10, of both bases and all
    three references."""
    vector, told = either.backend.vector("personal"), principle("be warm")
    fields = {"reference": reference, "tell_base": tell_base, "weight": 0.8}
    guide = {**PERSONAL, "principle": "be warm", **fields}
    with_told, without = read(either, "the sea", [told]), read(either, "the sea")
    base = with_told if tell_base else without
    subtracted = {"told": with_told, "untold": without, "base": base}[reference]
    guided = read(either, "the sea", [told], [(vector, 1.0)])
    expected = base + 0.8 * (guided - subtracted)
    kept = base.topk(10).indices
    expected = expected[kept].log_softmax(-1)
    answer = either.generate(
        "the sea", max_tokens=1, logprobs=100, alignment={"guides": [guide]}
    ).answers[0]
    found = dict(answer.logprobs[0].top)
    assert found.keys() == set(kept.tolist())
    assert [found[token] for token in kept.tolist()] == pytest.approx(expected.tolist(), abs=2e-3)


def test_the_guides_policies_read_the_one_rendering(personal):
    guide = {**PERSONAL, "principle": "be warm", "tell_base": True}
    guided = plan(personal, "the sea", guide).guided
    messages, words = personal.request("the sea").messages, backbone(personal).tokenizer
    expected = tuple(prompt_ids(messages, [principle("be warm")], words))
    (term,) = guided.terms
    assert guided.base.prompt == term.policy.prompt == term.reference.prompt == expected
    assert len(guided.policies) == 2  # the told base is the guide's reference


def test_weights_over_several_principles_are_as_many_guides(personal):
    shares = {"be warm": 0.5, "be brief": -0.3}
    one = {**PERSONAL, "principles": shares, "weight": 2.0}
    several = [{**PERSONAL, "principle": p, "weight": 2 * share} for p, share in shares.items()]
    for question in QUESTIONS[:5]:
        mine, theirs = (
            personal.generate(question, max_tokens=8, logprobs=20, alignment={"guides": guides})
            for guides in ([one], several)
        )
        assert mine.answers[0].token_ids == theirs.answers[0].token_ids
    assert mine.answers[0].logprobs[0].guides.keys() == {"0:personalized.0", "0:personalized.1"}
    assert [term.weight for term in plan(personal, "the sea", one).guided.terms] == [1.0, -0.6]


def test_two_preferences_in_a_batch_are_as_each_alone(either):
    guides = [{**PERSONAL, "principle": text} for text in ("be warm", "be brief")]
    requests = [{"prompt": "the sea", "alignment": {"guides": [guide]}} for guide in guides]
    alone = [either.generate(request, max_tokens=20).answers for request in requests]
    together = [result.answers for result in either.batch(requests, max_tokens=20)]
    assert together == alone
    assert alone[0] != alone[1]


def test_weight_0_is_off_and_tells_the_base_nothing(either):
    """Bit for bit, with the vector in the layers."""
    bare = either.generate("the sea", max_tokens=12, logprobs=20).answers
    on = {"guides": [{**PERSONAL, "principle": "be warm"}]}
    assert either.generate("the sea", max_tokens=12, logprobs=20, alignment=on).answers != bare
    off = [
        {**PERSONAL, "principle": "be warm", "weight": 0, "tell_base": True},
        {**PERSONAL, "principles": {"be warm": 0}, "tell_base": True},
    ]
    for guide in off:
        guided = plan(either, "the sea", guide).guided
        assert guided.terms == ()
        assert guided.base == plan(either, "the sea").guided.base
        sampling = {"max_tokens": 12, "logprobs": 20, "alignment": {"guides": [guide]}}
        assert either.generate("the sea", **sampling).answers == bare


def test_renormalising_a_term_over_the_candidates_changes_no_token(either):
    """It adds a constant to all scores of a position."""
    for question in QUESTIONS[:12]:
        guided = plan(either, question, {**PERSONAL, "principle": "be warm"}).guided

        def program(guided=guided):
            (term,), policies = guided.terms, guided.policies
            reading = yield from next_scores(guided, [Prefix()])
            logits = yield [NextLogits(policy, [Prefix()]) for policy in policies]
            return reading, term, dict(zip(policies, logits, strict=True))

        reading, term, logits = ask(either, program())
        kept = logits[guided.base][0].topk(10).indices
        base = logits[guided.base][0].log_softmax(-1)[kept]
        renormalised = base + term.weight * (
            logits[term.policy][0, kept].log_softmax(-1)
            - logits[term.reference][0, kept].log_softmax(-1)
        )
        assert int(reading.scores[0].argmax()) == int(kept[renormalised.argmax()])


def test_the_end_is_a_candidate_and_is_scored():
    """The base would go on, the guide ends the answer: by the formula, with the end token's score
    in the report."""
    end, plain, told = 2, [0.0, 3.0, 2.0], [0.0, 1.0, 4.0]
    term = Term("0:personalized", 1.0, TOLD, UNTOLD, Plausible(top_k=2))
    task = Task(Sampling(max_tokens=5, logprobs=0), frozenset({end}), lambda tokens: "x", seen=())
    program = decode(GuidedPolicy(BASE, (term,)), Prefix(), task)
    asked = [ask.policy for ask in next(program)]
    logits = {BASE: plain, TOLD: told, UNTOLD: plain}
    emitted = program.send([torch.tensor([logits[policy]]) for policy in asked])
    assert (emitted.item.token_ids, emitted.item.finish_reason) == ((end,), "stop")
    (report,) = emitted.item.logprobs
    ratio = torch.tensor(told).log_softmax(-1) - torch.tensor(plain).log_softmax(-1)
    assert report.guides == {"0:personalized": pytest.approx(float(ratio[end]))}
    scores = (torch.tensor(plain).log_softmax(-1) + ratio)[1:].log_softmax(-1)
    assert report.logprob == pytest.approx(float(scores[end - 1]))


def test_a_guide_may_name_a_profile(personal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".fader" / "profiles"
    folder.mkdir(parents=True)
    (folder / "nurse.yaml").write_text("preferences: {user: be warm, facts: I am a nurse}")
    (folder / "loud.yaml").write_text("vectors: {loud: 1}")
    (folder / "circle.yaml").write_text("preferences: circle")
    guide = {**PERSONAL, "preferences": "nurse"}
    said = Preferences(user=("be warm",), facts=("I am a nurse",), rendering="principle")
    (found,) = personal.request("the sea", alignment={"guides": [guide]}).alignment.guides
    assert [told for told, _ in found.told] == [said]
    for name, fault in {
        "nobody": r"\.preferences: there is no profile 'nobody' .known profiles: circle, loud",
        "../nurse": r"\.preferences: there is no profile '../nurse'",
        "loud": r"\.preferences: the profile 'loud' has no preferences to tell",
        "circle": r"\.preferences: .*'circle'",
    }.items():
        with pytest.raises(Invalid, match=rf"^alignment\.guides\[0\]\.personalized{fault}"):
            load_alignment({"guides": [{**PERSONAL, "preferences": name}]})


def rows_read(fader, question, when, **more):
    guide = {**PERSONAL, "principle": "be warm", **more, "when": when}
    result = fader.generate(question, max_tokens=24, alignment={"guides": [guide]})
    return result.answers[0].token_ids, result.usage


@pytest.mark.parametrize(
    ("more", "sampling"),
    [
        ({"plausible": {"min_p": 0.6}}, {}),
        ({"plausible": {"min_p": 0.6}}, {"temperature": 1.0, "seed": 3}),
        ({"clip": 0.3}, {}),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (
                ({"plausible": {"min_p": 0.6}}, {"repetition_penalty": 1.3}),
                ({"clip": 0.3, "plausible": {"top_k": 5, "top_p": 0.9}}, {}),
                (
                    {"principles": {"be warm": 1, "be brief": 0.5}, "principle": None, "clip": 0.2},
                    {},
                ),
            )
        ),
    ],
)
def test_the_exact_economy_changes_no_token(personal, more, sampling):
    """Where one candidate is left, or the clipped terms cannot close the gap, the guide is not
    read; later it reads what it has missed."""
    saved = 0
    for question in QUESTIONS[:16]:
        found = []
        for when in ({}, {"base_at_most": 1}):
            guide = {**PERSONAL, "principle": "be warm", **more, "when": when}
            found.append(
                personal.generate(
                    question, max_tokens=24, alignment={"guides": [guide]}, **sampling
                )
            )
        assert found[0].answers == found[1].answers
        saved += found[0].usage.tokens_read - found[1].usage.tokens_read
    assert saved > 0


@pytest.mark.parametrize(
    "when",
    [{"every": 3}, {"base_at_most": 0.6}, {"advantage": 2.0}, {"every": 2, "base_at_most": 0.8}],
)
def test_where_a_guide_does_not_act_the_base_goes_on(personal, when):
    """At each token of the answer: the guided choice where the rule says so, else the base's."""
    guide = {**PERSONAL, "principle": "be warm", "weight": 2.0}
    acted = {True: 0, False: 0}
    for question in QUESTIONS[:8]:
        full = plan(personal, question, guide).guided
        lazy = {"guides": [{**guide, "when": when}]}
        written = personal.generate(question, max_tokens=12, alignment=lazy).answers[0].token_ids
        report = personal.generate(question, max_tokens=12, logprobs=0, alignment=lazy).answers[0]
        assert report.token_ids == written
        prefix = Prefix()
        for place, token in enumerate(written):

            def program(full=full, prefix=prefix):
                reading = yield from next_scores(full, [prefix])
                return reading.scores[0], reading.logits[full.base][0]

            scores, base = ask(personal, program())
            advantage = float(scores.max() - scores[base.argmax()])
            acts = place % when.get("every", 1) == 0
            acts &= float(base.softmax(-1).max()) <= when.get("base_at_most", 1)
            acts &= advantage > when.get("advantage", -1)
            acted[acts] += 1
            assert token == int((scores if acts else base).argmax())
            added = report.logprobs[place].guides.get("0:personalized", 0.0)
            assert (added != 0) == acts
            if "advantage" in when:
                assert report.logprobs[place].advantage == pytest.approx(advantage, abs=1e-3)
            prefix = prefix.then(token)
    assert min(acted.values()) > 5


def test_scoring_sees_the_guide_where_it_acts(personal):
    for when in ({"every": 2}, {"base_at_most": 0.7}, {"advantage": 1.0}):
        guide = {**PERSONAL, "principle": "be warm", "when": when, "plausible": None}
        alignment, compared = {"guides": [guide]}, 0
        for question in QUESTIONS[:10]:
            answer = personal.generate(question, max_tokens=6, logprobs=0, alignment=alignment)
            report = answer.answers[0].logprobs
            scored = personal.score(question, answer.text or "x", alignment=alignment)
            if scored.tokens == tuple(entry.token for entry in report):
                compared += 1
                assert scored.logprobs == pytest.approx([e.logprob for e in report], abs=2e-3)
        assert compared


def test_a_guide_that_is_read_at_every_third_token_costs_fewer_rows(personal):
    always, third = (rows_read(personal, "the sea", when)[1] for when in ({}, {"every": 3}))
    assert third.rows < always.rows
    assert third.tokens_read <= always.tokens_read


def test_a_ratio_is_clipped():
    logits = {BASE: torch.tensor([[3.0, 2.0, 1.0]]), TOLD: torch.tensor([[0.0, 0.0, 9.0]])}
    term = Term("0:contrast", 2.0, TOLD, BASE, None, clip=0.5)
    log = {policy: scores.log_softmax(-1) for policy, scores in logits.items()}
    found = combine(GuidedPolicy(BASE, (term,)), logits, [0])
    expected = log[BASE] + 2 * (log[TOLD] - log[BASE]).clamp(-0.5, 0.5)
    assert found.scores[0].tolist() == pytest.approx(expected[0].tolist())
    assert found.added["0:contrast"][0].tolist() == pytest.approx(
        (expected - log[BASE])[0].tolist()
    )


def test_answers_below_the_threshold_are_the_bases_own(personal):
    """The largest advantage along the base's answer decides whether the guide touches it."""
    guide = {**PERSONAL, "principle": "be warm", "weight": 0.5}
    touched = []
    for question in QUESTIONS[:12]:
        silent = {"guides": [{**guide, "when": {"advantage": SILENT}}]}
        answer = personal.generate(question, max_tokens=8, logprobs=0, alignment=silent).answers[0]
        bare = personal.generate(question, max_tokens=8).answers[0]
        assert answer.token_ids == bare.token_ids
        largest = largest_advantage(answer)
        for least, same in ((largest + 0.01, True), (max(largest - 0.01, 1e-6), largest < 0.01)):
            aligned = {"guides": [{**guide, "when": {"advantage": least}}]}
            found = personal.generate(question, max_tokens=8, alignment=aligned).answers[0]
            assert (found.token_ids == bare.token_ids) == same
        touched.append(largest > 0.01)
    assert any(touched)
    with pytest.raises(ValueError, match="logprobs: the answer has none"):
        largest_advantage(bare)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_the_threshold_keeps_its_budget(alpha):
    """Over many draws of 39 dev answers, the next one is touched in at most that share; and no
    lower rank would do."""
    noise = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 40, generator=noise).pow(3).double()
    above = [float(draw[-1]) > threshold(draw[:-1].tolist(), alpha) for draw in draws]
    share = sum(above) / len(above)
    assert alpha - 0.02 < share <= alpha + 0.012
    assert threshold([3.0, 1.0, 2.0] * 3, 0.1) == 3.0
    assert threshold([1.0] * 8, 0.1) == float("inf")
    for wrong, said in (([1.0], r"^alpha: 0"), ([float("nan")], "alpha: 0")):
        with pytest.raises(ValueError, match=said):
            threshold(wrong, 0)
    with pytest.raises(ValueError, match="advantages: nan is no advantage"):
        threshold([float("nan")], 0.1)
