"""Tokens, checks, vectors and profiles over HTTP."""

import pytest
from serving import serve

from fader import Request
from fader.profiles import find_profile, profile_folders
from fader.schema import Invalid
from fader.server.keys import Keys


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A project of its own, without the user's profiles and those that ship."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fader.profiles.user_config_path", lambda name: tmp_path / "config")
    monkeypatch.setattr("fader.profiles.SHIPPED", tmp_path / "shipped")
    return tmp_path


@pytest.fixture(scope="module")
def served(tiny):
    with serve(tiny.backend) as found:
        yield found


def post(served, path, body):
    answer = served.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_texts_become_tokens_and_back(served, tiny):
    found = post(served, "/tokenize", {"prompt": "the sea", "return_token_strs": True})
    assert found["tokens"] == tiny.backend.encode(tiny.model, "the sea")
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 512)
    assert "".join(found["token_strs"]) == "the sea"
    assert post(served, "/detokenize", {"tokens": found["tokens"]}) == {"prompt": "the sea"}
    turns = [{"role": "user", "content": "the sea"}]
    told = {"preferences": {"user": "be brief"}}
    wanted = tiny.backend.encode(tiny.model, Request.of("the sea", alignment=told))
    assert post(served, "/tokenize", {"messages": turns, "alignment": told})["tokens"] == wanted
    info = served.http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["model_max_length"]) == ("<|end|>", 512)
    assert "assistant" in info["chat_template"]
    assert served.error("/detokenize", json={"tokens": [10**8]})["param"] == "tokens"
    assert served.error("/tokenize", json={})["param"] == "prompt"
    assert served.error("/tokenize", json={"messages": []})["param"] == "messages"


def test_a_check_tells_all_faults_and_runs_nothing(served):
    alignment = {
        "vectors": {"nope": 1, "../up": 2},
        "search": {"kind": "best-of-n", "rewards": [{"kind": "keywords", "words": ["sea"]}]},
    }
    found = post(served, "/v1/alignment/check", {"alignment": alignment, "temperature": 0})
    assert not found["ok"]
    assert {one["path"] for one in found["faults"]} == {
        "alignment.vectors.nope",
        "alignment.vectors.../up",
        "temperature",
    }
    assert all(one["message"] for one in found["faults"])
    body = {"temperature": -1, "top_k": "x", "alignment": {"guidez": 1, "search": {"kind": "x"}}}
    paths = {one["path"] for one in post(served, "/v1/alignment/check", body)["faults"]}
    assert paths == {"temperature", "top_k", "alignment.guidez", "alignment.search"}
    assert served.serving.backend.stats().live == 0


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ([], "check"),
        ("x", "check"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"logprobs": 3}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 10**5}, "max_tokens"),
    ],
)
def test_a_check_names_the_faults_of_a_chat(served, body, path):
    assert [one["path"] for one in post(served, "/v1/alignment/check", body)["faults"]] == [path]


def test_a_check_gives_a_request_without_a_limit_what_a_chat_gives_it(served):
    assert served.chat(max_tokens=None).status_code == 200
    assert post(served, "/v1/alignment/check", {})["ok"]


def test_a_check_says_what_a_request_takes(served):
    guide = {"kind": "contrast", "principle": "be a cat"}
    body = {"alignment": {"guides": [guide]}, "n": 3, "max_tokens": 10}
    found = post(served, "/v1/alignment/check", body)
    assert (found["ok"], found["rows"], found["faults"]) == (True, 6, [])
    assert found["needs"][served.model]["positions"] > 10
    assert found["alignment"]["guides"][0]["weight"] == 2
    search = {"kind": "best-of-n", "n": 4, "rewards": [{"kind": "keywords", "words": ["sea"]}]}
    found = post(served, "/v1/alignment/check", {"alignment": {"search": search}, "max_tokens": 9})
    assert found["search_tokens_at_most"] == 36


def test_the_schema_and_the_vectors_are_told(served):
    assert "guides" in served.http.get("/v1/alignment/schema").json()["properties"]
    rows = served.http.get("/v1/vectors").json()["data"]
    assert [row["id"] for row in rows] == list(range(len(rows)))
    (warm,) = (row for row in rows if row["name"] == "warm")
    assert "effect" in warm["card"]
    assert "curve" not in warm["card"]


@pytest.fixture
def guarded(tiny, folder):
    """A server with keys: its admin's, and a user's."""
    keys = Keys(folder / "keys.json")
    admin, user = keys.add("admin", admin=True), keys.add("me")
    with serve(tiny.backend, folder / "keys.json") as found:
        yield found, *({"Authorization": f"Bearer {key}"} for key in (admin, user))


def test_profiles_are_written_with_the_admin_key_alone(guarded, folder):
    served, admin, user = guarded
    body = {"id": "clinic", "alignment": {"preferences": {"user": "be brief"}}}
    for method, path in (("POST", ""), ("PUT", "/clinic"), ("DELETE", "/clinic")):
        found = served.error(f"/v1/profiles{path}", 403, method, json=body, headers=user)
        assert found["type"] == "permission_error"
    assert not (folder / ".fader").exists()

    def send(method, path="", **said):
        return served.http.request(method, f"/v1/profiles{path}", headers=admin, **said)

    assert send("POST", json=body).status_code == 201
    assert send("POST", json=body).status_code == 409
    row = served.http.get("/v1/profiles/clinic", headers=user).json()
    assert row["alignment"] == {"preferences": {"user": ["be brief"]}}
    assert send("PUT", "/clinic", json={"alignment": {"vectors": {"x": 1}}}).status_code == 200
    [row] = served.http.get("/v1/profiles", headers=user).json()["data"]
    assert row == {"id": "clinic", "object": "profile", "alignment": {"vectors": {"x": 1.0}}}
    assert send("PUT", "/clinic", json={"alignment": {"vectorz": 1}}).status_code == 400
    assert send("POST", json={**body, "id": "../up"}).status_code == 400
    assert send("DELETE", "/clinic").json()["deleted"]
    assert send("DELETE", "/clinic").status_code == 404


def test_profiles_without_keys_are_read_only(served):
    assert served.error("/v1/profiles", 403, json={"id": "x", "alignment": {}})


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "nope", "a.b"])
def test_a_profile_is_a_name_and_nothing_else_is_opened(served, folder, name):
    (folder / "secret.yaml").write_text("{}")
    place = profile_folders()[0]
    place.mkdir(parents=True)
    (place / "link.yaml").symlink_to(folder / "secret.yaml")
    with pytest.raises(Invalid):
        find_profile(name)
    answer = served.chat(headers={"X-Fader-Profile": name})
    assert answer.status_code == 400
    assert served.chat(model=f"{served.model}:{name}").status_code == 404
