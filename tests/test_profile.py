"""Profiles learned from past choices: the questions, the history, and the command."""

import json
import threading

import pytest
import yaml
from conftest import ARCHITECTURES, Speaking, make_model, scripted
from test_cli import rows, run

from fader import endpoint
from fader.request import Choice
from fader.training.profile import MOST_WORDS, QUESTIONS, learn, question_about, read_history

CHOICES = [
    {"prompt": "Tea?", "chosen": "Yes.", "rejected": "Well, that depends on the day."},
    {"chosen": "No.", "rejected": "That is a long story."},
]


def write(folder, records, name="ada.jsonl"):
    file = folder / name
    file.write_text("\n".join(map(json.dumps, records)))
    return file


def test_a_history_is_read_oldest_first(tmp_path):
    file = write(tmp_path, [{**CHOICES[0], "time": "noon"}, {**CHOICES[1], "split": ""}])
    history, ignored = read_history(file)
    assert history == tuple(map(Choice.model_validate, CHOICES))
    assert ignored == ["time", "split"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "ada.jsonl: no choices; write one a line"),
        ('{"chosen": "a", "rejected": "b"}\n{"chosen": "a"}', "ada.jsonl:2: rejected must be a te"),
        ('{"chosen": "a", "rejected": " a"}', "ada.jsonl:1: chosen and rejected are the same"),
        ('{"chosen": "a", "rejected": "b", "prompt": 5}', "ada.jsonl:1: prompt must be a text"),
        ('{"chosen": [], "rejected": "b"}', "become texts by `fader data split`"),
        ('{"chosen": "a", "rejected"', "ada.jsonl:1: not valid JSON"),
        ('{"chosen": "a", "chosen": "b", "rejected": "c"}', "ada.jsonl:1: "),
    ],
)
def test_a_faulty_history_is_named_with_its_line(tmp_path, content, said):
    file = tmp_path / "ada.jsonl"
    file.write_text(content)
    done = run("profiles", "learn", "--history", str(file), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not (tmp_path / ".fader").exists()


def test_the_questions_are_asked_and_their_notes_become_the_text():
    history, asked = tuple(map(Choice.model_validate, CHOICES)), []

    def ask(prompt):
        asked.append(prompt)
        return f" Note\n{len(asked)}. " if len(asked) <= len(QUESTIONS) else '"Be brief. Stay so."'

    learned = learn(history, ask, lambda prompt: True)
    assert learned.text == "Be brief. Stay so."
    assert learned.notes == tuple(f"Note {number}." for number in range(1, len(QUESTIONS) + 1))
    assert (learned.choices, learned.left_out) == (2, 0)
    for prompt, question in zip(asked, QUESTIONS, strict=False):
        assert prompt == question_about(history, question)
        assert "Question: Tea?\nLiked: Yes.\nLiked less: Well, that depends" in prompt
    shared = question_about(history, "")[: len(question_about(history, "")) - 60]
    assert all(prompt.startswith(shared) for prompt in asked[:-1])  # it is read once
    assert all(f"- {note}" in asked[-1] for note in learned.notes)
    assert "Tea?" not in asked[-1]


def test_a_long_text_is_cut_at_a_sentence():
    history = tuple(map(Choice.model_validate, CHOICES))
    long = "Be brief. " + " ".join(["word"] * MOST_WORDS) + "."
    assert learn(history, lambda prompt: long, lambda prompt: True).text == "Be brief."
    one = " ".join(["word"] * 100)
    assert learn(history, lambda prompt: one, lambda prompt: True).text == " ".join(
        ["word"] * MOST_WORDS
    )
    with pytest.raises(ValueError, match="said nothing about the history"):
        learn(history, lambda prompt: " ", lambda prompt: True)


def test_of_ten_thousand_choices_the_newest_that_fit_are_shown():
    history = tuple(Choice(chosen=f"yes {n}", rejected="no") for n in range(10_000))
    asked = []

    def ask(prompt):
        asked.append(prompt)
        return "Be brief."

    learned = learn(history, ask, lambda prompt: len(prompt) <= 2000)
    assert learned.choices + learned.left_out == 10_000
    assert 1900 < max(map(len, asked)) <= 2000
    assert f"yes {10_000 - learned.choices}\n" in asked[0]
    assert f"yes {9_999 - learned.choices}\n" not in asked[0]
    assert "yes 9999\n" in asked[0]
    with pytest.raises(ValueError, match="newest choice alone is longer"):
        learn(history, ask, lambda prompt: False)


class Script(Speaking):
    """Says what kind of prompt it got; fails from the request on that `server.fails` numbers."""

    def do_POST(self):
        server, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        prompt = json.loads(body)["messages"][0]["content"]
        with server.guard:
            server.asked.append(prompt)
            failed = len(server.asked) >= server.fails
        if failed:
            return self.say(400, b'{"error": {"message": "out of luck"}}')
        text = "Be brief." if prompt.startswith("Notes") else "They like short answers."
        text = "" if server.silent in prompt else text
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        row = {"id": "x", "object": "chat.completion", "created": 1, "model": "scripted"}
        choices = [{**choice, "finish_reason": "stop"}]
        return self.say(200, json.dumps({**row, "choices": choices}).encode())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with scripted(Script, guard=threading.Lock(), asked=[], fails=100, silent="?!") as made:
        yield made


def test_a_profile_is_learned_of_an_endpoint_and_kept(server, tmp_path):
    many = [{"chosen": f"yes {n}", "rejected": "no"} for n in range(300)]
    command = ["profiles", "learn", "--history", str(write(tmp_path, many)), "--room", "3000"]
    command += ["--endpoint", server.url, "--teacher", "scripted", "--json"]
    with_vector = [*command, "--align", '{"vectors": {"warm": 1}, "preferences": {"user": "Hi."}}']
    done = run(*with_vector, cwd=tmp_path)
    [row] = rows(done)
    assert row["text"] == "Be brief."
    assert row["choices"] + row["left_out"] == 300
    assert f"the oldest {row['left_out']} did not fit" in done.stderr
    file = tmp_path / ".fader" / "profiles" / "ada.yaml"
    assert yaml.safe_load(file.read_text()) == {
        "preferences": {"user": ["Hi.", "Be brief."]},
        "vectors": {"warm": 1.0},
    }
    assert [*file.parent.iterdir()] == [file]  # the replies are not needed any more
    refused = run(*command, cwd=tmp_path)
    assert refused.returncode == 2
    assert "there is a profile 'ada' already" in refused.stderr
    asked = len(server.asked)
    endpoint._kept.clear()  # as in another process
    [again] = rows(run(*command, "--force", cwd=tmp_path))
    assert again["text"] == "Be brief."
    assert yaml.safe_load(file.read_text()) == {"preferences": {"user": ["Be brief."]}}
    assert len(server.asked) == 2 * asked == 2 * (len(QUESTIONS) + 1)


def test_a_stopped_run_goes_on_where_it_was(server, tmp_path):
    server.fails = 4
    command = ["profiles", "learn", "--history", str(write(tmp_path, CHOICES)), "--name", "bo"]
    command += ["--endpoint", server.url, "--teacher", "scripted", "--json"]
    stopped = run(*command, cwd=tmp_path)
    assert (stopped.returncode, stopped.stdout) == (2, "")
    assert "out of luck" in stopped.stderr
    folder = tmp_path / ".fader" / "profiles"
    assert [file.name for file in folder.iterdir()] == [".bo.replies"]
    server.fails = 100
    endpoint._kept.clear()  # as in another process
    [row] = rows(run(*command, cwd=tmp_path))
    assert row["text"] == "Be brief."
    assert len(server.asked) == len(QUESTIONS) + 2  # the failed one is asked again, no other
    assert [file.name for file in folder.iterdir()] == ["bo.yaml"]
    (folder / ".bo.replies").write_text("[]")
    broken = run(*command, "--force", cwd=tmp_path)
    assert (broken.returncode, "holds no replies; delete it" in broken.stderr) == (2, True)


def test_replies_are_kept_by_who_gave_them_and_how(server, tmp_path):
    server.fails = 4
    command = ["profiles", "learn", "--history", str(write(tmp_path, CHOICES))]
    command += ["--endpoint", server.url, "--teacher", "scripted", "--json"]
    assert run(*command, cwd=tmp_path).returncode == 2
    server.fails = 100
    endpoint._kept.clear()
    rows(run(*command, "--temperature", "1", cwd=tmp_path))
    assert len(server.asked) == 4 + len(QUESTIONS) + 1


def test_an_empty_reply_is_said_and_not_kept(server, tmp_path):
    server.silent = QUESTIONS[0]
    command = ["profiles", "learn", "--history", str(write(tmp_path, CHOICES))]
    command += ["--endpoint", server.url, "--teacher", "scripted", "--json"]
    done = run(*command, cwd=tmp_path)
    assert rows(done)[0]["unanswered"] == [QUESTIONS[0]]
    assert f"nothing was replied to {QUESTIONS[0]!r}" in done.stderr
    server.silent = ""
    endpoint._kept.clear()
    refused = run(*command, "--force", cwd=tmp_path)
    assert refused.returncode == 2
    assert "said nothing" in refused.stderr
    server.silent = "?!"
    endpoint._kept.clear()
    assert rows(run(*command, "--force", cwd=tmp_path))[0]["text"] == "Be brief."


def test_a_profile_in_another_file_is_refused_before_anybody_is_asked(server, tmp_path):
    (tmp_path / ".fader" / "profiles").mkdir(parents=True)
    (tmp_path / ".fader" / "profiles" / "ada.json").write_text("{}")
    command = ["profiles", "learn", "--history", str(write(tmp_path, CHOICES)), "--force"]
    done = run(*command, "--endpoint", server.url, "--teacher", "scripted", cwd=tmp_path)
    assert done.returncode == 2
    assert "ada.json is a profile of that name already" in done.stderr
    assert not server.asked


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--name", "../x"], "'../x' is not a name"),
        (["--endpoint", "http://localhost:1/v1"], "endpoint, teacher: give both or neither"),
        (["--align", '{"vectors": 5}'], "alignment.vectors"),
        (["--temperature", "0.5"], "--temperature: only an endpoint is asked so"),
        (["--key-env", "KEY"], "--key-env: only an endpoint is asked so"),
        (
            ["--endpoint", "http://localhost:1/v1", "--teacher", "x", "--model", "y"],
            "--model: the endpoint's model is asked; name it by --teacher",
        ),
    ],
)
def test_bad_options_are_one_message(tmp_path, more, said):
    file = write(tmp_path, CHOICES)
    done = run("profiles", "learn", "--history", str(file), *more, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.long
def test_a_profile_is_learned_of_a_loaded_model(tmp_path, monkeypatch):
    """Whatever a random model says, it is what requests will find by the profile's name."""
    longer = {**ARCHITECTURES["llama"], "max_position_embeddings": 2048}
    monkeypatch.setitem(ARCHITECTURES, "llama", longer)
    tiny_folder = make_model(tmp_path / "llama")
    many = [{"chosen": f"the sea {n}", "rejected": "a mat"} for n in range(200)]
    file = write(tmp_path, many)
    command = ["profiles", "learn", "--history", str(file), "--model", str(tiny_folder), "--json"]
    [row] = rows(run(*command, cwd=tmp_path))
    assert 0 < row["choices"] < 200
    written = rows(run("profiles", "--json", cwd=tmp_path))
    [kept] = (one for one in written if one["name"] == row["name"])
    assert kept["alignment"] == {"preferences": {"user": [row["text"]]}}


def test_help_has_an_example():
    assert "Example" in run("profiles", "learn", "--help").stdout
