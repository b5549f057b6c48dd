"""Preference data from scores, and the check of preference records."""

import json

import pytest
from test_cli import rows, run

from fader.data.check_preferences import check_preferences
from fader.data.preferences import Judged, flips_of, read_judged, row_of, unflipped
from fader.data.rated import Attribute, Gap, read_rated
from fader.data.records import Pair
from fader.request import Message

LONG = Attribute("verbosity", ("Tell me everything.",), ("Be brief.",))
GOOD = Attribute("helpfulness", ("Help me.", "Do your best."), ("Do not help me.",))
BOIL = "How long do I boil an egg?"
SKY = "Why is the sky blue by day and red at night?"


def helpsteer(prompt, response, verbosity, helpfulness=3, **more):
    scores = {"verbosity": verbosity, "helpfulness": helpfulness}
    return {"prompt": prompt, "response": response, **scores, **more}


def write(folder, records, name="scores.jsonl"):
    file = folder / name
    file.write_text("\n".join(map(json.dumps, records)))
    return file


SCORED = [
    helpsteer(BOIL, "Seven minutes in boiling water, then cool it.", 3, 4),
    helpsteer(BOIL, "Seven minutes.", 0, 4),
    helpsteer(BOIL, "Not long.", 0, 1),
    helpsteer(SKY, "Air scatters the blue light more than the red.", 2, None),
    helpsteer(SKY, "Because of the air.", 1, 2),
]


def test_scores_become_flips_and_what_is_left_out_is_counted(tmp_path):
    found = read_rated(write(tmp_path, SCORED), [LONG, GOOD], Gap(1))
    verbosity, helpfulness = found.families
    assert [(one.chosen, one.rejected) for one in verbosity.pairs] == [
        (SCORED[0]["response"], SCORED[1]["response"]),
        (SCORED[0]["response"], SCORED[2]["response"]),
        (SCORED[3]["response"], SCORED[4]["response"]),
    ]
    assert len(helpfulness.pairs) == 2
    records = [judged for family in found.families for judged in family.records()]
    assert unflipped(records) == []
    assert {(one.pole, one.wordings) for one in records if one.family == "helpfulness"} == {
        ("much", GOOD.much),
        ("little", GOOD.little),
    }
    assert found.counts["verbosity"] == {
        "answers": 5,
        "unrated": 0,
        "repeated": 0,
        "alone": 0,
        "ties": 1,
        "outside": 0,
        "leaks": 0,
        "pairs": 3,
    }
    assert found.counts["helpfulness"]["unrated"] == 1
    assert found.counts["helpfulness"]["alone"] == 1
    assert "1 answers without a score" in found.notes[-1]
    [family] = read_rated(write(tmp_path, SCORED), [LONG], Gap(0.5, 1.5)).families
    assert [one.chosen for one in family.pairs] == [SCORED[3]["response"]]


def test_ultrafeedback_and_safe_rlhf_are_read(tmp_path):
    completions = [
        {"response": text, "annotations": {"honesty": {"Rating": rating}}}
        for text, rating in (("I do not know.", "5"), ("It is 4.", "N/A"), ("It is 5.", "1"))
    ]
    file = write(tmp_path, [{"instruction": BOIL, "completions": completions}])
    honest = Attribute("honesty", ("Be honest.",), ("Bluff.",))
    found = read_rated(file, [honest], Gap(1))
    assert [(one.chosen, one.rejected) for one in found.families[0].pairs] == [
        ("I do not know.", "It is 5.")
    ]
    assert found.counts["honesty"]["unrated"] == 1
    row = {"prompt": BOIL, "response_0": "Seven minutes.", "response_1": "Ask a cook."}
    row |= {"better_response_id": 0, "safer_response_id": 1}
    row |= {"response_0_severity_level": 2, "response_1_severity_level": 0}
    file = write(tmp_path, [row, {**row, "prompt": SKY, "safer_response_id": None}])
    safe = [
        Attribute(name, ("Yes.",), ("No.",))
        for name in ("better_response_id", "safer_response_id", "severity_level")
    ]
    found = read_rated(file, safe, Gap(1))
    assert [family.pairs[0].chosen for family in found.families] == [
        "Seven minutes.",
        "Ask a cook.",
        "Seven minutes.",
    ]
    assert found.counts["safer_response_id"]["unrated"] == 2


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([helpsteer(BOIL, "a", 1)], "verbosity: every answer has the same score (1)"),
        (
            [helpsteer(BOIL, "a", 1), helpsteer(BOIL, "b", 1.5)],
            "verbosity: no two answers to a prompt are at least 1 apart (0 ties, 1 pairs nearer",
        ),
        ([helpsteer(BOIL, "a", None)], "verbosity: none of its 1 answers has a score"),
        ([helpsteer(BOIL, "a", "lots")], ":1: response: its verbosity must be a number"),
        ([helpsteer(BOIL, "a", "inf")], ":1: response: its verbosity must be a finite number"),
        ([helpsteer(BOIL, "a", float("-inf"))], ":1: response: its verbosity must be a finite"),
        (
            [{"prompt": BOIL, "response": "a", "humour": 1}],
            ":1: verbosity: there is no such rating (there are humour)",
        ),
        (
            [{"prompt": BOIL, "response_0": "a", "response_1": "b", "safer_response_id": 1}],
            ":1: verbosity: there is no such rating (there are safer_response_id)",
        ),
        ([{"prompt": BOIL, "chosen": "a", "rejected": "b"}], ":1: holds no rated answers"),
    ],
)
def test_scores_that_teach_nothing_are_named(tmp_path, records, said):
    file = write(tmp_path, records)
    with pytest.raises(ValueError, match="scores") as caught:
        read_rated(file, [LONG], Gap(1))
    assert said in str(caught.value)


def test_an_attribute_has_two_ends_and_a_gap_holds_something():
    with pytest.raises(ValueError, match="opposite: verbosity has no wording"):
        Attribute("verbosity", ("Much.",), ())
    with pytest.raises(ValueError, match="attribute: verbosity has no wording"):
        Attribute("verbosity", (), ("Little.",))
    with pytest.raises(ValueError, match="is said for both ends"):
        Attribute("verbosity", ("Much.",), (" much",))
    with pytest.raises(ValueError, match="attribute: verbosity has an empty wording"):
        Attribute("verbosity", ("Much.",), (" ",))
    with pytest.raises(ValueError, match="gap: must be above 0"):
        Gap(0)
    with pytest.raises(ValueError, match="gap: must be above 0"):
        Gap(2, 1)


def test_the_command_writes_records_that_training_reads(tmp_path):
    file, out = write(tmp_path, SCORED), tmp_path / "out.jsonl"
    command = ["data", "rated", str(file), "--out", str(out), "--json"]
    command += ["--attribute", "verbosity=Tell me everything.", "--opposite", "verbosity=Be brief."]
    [row] = rows(run(*command, "--splits", "0.5,0,0.5"))
    records = read_judged(out)
    assert row["items"] == len(records) == 6
    assert row["splits"]["train"] > 0 < row["splits"]["test"]
    assert all(len(flip) == 2 for flip in flips_of(records))
    again = run(*command)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert "Example" in run("data", "rated", "--help").stdout


def judged(question, chosen, rejected, pole, split="train", family="x"):
    pair = Pair((Message(role="user", content=question),), chosen, rejected, split)
    return Judged(pair, (f"{family}: {pole}",), family, pole)


def flips(family, words, split="train"):
    """Pairs that two words tell apart, under either pole."""
    found = []
    for number in range(12):
        question = f"{family} {'abcdefghijkl'[number] * 24}?"
        one, two = (f"It is the {word} thing number {number} in the {family}." for word in words)
        found += [
            judged(question, one, two, "up", split, family),
            judged(question, two, one, "down", split, family),
        ]
    return found


def test_the_check_says_families_and_how_near_the_held_out_ones_are(tmp_path):
    records = [
        *flips("loud", ("bang", "hush")),
        *flips("quiet", ("hush", "bang"), "test"),
        *flips("red", ("ruby", "navy"), "test"),
    ]
    file = write(tmp_path, map(row_of, records))
    done = run("data", "check", str(file), "--json")
    report = json.loads(done.stdout)
    assert (report["kind"], report["items"]) == ("preferences", 72)
    assert {one["family"]: one["kind"] for one in report["families"]} == {
        "loud": "seen",
        "quiet": "near",
        "red": "far",
    }
    assert report["families"][1]["nearness"] == 1
    assert report["families"][0]["splits"] == {"train": 24, "dev": 0, "test": 0}
    spoken = run("data", "check", str(file)).stdout  # cells are wrapped where they are narrow
    assert all(text in spoken for text in ("near", "(1.00", "far", "seen"))
    refused = run("data", "check", str(file), "--rating", "x")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "leave the option out" in refused.stderr


def test_the_check_finds_what_is_wrong(tmp_path):
    question = "How do I fold a fitted sheet so that it lies flat?"
    one, two = "Fold it in half with the seams inside.", "Roll the sheet up and hide it well."
    records = [
        judged(question, one, two, "up"),
        judged(question, two, one, "down"),
        judged(question.replace("flat", "well"), "Ask your mother.", "Ask a friend.", "up", "test"),
        judged("Wer kommt?", "Niemand weiß das heute so genau.", "Nobody.", "only", family="y"),
    ]
    report = check_preferences(write(tmp_path, map(row_of, records)))
    found = {(one.line, one.field, one.fault.rule) for one in report.findings}
    assert found >= {
        (1, "prompt", "leak"),
        (3, "chosen", "flip"),
        (3, "rejected", "flip"),
        (4, "pole", "pole"),
    }
    assert [(one.unflipped, one.leaks) for one in report.families] == [(2, 1), (2, 0)]
    both = [judged(question, one, two, "up"), judged(question, two, one, "down")]
    both = [{**row_of(judged), "preference": "the same"} for judged in both]
    report = check_preferences(write(tmp_path, both))
    assert [one.fault.rule for one in report.findings] == ["wording"]


def listed(folder, **more):
    """A list of three families: one taught, its opposite held out, and one of shared pairs."""
    (folder / "preferences").mkdir()
    poles = {"poles": {"a": "up", "b": "down"}, "wordings": {"a": ["more"], "b": "less"}}
    lines = [
        {"family": "loud", **poles, "unseen": {"a": "most", "b": "least"}, "held_out": False},
        {"family": "quiet", **poles, "held_out": True},
        {"family": "red", **poles, "source": ["styles/red"], "held_out": True},
    ]
    lines[0] |= more
    for name, first, second in (("loud", "bang", "hush"), ("quiet", "hush", "bang")):
        pairs = [one.pair for one in flips(name, (first, second)) if one.pole == "up"]
        own = [{"prompt": one.messages[0].content, "a": one.chosen} for one in pairs]
        own = [{**row, "b": one.rejected} for row, one in zip(own, pairs, strict=True)]
        write(folder / "preferences", own, f"{name}.jsonl")
    (folder / "styles").mkdir()
    red = [one.pair for one in flips("red", ("ruby", "navy")) if one.pole == "up"]
    shared = [
        {"prompt": one.messages[0].content, "chosen": one.chosen, "rejected": one.rejected}
        for one in red
    ]
    write(folder / "styles", shared, "red.jsonl")
    return write(folder / "preferences", lines, "families.jsonl")


def test_the_check_reads_a_list_of_families(tmp_path):
    """Held out is what the list says, whatever splits the pairs are marked with."""
    done = run("data", "check", str(listed(tmp_path)), "--json")
    report = json.loads(done.stdout)
    assert (report["kind"], report["items"]) == ("preferences", 72)
    assert {(one["rule"], one["line"]) for one in report["findings"]} == {
        ("duplicate", line)
        for line in (1, 2, 3)  # a finding names its family's line
    }
    assert [(one["family"], one["kind"], one["unseen"]) for one in report["families"]] == [
        ("loud", "seen", 0),  # its pairs are of train alone, so nothing unseen is told
        ("quiet", "near", 2),
        ("red", "far", 2),
    ]
    assert report["families"][1]["nearest"] == "loud"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"family": 5}, "families.jsonl:1: family must be a text (got 5)"),
        ({"poles": ["up"]}, "families.jsonl:1: poles must be an object with `a` and `b`"),
        ({"wordings": {"a": "x", "b": ""}}, "families.jsonl:1: wordings.b must be a text or"),
        ({"source": 3}, "families.jsonl:1: source must be a text or a list"),
        ({"family": "nowhere"}, "nowhere.jsonl: no such file"),
    ],
)
def test_a_faulty_list_of_families_is_named(tmp_path, more, said):
    with pytest.raises(ValueError, match=r".") as caught:
        check_preferences(listed(tmp_path, **more))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "a": "x"}, "loud.jsonl:1: b must be a text (got None)"),
        ({"prompt": "q", "a": "x", "b": "x"}, "loud.jsonl:1: chosen and rejected are the same"),
    ],
)
def test_a_faulty_pair_of_a_family_is_named(tmp_path, row, said):
    file = listed(tmp_path)
    write(file.parent, [row], "loud.jsonl")
    with pytest.raises(ValueError, match=r".") as caught:
        check_preferences(file)
    assert said in str(caught.value)
