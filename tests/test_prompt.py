import pytest
from conftest import NO_SYSTEM, tokenizer

from fader.methods.prompt import CONFLICT_RULE, conversation, has_system_role, render
from fader.request import Choice, Message, Preferences

ASK = (Message(role="user", content="the sea"),)


def test_empty_prompt_is_off():
    assert render(Preferences()) == ""
    assert conversation(ASK, (), tokenizer()) == "<|user|>the sea<|end|><|assistant|>"


def test_meta_has_the_two_tiers_and_the_conflict_rule():
    text = render(
        Preferences(provider=("No medical advice.",), user=("Be brief.",), facts=("I am a nurse.",))
    )
    assert text.startswith(
        "<System Info>\nNo medical advice.\n"
        + CONFLICT_RULE
        + "\n</System Info>\n<User Info>\nBe brief."
    )
    assert text.endswith("I am a nurse.\n</User Info>")
    assert (
        CONFLICT_RULE.index("harm") < CONFLICT_RULE.index("provider") < CONFLICT_RULE.index("user")
    )
    assert "<User Info>" not in render(Preferences(provider=("No medical advice.",)))


def test_renderings_say_the_same_preferences():
    prompt = Preferences(
        provider=("Stay safe.",),
        user=("Be brief.",),
        history=(Choice(prompt="tea?", chosen="Yes.", rejected="Well, perhaps."),),
    )
    for rendering in ("meta", "system", "principle"):
        text = render(prompt.model_copy(update={"rendering": rendering}))
        assert (
            text.index("Stay safe.")
            < text.index("Be brief.")
            < text.index('"Yes."')
            < text.index('"Well, perhaps."')
        )
    assert "[Principles]" in text
    assert CONFLICT_RULE not in render(Preferences(user=("Be brief.",), rendering="system"))


def test_the_requests_own_system_message_comes_first():
    messages = (Message(role="system", content="You are Ada."), *ASK)
    text = conversation(
        messages, (Preferences(user=("Be brief.",), rendering="system"),), tokenizer()
    )
    assert text == "<|system|>You are Ada.\n\nBe brief.<|end|><|user|>the sea<|end|><|assistant|>"


@pytest.mark.parametrize("turns", [1, 3])
def test_without_a_system_role_the_tiers_go_into_the_last_user_turn(turns):
    words = tokenizer(NO_SYSTEM)
    assert not has_system_role(words)
    assert has_system_role(tokenizer())
    messages = (
        ASK
        if turns == 1
        else (
            *ASK,
            Message(role="assistant", content="yes"),
            Message(role="user", content="and you"),
        )
    )
    text = conversation(messages, (Preferences(user=("Be brief.",), rendering="system"),), words)
    assert text.endswith(f"<|user|>Be brief.\n\n{messages[-1].content}<|end|><|assistant|>")


def test_without_a_template_paragraphs_are_read():
    assert (
        conversation(
            ASK, (Preferences(user=("Be brief.",), rendering="system"),), tokenizer(None), "It"
        )
        == "Be brief.\n\nthe sea\n\nIt"
    )
