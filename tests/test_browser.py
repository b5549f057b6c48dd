"""The playground in a real browser: `make test-browser`."""

import json
import subprocess
import sys
from base64 import b64encode

import pytest
import yaml
from browser import AXE, Watched, browser
from conftest import random_vector, until
from serving import serve

from fader.data.records import Pair, read
from fader.request import Alignment
from fader.schema import parse
from fader.server.keys import Keys

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def served(tiny, tmp_path_factory):
    """A server on the tiny model, with two vectors of its own beside those that do not fit it."""
    folder = tmp_path_factory.mktemp("vectors")
    for seed, name in enumerate(("calm", "loud")):
        random_vector(tiny, name, seed).save(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FADER_VECTORS", str(folder))
        with serve(tiny.backend) as found:
            yield found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project of its own, without the user's profiles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fader.profiles.user_config_path", lambda name: tmp_path / "config")
    return tmp_path


@pytest.fixture
def context(chromium):
    found = chromium.new_context(accept_downloads=True)
    yield found
    found.close()


@pytest.fixture
def watched(context, served, folder):
    found = Watched(context, served.url)
    yield found
    assert not found.wrong


def test_moving_a_slider_changes_the_text(watched):
    watched.ask("the sea")
    assert watched.text("A") == watched.text("B") != ""
    before = watched.text("B")
    watched.slider("loud").focus()
    watched.page.keyboard.press("End")
    watched.settled()
    assert watched.asked[-1]["alignment"] == {"vectors": {"loud": 1.5}}
    assert watched.text("B") != before
    assert watched.text("A") == before
    box = watched.slider("loud").bounding_box()
    watched.slider("loud").dblclick(position={"x": box["width"] - 8, "y": box["height"] / 2})
    watched.settled()
    assert watched.slider("loud").input_value() == "0"
    assert watched.text("B") == before


def test_what_the_model_cannot_is_disabled_with_the_reason(watched):
    watched.page.get_by_text("that do not fit this model").click()
    formal = watched.slider("formal")
    assert formal.is_disabled()
    why = watched.page.locator(f"#{formal.get_attribute('aria-describedby').split()[1]}")
    assert "fingerprint" in why.inner_text() or "base" in why.inner_text()
    assert not watched.slider("calm").is_disabled()
    watched.section("Rewards and search")
    watched.page.get_by_label("Search").select_option("best-of-n")
    watched.page.get_by_text("Add a reward").click()
    judge = watched.page.get_by_role("button", name="judge")
    assert judge.is_disabled()
    assert "not declared" in judge.inner_text()


def test_all_columns_are_asked_at_the_same_time_and_differ_by_alignment_alone(watched):
    watched.page.get_by_role("button", name="+ Column").click()
    watched.slider("calm").fill("1")
    watched.settled()
    watched.ask("the sea", temperature=0.7)
    bodies = [{**body, "alignment": None} for body in watched.asked]
    assert bodies[0] == bodies[1] == bodies[2]
    assert [body["alignment"] for body in watched.asked] == [{}, {}, {"vectors": {"calm": 1}}]
    assert watched.column("C").locator("dl").inner_text().count("\n") >= 2


def test_an_answer_is_forked_from_a_token(watched, served):
    watched.ask("the sea")
    tokens = watched.column("A").locator(".token")
    tokens.nth(2).click()
    panel = watched.column("A").get_by_role("region")
    assert "%" in panel.inner_text()
    panel.get_by_role("button", name="Go on from").first.click()
    watched.settled()
    body = watched.asked[-1]
    last = body["messages"][-1]
    assert (last["role"], last["continue"], len(last["token_ids"])) == ("assistant", True, 3)
    answer = served.http.post(
        "/v1/chat/completions", json={**body, "stream": False, "stream_options": None}
    ).json()
    written = answer["choices"][0]["message"]["content"]
    begun = served.http.post("/detokenize", json={"tokens": last["token_ids"]}).json()["prompt"]
    assert watched.text("C").strip() == (begun + written).strip()
    watched.ask("one two three")  # another question begins anew
    assert len(watched.asked[-1]["messages"]) == 1


def test_tokens_are_reached_by_the_keyboard(watched):
    watched.ask("the sea")
    watched.column("B").locator(".answer").focus()
    watched.page.keyboard.press("ArrowRight")
    watched.page.keyboard.press("ArrowRight")
    watched.page.keyboard.press("Enter")
    panel = watched.column("B").get_by_role("region")
    panel.wait_for()
    watched.page.keyboard.press("Escape")
    panel.wait_for(state="detached")


def test_pieces_are_the_text_whatever_its_tokens_are(watched):
    """Half characters have no text of their own, and text may be held back."""
    half = "\ufffd"
    frames = [
        ("Hi", ["Hi"]),
        ("", [f" {half}"]),
        ("", [half]),
        (" 🐈 and", [half, " and"]),
        ("", [" a"]),
        (" a", []),
        (f" {half}", [f" {half}"]),
        ("", ["<end>"]),
    ]
    pieces = watched.page.evaluate(
        """async (frames) => {
            const { Pieces } = await import("/page/tokens.js");
            const pieces = new Pieces();
            for (const [text, tokens] of frames) {
                pieces.add(text, tokens.map((token) => ({ token })));
            }
            pieces.end();
            return pieces.pieces.map(({ text, tokens }) => [text, tokens.length]);
        }""",
        frames,
    )
    assert "".join(text for text, _ in pieces) == "".join(text for text, _ in frames)
    assert pieces[:4] == [["Hi", 1], [" 🐈", 3], [" and", 1], [" a", 1]]
    assert sum(count for _, count in pieces) == 8


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "a b"), ("a b", ""), ("the sea is wide", "the ship is wide and calm"), ("x", "x")],
)
def test_differences_hold_both_texts(watched, before, after):
    parts = watched.page.evaluate(
        """async (texts) =>
            (await import("/page/tokens.js")).differences(...texts)""",
        [before, after],
    )
    assert "".join(one["text"] for one in parts if one["kind"] != "gone") == after
    assert "".join(one["text"] for one in parts if one["kind"] != "new") == before


def test_guides_colour_the_tokens(watched):
    watched.section("Guides")
    watched.page.get_by_text("Add a guide").click()
    watched.page.get_by_role("button", name="contrast The").click()
    watched.page.get_by_label("Weight").fill("4")
    watched.ask("the sea")
    assert watched.asked[-1]["alignment"]["guides"] == [
        {"kind": "contrast", "principle": "Answer like a pirate.", "weight": 4}
    ]
    coloured = watched.column("B").locator("[class*=more-], [class*=less-]")
    assert coloured.count() > 0
    coloured.first.click()
    assert "Guide 1 (contrast) added" in watched.column("B").get_by_role("region").inner_text()
    watched.page.get_by_text("Words that differ from A").click()
    assert watched.column("B").locator(".answer ins").count() > 0
    assert watched.column("B").locator(".answer del").count() > 0


def test_a_search_reports_its_reward(watched):
    watched.section("Rewards and search")
    watched.page.get_by_label("Search").select_option("best-of-n")
    watched.ask("the sea", temperature=0.7)
    assert watched.asked[-1]["alignment"]["search"]["kind"] == "best-of-n"
    assert "Reward" in watched.column("B").locator("dl").inner_text()


def test_a_profile_is_saved_in_the_browser_and_loaded_again(watched):
    watched.slider("calm").fill("0.75")
    watched.page.get_by_role("button", name="Save…").click()
    watched.page.get_by_label("Name").fill("quiet-one")
    assert watched.page.get_by_role("button", name="Save on the server").is_disabled()
    watched.page.get_by_role("button", name="Save in this browser").click()
    watched.page.reload()
    watched.slider("calm").wait_for()
    assert watched.slider("calm").input_value() == "0"
    watched.page.get_by_label("Load a profile").select_option("bquiet-one")
    assert watched.slider("calm").input_value() == "0.75"
    assert "quiet-one" in watched.column("B").inner_text()


def test_a_link_holds_the_page_and_runs_nothing(watched, context, served):
    watched.slider("calm").fill("-1")
    watched.page.get_by_label("Your question").fill("größe? 🐈")
    watched.page.get_by_role("button", name="Share").click()
    other = Watched(context, served.url, watched.page.url.removeprefix(f"{served.url}/"))
    other.slider("calm").wait_for()
    other.settled()
    assert other.page.get_by_label("Your question").input_value() == "größe? 🐈"
    assert other.slider("calm").input_value() == "-1"
    assert not other.asked
    assert not other.wrong


@pytest.mark.parametrize(
    "alignment",
    [
        None,
        5,
        {"vectors": 5},
        {"vectors": {"calm": "x"}},
        {"guides": "x"},
        {"guides": [{"kind": "x"}]},
        {"preferences": {"user": {"a": 1}}},
        {"search": {"kind": "best-of-n"}},
    ],
)
def test_a_broken_link_leaves_the_page_as_it_is(context, served, folder, alignment):
    state = json.dumps({"question": "x", "columns": [{"name": "X", "alignment": alignment}]})
    link = "#nonsense" if alignment is None else f"#{b64encode(state.encode()).decode()}"
    broken = Watched(context, served.url, link)
    assert broken.column("B").locator("h2").inner_text() == "Your mix"
    broken.ask("the sea")
    assert broken.text("B")
    assert not broken.wrong


def test_a_link_may_name_what_is_not_here(context, served, folder):
    alignment = {"vectors": {"gone": 1}}
    state = json.dumps({"columns": [{"name": "X", "alignment": alignment}]})
    found = Watched(context, served.url, f"#{b64encode(state.encode()).decode()}")
    assert (
        "no such vector" in found.page.locator('[data-path="alignment.vectors.gone"]').inner_text()
    )
    found.slider("gone").fill("0")
    found.settled()
    assert found.page.locator(".mixer .fault").count() == 0


def test_a_stream_is_cancelled(watched, served):
    def longer(route):
        body = {**route.request.post_data_json, "ignore_eos": True, "max_tokens": 450}
        route.continue_(post_data=json.dumps(body))

    watched.page.route("**/v1/chat/completions", longer)
    watched.page.get_by_label("Your question").fill("the sea")
    watched.page.get_by_role("button", name="Ask", exact=True).click()
    watched.column("B").locator(".token").nth(3).wait_for()
    watched.page.locator("form.ask").get_by_role("button", name="Stop").click()
    watched.page.get_by_text("Stopped.").nth(1).wait_for()
    until(lambda: served.serving.backend.stats().live == 0, 10)
    assert 3 <= watched.column("B").locator(".token").count() < 450


def test_votes_are_exported_as_training_reads_them(watched, tmp_path):
    watched.slider("loud").fill("1.5")
    watched.ask("the sea")
    watched.column("B").get_by_role("button", name="better").click()
    better, worse = watched.text("B").strip(), watched.text("A").strip()
    watched.page.reload()  # votes are kept
    watched.page.get_by_role("button", name="Votes (1)").click()
    with watched.page.expect_download() as waited:
        watched.page.get_by_role("button", name="Export as JSONL").click()
    file = tmp_path / waited.value.suggested_filename
    waited.value.save_as(file)
    found = read(file)
    assert not found.notes()
    [pair] = found.items
    assert isinstance(pair, Pair)
    assert [turn.content for turn in pair.messages] == ["the sea"]
    assert (pair.chosen.strip(), pair.rejected.strip()) == (better, worse)


def test_a_sweep_answers_at_each_strength_with_its_curve(watched):
    watched.section("Sampling")
    watched.page.get_by_label("Tokens at most").fill("8")
    watched.page.get_by_label("Your question").fill("the sea")
    watched.page.get_by_role("button", name="Sweep").first.click()
    watched.page.get_by_label("Vector").select_option("loud")
    watched.page.get_by_label("Measured", exact=True).select_option("length")
    watched.page.locator("form").get_by_role("button", name="Sweep").click()
    watched.settled()
    asked = [body["alignment"]["vectors"].get("loud", 0) for body in watched.asked]
    assert sorted(asked) == [-1, -0.5, 0, 0.5, 1]
    assert watched.page.locator(".strip .column").count() == 5
    told = watched.page.get_by_role("img", name="These answers").get_attribute("aria-label")
    assert "at -1" in told
    assert "at 1" in told
    assert watched.page.locator(".curve canvas").count() >= 1


def test_faults_are_shown_at_the_fields_that_they_name(watched):
    watched.section("Sampling")
    field = watched.page.get_by_label("Temperature")
    field.fill("-1")
    watched.page.locator("[data-path=temperature] .fault").wait_for()
    assert field.get_attribute("aria-invalid") == "true"
    field.fill("0.7")
    watched.page.locator("[data-path=temperature] .fault").wait_for(state="detached")
    watched.section("Rewards and search")
    watched.page.get_by_label("Search").select_option("best-of-n")
    watched.page.get_by_label("At most", exact=True).fill("0")
    place = '[data-path="alignment.search.rewards[0].at_most"] .fault'
    watched.page.locator(place).wait_for()
    watched.page.get_by_label("Your question").fill("the sea")
    watched.page.get_by_role("button", name="Ask", exact=True).click()
    watched.column("B").get_by_role("alert").wait_for()
    watched.page.locator(place).wait_for()


def test_the_copies_say_the_same_request(watched, served, tmp_path):
    watched.slider("calm").fill("0.5")
    watched.section("Preferences")
    watched.section("Guides")
    watched.page.get_by_text("Add a guide").click()
    watched.page.get_by_role("button", name="contrast The").click()
    hard = 'It\'s "on": no\\yes, \u2028 größe 🐈 # $(x) `y`'
    watched.page.get_by_label("Principle").fill(hard)
    watched.ask("say 'hi' $HOME")
    watched.column("B").get_by_role("button", name="Copy request").click()
    copies, shown = {}, watched.column("B").locator("pre")
    for name in ("curl", "Python", "YAML"):
        watched.column("B").get_by_role("button", name=name, exact=True).click()
        copies[name] = shown.evaluate("(one) => one.textContent")
    alignment = watched.asked[-1]["alignment"]
    assert alignment["guides"][0]["principle"] == hard
    assert parse(Alignment, yaml.safe_load(copies["YAML"])) == parse(Alignment, alignment)
    text = served.chat("say 'hi' $HOME", **{**watched.asked[-1], "stream": False}).json()
    text = text["choices"][0]["message"]["content"]
    done = subprocess.run(["bash", "-c", copies["curl"]], capture_output=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == text
    done = subprocess.run(
        [sys.executable, "-c", copies["Python"]], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip("\n") == text.strip("\n"), done.stderr


def test_hostile_text_stays_text(watched):
    hostile = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'
    frames = [
        {"choices": [{"delta": {"content": hostile}, "logprobs": None, "finish_reason": None}]},
        {"choices": [{"delta": {}, "logprobs": None, "finish_reason": "stop"}]},
    ]
    body = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n"
    watched.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=body, content_type="text/event-stream"),
    )
    watched.ask("the sea")
    assert watched.text("A") == hostile
    watched.page.get_by_text("Words that differ from A").click()
    assert watched.text("B") == hostile
    assert watched.page.evaluate("window.hacked") is None
    assert watched.page.locator(".answer img, .answer script").count() == 0


def test_a_server_with_keys_is_used_with_one(tiny, context, folder):
    keys = Keys(folder / "keys.json")
    admin, mere = keys.add("admin", admin=True), keys.add("me")
    with serve(tiny.backend, folder / "keys.json") as served:
        watched = Watched(context, served.url)

        def give(key):
            watched.page.get_by_label("API key", exact=True).last.fill(key)
            watched.page.get_by_role("button", name="Use this key").click()
            watched.page.get_by_text("Your mix").first.wait_for()

        watched.page.get_by_role("dialog", name="API key").wait_for()
        give(mere)
        watched.page.get_by_role("button", name="Save…").click()
        watched.page.get_by_label("Name").fill("ward")
        watched.page.get_by_role("button", name="Save on the server").click()
        assert "admin key" in watched.page.locator(".naming").get_by_role("alert").inner_text()
        watched.page.get_by_role("button", name="Key", exact=True).click()
        give(admin)
        watched.page.get_by_role("button", name="Save on the server").click()
        watched.page.locator("option[value=sward]").wait_for(state="attached")
        assert (folder / ".fader" / "profiles" / "ward.yaml").exists()
        assert not watched.wrong
        context.pages[0].close()


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not there; run `make test-browser`")
@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_passes_axe(chromium, served, folder, width, scheme):
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    watched = Watched(context, served.url)
    assert not watched.faults()
    for title in ("Preferences", "Guides", "Rewards and search", "Sampling"):
        watched.section(title)
    watched.page.get_by_text("Add a guide").click()
    assert not watched.faults()
    watched.page.get_by_role("button", name="contrast The").click()
    watched.page.get_by_label("Search").select_option("best-of-n")
    watched.slider("loud").fill("1")
    watched.ask("the sea", temperature=0.7)
    watched.column("A").locator(".token").nth(1).click()
    watched.column("B").get_by_role("button", name="Copy request").click()
    assert not watched.faults()
    watched.page.get_by_text("Words that differ from A").click()
    watched.column("B").get_by_role("button", name="better").click()
    watched.page.get_by_role("button", name="Votes (1)").click()
    assert not watched.faults()
    watched.page.keyboard.press("Escape")
    watched.page.get_by_role("button", name="Sweep").first.click()
    watched.page.locator("form").get_by_role("button", name="Sweep").click()
    watched.page.get_by_role("img", name="These answers").wait_for()
    assert not watched.faults()
    wide = watched.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, "the page is wider than the screen"
    context.close()
