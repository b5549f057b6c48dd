"""Preference data in the forms that people have it in: read as it was meant, or refused with the
record and the field; nothing is dropped in silence."""

import csv
import gzip
import json
import logging
from dataclasses import replace

import pytest
from test_cli import run

from fader.data import sources
from fader.data.records import LEVELS, Pair, pair_of, read, read_any, read_pairs
from fader.request import Message

Q, C, R = "How deep do I plant garlic?", "Five centimetres, tip up.", "Deep."


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def s(text):
    return {"role": "system", "content": text}


def pair(*turns, chosen=C, rejected=R, split="train"):
    return Pair(tuple(Message(**turn) for turn in turns), chosen, rejected, split)


HI = [u("Hi"), a("Hello."), u("And now?")]
GPT = [{"from": "human", "value": Q}]
SAME = {"chosen": C, "rejected": R}
FORMS = {
    "trl_standard": ({"prompt": Q, **SAME}, pair(u(Q))),
    "trl_conversational": (
        {"prompt": [u(Q)], "chosen": [a(C)], "rejected": [a(R)]},
        pair(u(Q)),
    ),
    "trl_implicit": ({"chosen": [u(Q), a(C)], "rejected": [u(Q), a(R)]}, pair(u(Q))),
    "trl_implicit_text": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        pair(u("The sky is"), chosen=" blue.", rejected=" black."),
    ),
    "answers_of_several_turns": (
        {"prompt": [u("Hi")], "chosen": [*HI[1:], a(C)], "rejected": [*HI[1:], a(R)]},
        pair(*HI),
    ),
    "ultrafeedback": (
        {
            "prompt": "Hi",
            "prompt_id": "1",
            "chosen": [*HI, a(C)],
            "rejected": [*HI, a(R)],
            "messages": [*HI, a(C)],
            "score_chosen": 9.0,
            "score_rejected": 2,
        },
        pair(*HI),
    ),
    "ultrafeedback_with_system": (
        {
            "prompt": Q,
            "chosen": [s("Be brief."), u(Q), a(C)],
            "rejected": [s("Be brief."), u(Q), a(R)],
        },
        pair(s("Be brief."), u(Q)),
    ),
    "system_turn_in_the_prompt_alone": (
        {"prompt": [s("Be brief."), u(Q)], "chosen": [u(Q), a(C)], "rejected": [u(Q), a(R)]},
        pair(s("Be brief."), u(Q)),
    ),
    "distilabel": (
        {
            "instruction": Q,
            "chosen_response": C,
            "rejected_response": R,
            "chosen_avg_rating": 4.5,
            "rejected_avg_rating": 3,
        },
        pair(u(Q)),
    ),
    "hh": (
        {
            "chosen": f"\n\nHuman: {Q}\n\nAssistant: {C}",
            "rejected": f"\n\nHuman: {Q}\n\nAssistant: {R}",
        },
        pair(u(Q)),
    ),
    "hh_prompt": (
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": f" {C}", "rejected": f" {R}"},
        pair(u(Q), chosen=f" {C}", rejected=f" {R}"),
    ),
    "openai": (
        {
            "input": {"messages": [u(Q)], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [a(C)],
            "non_preferred_output": [a(R)],
        },
        pair(u(Q)),
    ),
    "openai_with_system": (
        {
            "input": {"messages": [{"role": "developer", "content": "Be brief."}, u(Q)]},
            "preferred_output": [{**a(C), "tool_calls": None}],
            "non_preferred_output": [a(R)],
        },
        pair(s("Be brief."), u(Q)),
    ),
    "sharegpt": (
        {
            "conversations": GPT,
            "chosen": {"from": "gpt", "value": C},
            "rejected": {"from": "gpt", "value": R},
        },
        pair(u(Q)),
    ),
    "sharegpt_with_system": (
        {"conversations": [{"from": "system", "value": "Be brief."}, *GPT], **SAME},
        pair(s("Be brief."), u(Q)),
    ),
    "orca": ({"system": "Be brief.", "question": Q, **SAME}, pair(s("Be brief."), u(Q))),
    "orca_without_system": ({"system": "", "question": Q, **SAME}, pair(u(Q))),
    "orca_of_distilabel": ({"system": None, "input": Q, **SAME}, pair(u(Q))),
    "pku": (
        {
            "prompt": Q,
            "response_0": R,
            "response_1": C,
            "better_response_id": 1,
            "is_response_0_safe": True,
        },
        pair(u(Q)),
    ),
    "content_parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": Q}]}], **SAME},
        pair(u(Q)),
    ),
    "null_prompt": ({"prompt": None, "messages": [u(Q)], **SAME}, pair(u(Q))),
    "query_beside_prompt": ({"query": Q, "prompt": Q, **SAME}, pair(u(Q))),
    "json_text": (
        {"prompt": Q, "chosen": json.dumps([a(C)]), "rejected": json.dumps([a(R)])},
        pair(u(Q)),
    ),
    "a_text_that_looks_like_json": (
        {"prompt": Q, "chosen": '["a", {"role": 1}]', "rejected": "[1]"},
        pair(u(Q), chosen='["a", {"role": 1}]', rejected="[1]"),
    ),
    "validation": ({"prompt": Q, **SAME, "split": "Validation"}, pair(u(Q), split="dev")),
    "Train": ({"prompt": Q, **SAME, "split": "Train"}, pair(u(Q), split="train")),
    "prefs": ({"prompt": Q, **SAME, "split": "test_prefs"}, pair(u(Q), split="test")),
    "test_prefs": ({"prompt": Q, **SAME, "split": "test_prefs"}, pair(u(Q), split="test")),
    "no_split": ({"prompt": Q, **SAME, "split": None}, pair(u(Q))),
}


def written(folder, *rows):
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_it_was_meant(tmp_path, form):
    row, meant = FORMS[form]
    assert read_pairs(written(tmp_path, row)) == [meant]


FAULTS = {
    "different histories": (
        {
            "chosen": [u("Hi"), a("Hello."), u("More?"), a(C)],
            "rejected": [u("Hi"), a("Go away."), u("Why?"), a(R)],
        },
        "chosen and rejected answer different conversations (turn 1: assistant 'Hello.' against"
        " assistant 'Go away.')",
    ),
    "rejected ends earlier": (
        {"chosen": [*HI, a(C)], "rejected": HI[:2]},
        "chosen and rejected answer different conversations",
    ),
    "one side with a system turn": (
        {"chosen": [s("Be brief."), u(Q), a(C)], "rejected": [u(Q), a(R)]},
        "chosen and rejected answer different conversations (turn 0: system",
    ),
    "the user speaks last": (
        {"chosen": HI, "rejected": [u("Hi"), a("Hello."), u("Bye.")]},
        "chosen: must end with the assistant's turn (it ends with the user's, 'And now?')",
    ),
    "a transcript that ends with Human": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What?",
            "rejected": "\n\nHuman: Hi",
        },
        "chosen: must end with the assistant's turn",
    ),
    "prompt and conversation": (
        {"prompt": "Another question.", "chosen": [u(Q), a(C)], "rejected": [u(Q), a(R)]},
        "prompt says another conversation than chosen (turn 0: user 'Another question.' against",
    ),
    "two prompts": (
        {"prompt": Q, "question": "Why?", **SAME},
        "question says another conversation than prompt",
    ),
    "the prompt ends with another answer": (
        {"messages": [u("Hi"), a("Hello.")], **SAME},
        "messages: the turn before the answers must be the user's (it is the assistant's, 'Hel",
    ),
    "two systems": (
        {"system": "Be brief.", "prompt": [s("Be long."), u(Q)], **SAME},
        "system: is 'Be brief.', and the conversation's system turn 'Be long.'; keep one",
    ),
    "a system turn in the middle": (
        {"prompt": [u("Hi"), s("Be brief."), u(Q)], **SAME},
        "prompt.1: a system turn must be the first one",
    ),
    "a tool": (
        {"prompt": [{**u(Q), "tool_calls": [{"id": "x"}]}], **SAME},
        "prompt.0.tool_calls: no such field",
    ),
    "tools": (
        {
            "input": {"messages": [u(Q)], "tools": [{}]},
            "preferred_output": [a(C)],
            "non_preferred_output": [a(R)],
        },
        "input.tools: is not understood",
    ),
    "an image": (
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], **SAME},
        "prompt.0.content.0: must be a part of type text",
    ),
    "a history": (
        {"prompt": Q, "history": [["a", "b"]], **SAME},
        "history: is not understood (got [['a', 'b']])",
    ),
    "a system text by another name": (
        {"prompt": Q, **SAME, "system_message": "Be brief."},
        "system_message: is not understood (got 'Be brief.')",
    ),
    "a column in other letters": (
        {"prompt": Q, **SAME, "Split": "test"},
        "Split: call the column 'split', or take it out",
    ),
    "scores say the opposite": (
        {"prompt": Q, **SAME, "chosen-rating": 2.0, "rejected-rating": "9"},
        "chosen-rating is 2.0, below rejected-rating, which is 9",
    ),
    "an unknown split": (
        {"prompt": Q, **SAME, "split": "holdout"},
        "split: must be one of train, training, dev",
    ),
    "Python's messages": (
        {"prompt": f"[{{'role': 'user', 'content': '{Q}'}}]", **SAME},
        "prompt: holds messages as Python prints them",
    ),
    "half a surrogate pair": ({"prompt": Q, "chosen": "\ud83d", "rejected": R}, "half a surrogate"),
    "another role": (
        {"conversations": [{"from": "tool", "value": "x"}], **SAME},
        "conversations.0.role: Input should be 'system', 'user' or 'assistant' (got 'tool')",
    ),
    "a prompt in a chat template": (
        {"prompt": f"<s>[INST] {Q} [/INST]", **SAME},
        "prompt: is written in a chat template already ('<s>[INST]')",
    ),
    "an answer with its end": (
        {"prompt": Q, "chosen": C, "rejected": f"{R}<|im_end|>\n"},
        "rejected: is written in a chat template already ('<|im_end|>')",
    ),
    "what its template is told": (
        {"prompt": Q, **SAME, "chat_template_kwargs": {"enable_thinking": False}},
        "chat_template_kwargs: is not understood",
    ),
    "no answers": ({"prompt": Q, "answer": C}, "chosen: must be a text or messages (the columns"),
    "which of two preferences": (
        {
            "prompt": Q,
            "response_0": R,
            "response_1": C,
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        "better_response_id is 1 and safer_response_id is 0; name the one that is meant",
    ),
    "a turn that says two things": (
        {"conversations": [{"from": "human", "value": Q, "content": "Why?"}], **SAME},
        "conversations.0.from: no such field",
    ),
    "a transcript without empty lines": (
        {"chosen": f"Human: {Q}\nAssistant: {C}", "rejected": f"Human: {Q}\nAssistant: {R}"},
        "chosen: is a transcript whose turns are not parted by empty lines",
    ),
    "ratings without a name": (
        {"prompt": Q, "response": C, "helpfulness": 4, "verbosity": 1},
        "--rating NAME (there are helpfulness, verbosity)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_read_names_record_and_field(tmp_path, name):
    row, said = FAULTS[name]
    file = written(tmp_path, {"prompt": Q, **SAME}, row)
    with pytest.raises(ValueError, match=r".") as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    passed_over = read(file, skip_bad=1)
    assert (len(passed_over.items), len(passed_over.bad)) == (1, 1)
    assert said in passed_over.bad[0]


def test_more_bad_records_than_allowed_are_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": Q, **SAME}) + '\n{"cut": \nnull\n')
    found = read(file, skip_bad=2)
    assert found.summary() == f"{file}: 3 records read, 1 pairs: 1 train, 2 passed over"
    assert [line.partition(": ")[0] for line in found.notes()] == [f"{file}:2", f"{file}:3"]
    with pytest.raises(ValueError, match=r"3: must be a JSON object.*bad record 2, --skip-bad"):
        read(file, skip_bad=1)


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path, caplog):
    rows = [
        {"prompt": Q, **SAME, "source": "x"},
        {"prompt": Q, "chosen": C, "rejected": C},
        {"prompt": Q, **SAME, "score_chosen": 5, "score_rejected": 5},
        {"prompt": "Why?", **SAME, "split": "Test"},
    ]
    file = written(tmp_path, *rows)
    found = read(file)
    assert found.splits == {"train": 1, "test": 1}
    assert found.places == (1, 4)
    assert found.ignored == ("source",)
    assert found.summary().endswith("4 records read, 2 pairs: 1 train, 1 test, 2 left out")
    with caplog.at_level(logging.WARNING):
        assert len(read_any(file)) == 2
    assert (
        [record.getMessage() for record in caplog.records]
        == found.notes()
        == [
            f"{file}: columns that are ignored: source",
            f"{file}: 1 left out: chosen and rejected are the same (record 2)",
            f"{file}: 1 left out: score_chosen and score_rejected are the same (record 3)",
        ]
    )
    with pytest.raises(ValueError, match="no records are left of 1: chosen and rejected are the"):
        read(written(tmp_path, rows[1]))


def test_rated_answers_are_compared_by_the_named_column(tmp_path):
    rows = [
        {"prompt": Q, "response": R, "helpfulness": 1, "verbosity": 3},
        {"prompt": Q, "response": "Deep, I think.", "helpfulness": 2, "verbosity": 2},
        {"prompt": Q, "response": C, "helpfulness": 4, "verbosity": 1},
        {"prompt": "Why?", "response": C, "helpfulness": 4, "verbosity": 1},
    ]
    found = read(written(tmp_path, *rows), rating="helpfulness")
    assert list(found.items) == [pair(u(Q))]
    assert found.left_out == {"there are no two rated answers to compare": [4]}
    assert found.ignored == ("verbosity",)
    assert read(written(tmp_path, *rows), rating="verbosity").items[0].chosen == R
    with pytest.raises(ValueError, match="colour: there is no such rating"):
        read(written(tmp_path, *rows), rating="colour")


ODD_RATED = [
    ({"completions": [None]}, "completions.0: must be an object with `response` (got None)"),
    ({"completions": [{"response": C, "score": 1}, "x"]}, "completions.1: must be an object"),
    ({"completions": '[{"response": "a"}]'}, "completions: must be a list of answers"),
    ({"completions": 5}, "completions: must be a list of answers (got 5)"),
    ({"completions": [{"response": C, "annotations": [1]}]}, "score: there is no such rating"),
    ({"generations": None, "score": [1]}, "generations: must be a list of answers"),
    ({"response": C, "score": "3,5"}, "response: its score must be a number (got '3,5')"),
    ({"response": C, "score": [4]}, "response: its score must be a number (got [4])"),
]


@pytest.mark.parametrize(("row", "said"), ODD_RATED)
def test_rated_answers_of_odd_shapes_are_named(tmp_path, row, said):
    file = written(tmp_path, {"instruction": Q, **row})
    with pytest.raises(ValueError, match=r".") as caught:
        read(file, rating="score")
    assert str(caught.value).startswith(f"{file}:1: ")
    assert said in str(caught.value)


def test_a_score_beyond_all_numbers_is_none(tmp_path):
    scores = {"score_chosen": 10**400, "score_rejected": 1}
    assert read_pairs(written(tmp_path, {"prompt": Q, **SAME, **scores})) == [pair(u(Q))]


def test_a_rating_may_be_yes_or_no(tmp_path):
    rows = [{"prompt": Q, "response": text, "good": text == C} for text in (R, C)]
    assert read(written(tmp_path, *rows), rating="good").items == (pair(u(Q)),)


def test_rated_completions_of_one_record(tmp_path):
    completions = [
        {"response": R, "overall_score": 9, "annotations": {"honesty": {"Rating": "2"}}},
        {"response": C, "overall_score": 3, "annotations": {"honesty": {"Rating": "5"}}},
        {"response": "No.", "overall_score": 5, "annotations": {"honesty": {"Rating": "N/A"}}},
    ]
    file = written(tmp_path, {"instruction": Q, "completions": completions})
    found = read(file, rating="honesty")
    assert found.items == (pair(u(Q)),)
    assert found.notes() == [f"{file}: 1 answers left out: they have no rating (record 1)"]
    assert found.summary().endswith("1 pairs: 1 train, 1 answers unrated")
    assert read(file, rating="overall_score").items[0].chosen == R
    file = written(tmp_path, {"instruction": Q, "generations": [R, C], "ratings": [1, 2]})
    assert read(file, rating="ratings").items == (pair(u(Q)),)


def test_answers_that_nobody_rated_are_counted(tmp_path):
    rows = [
        {"prompt": Q, "response": text, "helpfulness": score}
        for text, score in ((R, 1), ("No.", "N/A"), (C, 4), ("Well.", None))
    ]
    file = written(tmp_path, *rows, {"prompt": "Why?", "response": C, "helpfulness": ""})
    found = read(file, rating="helpfulness")
    assert found.items == (pair(u(Q)),)
    assert found.unrated == (2, 4, 5)
    assert found.notes()[-2:] == [
        f"{file}: 1 left out: there are no two rated answers to compare (record 5)",
        f"{file}: 3 answers left out: they have no rating (records 2, 4, 5)",
    ]


JSON_TEXTS = [
    '{"from": "Ann", "to": "Ben"}',
    '[{"from": "2020", "to": "2021"}]',
    '{"from": "km", "to": "mi", "value": 5}',
    '{"from": 1, "value": 5}',
    "[{'from': 'Ann', 'to': 'Ben'}]",
    "[{'value': 5}]",
    '{"role": "admin", "name": "Ann"}',
    '{"messages": 3}',
    '{"messages": [{"from": "Ann", "text": "Hi"}]}',
]


@pytest.mark.parametrize("text", JSON_TEXTS)
@pytest.mark.parametrize("field", ["prompt", "chosen"])
def test_json_that_is_no_conversation_is_a_text(tmp_path, text, field):
    meant = pair(u(text)) if field == "prompt" else pair(u(Q), chosen=text)
    assert read_pairs(written(tmp_path, {"prompt": Q, **SAME, field: text})) == [meant]


BROKEN_TURNS = [
    '[{"from": "human", "text": "Hi"}]',
    '[{"from": "gpt4", "value": "Hi"}]',
    '{"role": "assistant", "tool_calls": [{"id": "x"}]}',
    '{"messages": [{"role": "narrator", "content": "Hi"}]}',
    "[{'content': 'Hi', 'role': 'user'}\n {'content': 'Hm', 'role': 'assistant'}]",
]


@pytest.mark.parametrize("text", BROKEN_TURNS)
def test_json_that_is_half_a_conversation_is_refused(tmp_path, text):
    file = written(tmp_path, {"prompt": text, **SAME})
    with pytest.raises(ValueError, match=r"data\.jsonl:1: prompt"):
        read(file)


def test_the_marks_of_helpsteer_are_turns(tmp_path):
    said = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nAnd now?"
    rows = [
        {"prompt": said, "response": text, "helpfulness": score} for text, score in ((C, 4), (R, 0))
    ]
    assert read(written(tmp_path, *rows), rating="helpfulness").items == (pair(*HI),)


ROWS = [
    {"prompt": f"Où est le café {i}?", "chosen": "À gauche.", "rejected": "Non."} for i in (1, 2)
]


def _kinds(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (folder / "plain.jsonl").write_text(text)
    (folder / "bom.jsonl").write_text(text, encoding="utf-8-sig")
    (folder / "wide.jsonl").write_text(text, encoding="utf-16")
    (folder / "array.json").write_text(json.dumps(ROWS, indent=1))
    (folder / "lines.json").write_text(text)
    for name, mark in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        with (folder / name).open("w", newline="", encoding="utf-8-sig") as stream:
            table = csv.DictWriter(stream, ["prompt", "chosen", "rejected"], delimiter=mark)
            table.writeheader()
            table.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "pairs.parquet")
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    return sorted(folder.iterdir())


def test_every_kind_of_file_is_read(tmp_path):
    files = _kinds(tmp_path)
    assert len(files) == 18
    for file in files:
        assert [one.messages[0].content for one in read_pairs(file)] == [
            row["prompt"] for row in ROWS
        ], file.name


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", "\né".encode("latin-1"), "a.jsonl:2: not UTF-8 text (byte 0xE9"),
        ("a.csv", "prompt\né".encode("latin-1"), "a.csv:2: not UTF-8 text (byte 0xE9"),
        ("a.csv", b"prompt,chosen\na", "a.csv: record 1: has not the 2 cells of the header"),
        ("a.csv", b'prompt,chosen\n"a', "a.csv: record 1: not a table"),
        ("a.csv", b'"chosen\na;b', "a.csv: not a table: its header"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "a.csv: a git-lfs pointer"),
        ("a.json", b"[{]", "a.json: not valid JSON"),
        ("a.json", b"[3]", "a.json: record 1: must be a JSON object (got int)"),
        ("a.parquet", b"PAR1", "a.parquet: not a whole parquet file"),
        (
            "a.jsonl.gz",
            gzip.compress(b"{}\n" * 99, mtime=0)[:-9],
            "a.jsonl.gz: not a whole gzip file",
        ),
        ("a.jsonl", b"\xff\xfea", "a.jsonl:1: not UTF-16-LE text"),
        ("a.csv", b"chosen,chosen\na,b", "a.csv: has two columns 'chosen'; keep one of them"),
        ("a.jsonl", b'{"a": 1, "a": 2}', "a.jsonl:1: not valid JSON: 'a' is there twice; keep one"),
        ("a.json", b'[{"a": 1, "a": 2}]', "a.json: not valid JSON: 'a' is there twice"),
        ("a.jsonl", b'{"a": %s}' % (b"9" * 5000), "a.jsonl:1: not valid JSON: Exceeds the limit"),
        ("a.json", b'{"a": %s}' % (b"9" * 5000), "a.json: not valid JSON: Exceeds the limit"),
        (
            "a.jsonl",
            rb'{"query": "q", "avoidance": "a", "generic": "g", "expert": "\ud83d"}',
            "a.jsonl:1: expert: character 1 is half of one (U+D83D)",
        ),
    ],
)
def test_broken_files_are_named(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=r".") as caught:
        read(tmp_path / name)
    assert said in str(caught.value)


def test_a_rating_is_not_named_where_an_answer_is_chosen(tmp_path):
    file = written(tmp_path, {"prompt": Q, **SAME, "helpfulness": 4})
    with pytest.raises(ValueError, match=r":1: helpfulness: chosen says which answer is better"):
        read(file, rating="helpfulness")
    file.write_text(json.dumps({"query": "q", **dict.fromkeys(LEVELS, "a")}))
    with pytest.raises(ValueError, match="helpfulness: level data has no ratings"):
        read(file, rating="helpfulness")


def test_a_name_that_is_empty_is_no_data():
    with pytest.raises(ValueError, match=r"^data: its name is empty; give a \.jsonl"):
        read("")


def test_a_tables_separator_is_found_past_quotes(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('prompt;chosen;rejected;"note, by hand, of us, all"\nq;a;b;c\n')
    assert read(file).items == (Pair((Message(role="user", content="q"),), "a", "b"),)


def test_a_table_may_begin_with_empty_lines(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(f"\r\nprompt;chosen;rejected\r\n{Q};{C};{R}\r\n\r\n".encode())
    assert read_pairs(file) == [pair(u(Q))]


def test_a_split_of_another_name_is_not_taken_for_train(tmp_path):
    rows = {name: [row] for name, row in zip(("train", "heldout"), ROWS, strict=True)}
    with pytest.raises(ValueError, match="x: has the split 'heldout', which is none of train"):
        list(sources._marked(rows, "x"))
    assert list(sources._marked({"heldout": ROWS}, "x")) == ROWS


def test_a_folder_without_a_named_split_gives_all_of_them(tmp_path):
    for name, row in zip(("train", "validation"), ROWS, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    assert read(tmp_path).splits == {"train": 1, "dev": 1}
    assert read(f"{tmp_path}:validation").splits == {"dev": 1}


def test_a_pair_of_a_record_alone():
    assert pair_of({"prompt": Q, **SAME}, "here") == pair(u(Q))
    with pytest.raises(ValueError, match=r"^here: rejected: must be a text"):
        pair_of({"prompt": Q, "chosen": C}, "here")


def test_a_check_compares_questions_and_answers_not_what_stands_above_them(tmp_path):
    from fader.data.check import check

    terms = " ".join(
        f"Rule {place}: article {place} costs {place + 5} euros." for place in range(9)
    )
    above = s(
        "You are the assistant of a shop for garden tools; be kind, short and precise. " + terms
    )
    texts = [
        ("How do I sharpen a spade?", "File its edge at thirty degrees.", "Buy a new one."),
        ("Which rake suits moss?", "One with spring tines of steel.", "Any rake will do it."),
    ]
    rows = [{"prompt": [above, u(q)], "chosen": c, "rejected": r} for q, c, r in texts]
    assert check(written(tmp_path, *rows)).counts["duplicate"] == 0
    found = check(written(tmp_path, *rows, rows[0], {**rows[1], "rejected": texts[1][1]}))
    assert [(one.line, one.fault.rule) for one in found.findings] == [(3, "duplicate"), (4, "same")]
    assert found.items == 4


def test_any_data_is_marked_and_written_as_what_is_read_again(tmp_path):
    rows = [
        {"question": f"Why {place // 2}?", "system": "Be brief.", **SAME} for place in range(40)
    ]
    file, out = written(tmp_path, *rows), tmp_path / "marked.jsonl"
    done = run("data", "split", str(file), "--out", str(out), "--json")
    assert json.loads(done.stdout)["splits"] == {"train": 24, "dev": 6, "test": 10}
    found = read_pairs(out)
    assert [replace(one, split="train") for one in found] == read_pairs(file)
    assert all(one.split == two.split for one, two in zip(found[::2], found[1::2], strict=True))
    for wrong, said in (
        ([str(file), "--out", str(out)], "is there already"),
        ([str(out), "--out", str(tmp_path / "more.jsonl")], "are marked already"),
        ([str(file), "--out", "x.jsonl", "--splits", "1,1,0"], "sum to 1"),
    ):
        done = run("data", "split", *wrong)
        assert (done.returncode, said in done.stderr) == (2, True)
