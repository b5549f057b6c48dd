"""Files of requests, answered shard by shard: one answer for each line, whatever is stopped."""

import json

import pytest
from typer.testing import CliRunner

from fader import Request
from fader.cli import app
from fader.files import write_rows
from fader.shards import SIZE, Output, answers, shards

ROWS = [
    {"prompt": "the sea", "sampling": {"max_tokens": 4}},
    {"prompt": "a cat", "alignment": {"preferences": {"user": "be brief"}}},
    {
        "prompt": "one two",
        "alignment": {
            "search": {
                "kind": "best-of-n",
                "n": 2,
                "rewards": [{"kind": "length", "at_most": 3}],
            }
        },
        "sampling": {"temperature": 0.9},
    },
    {"messages": [{"role": "user", "content": "what"}], "sampling": {"n": 2, "temperature": 1}},
    {"raw": "the ship", "sampling": {"logprobs": 1}},
]


def asked(rows=ROWS):
    """Requests as JSON, with the places of their lines."""
    requests = [Request.of(row, max_tokens=5) for row in rows]
    return [
        (f"in.jsonl:{line}", one.model_dump_json(exclude_unset=True))
        for line, one in enumerate(requests, 1)
    ]


def test_a_request_is_the_same_after_it_was_json():
    for row, (_, text) in zip(ROWS, asked(), strict=True):
        assert Request.model_validate_json(text) == Request.of(row, max_tokens=5)


def test_shards_are_known_by_all_that_their_answers_depend_on():
    first, second, third = shards(asked(), {"model": "a"}, 2)
    assert [len(one.requests) for one in (first, second, third)] == [2, 2, 1]
    assert first.places == ("in.jsonl:1", "in.jsonl:2")
    mended = [*ROWS[:2], {**ROWS[2], "prompt": "three"}, *ROWS[3:]]
    changed = list(shards(asked(mended), {"model": "a"}, 2))
    assert [changed[0], changed[2]] == [first, third]
    assert changed[1].key != second.key
    other = list(shards(asked(), {"model": "b"}, 2))
    assert not {one.key for one in other} & {first.key, second.key, third.key}
    same = list(shards(asked([ROWS[0]] * 4), {}, 2))
    assert same[0].key != same[1].key


def test_a_stopped_run_goes_on_and_each_line_has_one_answer(tiny, tmp_path):
    output, done = Output(tmp_path / "out.jsonl"), []
    some = list(shards(asked(), {}, 2))

    def stopped(left):
        yield left[1].key, answers(tiny.backend, left[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), output.held():
        output.write(some, stopped, done.append)
    assert not output.file.exists()
    assert [output.has(one) for one in some] == [False, True, False]
    (output.part / ".half.tmp").write_text("half of a line")

    def rest(left):  # in another order than that of the lines
        assert left == [some[0], some[2]]
        return [(one.key, answers(tiny.backend, one)) for one in reversed(left)]

    done.clear()
    with output.held():
        output.write(some, rest, done.append)
    assert done == [2, 1, 2]
    lines = [json.loads(line) for line in output.file.read_text().splitlines()]
    alone = [tiny.generate(Request.of(row, max_tokens=5)) for row in ROWS]
    assert [line["token_ids"] for line in lines] == [
        list(one.answers[0].token_ids) for one in alone
    ]
    assert len(lines[3]["samples"]) == 2
    assert [file.name for file in output.part.iterdir()] == ["lock"]


def test_what_is_there_is_not_written_over_and_two_runs_do_not_mix(tmp_path):
    output = Output(tmp_path / "out.jsonl")
    with (
        output.held(),
        pytest.raises(ValueError, match="--out: another run is writing into"),
        Output(tmp_path / "out.jsonl").held(),
    ):
        raise AssertionError("two at once")
    output.file.write_text("mine\n")
    with pytest.raises(ValueError, match=r"--out: .*exists; choose another file"), output.held():
        raise AssertionError("written over")
    assert output.file.read_text() == "mine\n"


def test_a_fault_names_the_line_and_what_is_done_stays(tiny_folder, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = [{"prompt": f"the sea {line}"} for line in range(SIZE)]
    write_rows(source, [*good, ROWS[0], {"prompt": "a", "alignment": {"vectors": {"no": 1}}}])
    command = ["generate", "--input", str(source), "--out", str(out), "--max-tokens", "1"]
    command += ["--model", str(tiny_folder)]
    done = CliRunner().invoke(app, command)
    assert str(done.exception).startswith(f"{source}:{SIZE + 2}: alignment.vectors.no: no such")
    assert not out.exists()
    assert len(list((tmp_path / ".out.jsonl.part").glob("*.jsonl"))) == 1
    write_rows(source, [*good, ROWS[0], ROWS[4]])
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.exception
    assert f"{SIZE + 2} answers" in done.stdout
    assert len(out.read_text().splitlines()) == SIZE + 2
    again = CliRunner().invoke(app, command)
    assert "exists" in str(again.exception)


@pytest.mark.parametrize("given", [["hello", "--out", "x"], ["--input", "-", "--ray"]])
def test_files_are_answered_from_files(given):
    done = CliRunner().invoke(app, ["generate", *given])
    assert str(done.exception).startswith("--out, --ray: answer the lines of a file")
