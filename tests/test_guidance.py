"""The proxy guide as its formula, and scores that are no distribution."""

import pytest
import torch
from conftest import TEXT, make_model, random_vector
from transformers import AutoModelForCausalLM

from fader import Fader
from fader.engine.prefix import Policy, Prefix
from fader.engine.program import NextLogits
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
    scores = combine(GuidedPolicy(BASE, (term,)), logits).scores
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
def test_the_personalised_guide_is_its_formula(personal, reference, tell_base):
    """log base + w * (log personal - log reference) over the base's top 10, of both bases and all
    three references."""
    vector, told = personal.backend.vector("personal"), principle("be warm")
    fields = {"reference": reference, "tell_base": tell_base, "weight": 0.8}
    guide = {**PERSONAL, "principle": "be warm", **fields}
    with_told, without = read(personal, "the sea", [told]), read(personal, "the sea")
    base = with_told if tell_base else without
    subtracted = {"told": with_told, "untold": without, "base": base}[reference]
    guided = read(personal, "the sea", [told], [(vector, 1.0)])
    expected = base + 0.8 * (guided - subtracted)
    kept = base.topk(10).indices
    expected = expected[kept].log_softmax(-1)
    answer = personal.generate(
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


def test_two_preferences_in_a_batch_are_as_each_alone(personal):
    guides = [{**PERSONAL, "principle": text} for text in ("be warm", "be brief")]
    requests = [{"prompt": "the sea", "alignment": {"guides": [guide]}} for guide in guides]
    alone = [personal.generate(request, max_tokens=20).answers for request in requests]
    together = [result.answers for result in personal.batch(requests, max_tokens=20)]
    assert together == alone
    assert alone[0] != alone[1]


def test_weight_0_is_off_and_tells_the_base_nothing(personal):
    off = [
        {**PERSONAL, "principle": "be warm", "weight": 0, "tell_base": True},
        {**PERSONAL, "principles": {"be warm": 0}, "tell_base": True},
    ]
    for guide in off:
        guided = plan(personal, "the sea", guide).guided
        assert guided.terms == ()
        assert guided.base == plan(personal, "the sea").guided.base
        sampling = {"max_tokens": 12, "alignment": {"guides": [guide]}}
        bare = personal.generate("the sea", max_tokens=12).answers
        assert personal.generate("the sea", **sampling).answers == bare


def test_renormalising_a_term_over_the_candidates_changes_no_token(personal):
    """It adds a constant to all scores of a position."""
    for question in QUESTIONS[:12]:
        guided = plan(personal, question, {**PERSONAL, "principle": "be warm"}).guided

        def program(guided=guided):
            (term,), policies = guided.terms, guided.policies
            reading = yield from next_scores(guided, [Prefix()])
            logits = yield [NextLogits(policy, [Prefix()]) for policy in policies]
            return reading, term, dict(zip(policies, logits, strict=True))

        reading, term, logits = ask(personal, program())
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
