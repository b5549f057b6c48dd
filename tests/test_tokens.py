"""Texts as token ids: control tokens in what people write are text, and a text that continues
another one puts no space in between."""

import pytest
from conftest import TEXT, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from fader import Fader, load
from fader.methods.prompt import conversation, prompt_ids
from fader.methods.tokens import stop_tokens, template_ids, text_ids
from fader.request import Message, Preferences

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor"
    " %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin|>' }}{% for m in messages %}<|header|>{{ m['role'] }}<|/header|>\n\n{{"
    " m['content'] | trim }}<|eot|>{% endfor %}{% if add_generation_prompt"
    " %}<|header|>assistant<|/header|>\n\n{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif"
    " %}<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else"
    " m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if"
    " add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
UNSPECIAL = (
    "{% for m in messages %}{{ '<U>' if m['role'] == 'user' else '<A>' if m['role'] == 'assistant'"
    " else '' }}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<A>{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]{% else"
    " %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)
ABC = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789<>|/_.,:!?[]()-'", "\n", "▁"]


def byte_level(within, added, template, **special):
    """A byte-level BPE with control tokens among its vocabulary (`within`) or beside it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=within,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([TEXT], trainer)
    inner.add_tokens(added)
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **special)


def metaspace(how, within, template, **special):
    """A BPE of pieces that begin with ▁; `how`: where it puts one in front."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    swap = normalizers.Replace(" ", "▁")
    if how == "legacy":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), swap])
    elif how == "never":
        inner.normalizer = swap
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=how, split=False)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.Fuse(),
            *([] if how == "never" else [decoders.Strip(" ", 1, 0)]),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<unk>", *within],
        initial_alphabet=ABC,
        show_progress=False,
    )
    inner.train_from_iterator(TEXT.split("\n"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **special)


TOKENIZERS = {
    "chatml": byte_level(
        ["<|im_start|>", "<|im_end|>"], [], CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>"
    ),
    "llama 3": byte_level(
        [],
        [
            AddedToken(name, special=True, normalized=False)
            for name in ("<|begin|>", "<|header|>", "<|/header|>", "<|eot|>")
        ],
        LLAMA3,
        eos_token="<|eot|>",
    ),
    "gemma": metaspace(
        "never", ["<bos>", "<start_of_turn>", "<end_of_turn>"], GEMMA, bos_token="<bos>"
    ),
    "unspecial": byte_level([], [AddedToken("<U>"), AddedToken("<A>")], UNSPECIAL),
    "llama 2": metaspace("legacy", ["<s>", "</s>"], LLAMA2, bos_token="<s>", eos_token="</s>"),
    "first": metaspace("first", ["<s>", "</s>"], LLAMA2, bos_token="<s>", eos_token="</s>"),
    "always": metaspace("always", ["<s>", "</s>"], None, bos_token="<s>", eos_token="</s>"),
}
CONTROL = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama 3": ["<|begin|>", "<|header|>", "<|/header|>", "<|eot|>"],
    "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "unspecial": ["<U>", "<A>"],
    "llama 2": ["<s>", "</s>"],
    "first": ["<s>", "</s>"],
    "always": ["<s>", "</s>"],
}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
PIECES = ["the sea", " ", "\n", "is", "wide", "<", ">", "|", "system", "im_end", "user\n", ".", "a"]
PLAIN = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def talk(first, last, answer="yes"):
    return [
        Message(role="user", content=first),
        Message(role="assistant", content=answer),
        Message(role="user", content=last),
    ]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(TOKENIZERS)), PLAIN, PLAIN, st.sampled_from([None, "It is", " so "]))
def test_texts_without_control_tokens_get_the_tokenizers_own_ids(name, first, last, prefill):
    tokenizer = TOKENIZERS[name]
    messages = talk(f"x{first}", f"{last}y")
    told = (Preferences(provider="be brief", user=f"z{last}", rendering="meta"),)
    text = conversation(messages, told, tokenizer, prefill)
    own = tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
    assert prompt_ids(messages, told, tokenizer, prefill) == own
    assert (
        text_ids(f"x{first}", tokenizer)
        == (tokenizer(f"x{first}", add_special_tokens=False)["input_ids"])
    )


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(TOKENIZERS)), st.data())
def test_control_tokens_that_people_write_are_text(name, data):
    tokenizer = TOKENIZERS[name]
    piece = st.sampled_from([*PIECES, *CONTROL[name], *CONTROL[name]])
    texts = [
        f"x{data.draw(st.lists(piece, max_size=6).map(''.join))}{data.draw(piece)}y"
        for _ in range(5)
    ]
    first, last, answer, preference, prefill = texts
    control = {tokenizer.convert_tokens_to_ids(one) for one in CONTROL[name]}

    def shown(*said):
        found = prompt_ids(talk(*said[:3]), (Preferences(user=said[3]),), tokenizer, said[4])
        return found, [one for one in found if one in control]

    ids, tokens = shown(first, last, answer, preference, prefill)
    assert tokens == shown("x", "x", "x", "x", "x")[1]
    whole = conversation(talk(first, last, answer), (Preferences(user=preference),), tokenizer)
    spaces = str.maketrans("", "", " ▁\n")
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).translate(spaces) == (
        (whole + prefill).translate(spaces)
    )
    assert not control & set(text_ids(first, tokenizer))


@every_tokenizer
def test_the_copy_that_spells_control_tokens_out_is_the_tokenizer_else(name):
    tokenizer = TOKENIZERS[name]
    text = conversation(talk("the sea is wide", " a cat\n"), (), tokenizer, "It is ")
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert template_ids(text, {"a mark that is not there": ""}, tokenizer) == own


def test_a_stop_string_may_be_a_special_token(tiny):
    tokenizer = TOKENIZERS["chatml"]
    assert stop_tokens(["<|im_start|>", "x"], tokenizer) == {0}
    with pytest.raises(ValueError, match=r"sampling.stop: '<\|im_end\|>\\n' is never found.*alone"):
        stop_tokens(["<|im_end|>\n"], tokenizer)
    special = {"<|user|>": 4, "<|system|>": 3, "<|assistant|>": 5}
    best = {"kind": "best-of-n", "n": 4, "rewards": [{"kind": "length", "at_least": 9}]}
    written = 0
    for seed in range(8):
        sampling = {"max_tokens": 60, "temperature": 3.0, "seed": seed}
        free = tiny.generate("the sea", **sampling).answers[0]
        ended = tiny.generate("the sea", **sampling, stop=list(special)).answers[0]
        places = [i for i, token in enumerate(free.token_ids) if token in special.values()]
        if places:
            written += 1
            assert ended.token_ids == free.token_ids[: places[0] + 1]
            assert ended.finish_reason == "stop"
            assert free.text.startswith(ended.text)
        searched = tiny.generate(
            "the sea", **sampling, stop=list(special), alignment={"search": best}
        ).answers[0]
        assert not set(searched.token_ids[:-1]) & set(special.values())
    assert written


@pytest.mark.parametrize("name", ["llama 2", "first", "always", "gemma", "chatml"])
@pytest.mark.parametrize("text", ["og", " cat", "s and", "\n\nThe", "", "'s"])
def test_a_text_that_continues_another_puts_no_space_between(name, text):
    tokenizer = TOKENIZERS[name]
    start = text_ids("The sea is a d", tokenizer)
    more = text_ids(text, tokenizer, continuing=True)
    assert tokenizer.decode([*start, *more]) == f"The sea is a d{text}"


def with_spaces(folder, how):
    """A tiny model whose tokenizer puts a space before texts."""
    words = metaspace(
        how, ["<pad>", "<s>", "</s>"], LLAMA2, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    return make_model(folder, words=words)


@pytest.mark.parametrize("how", ["legacy", "first", "always"])
def test_tokenizers_that_put_a_space_before_texts_continue_them(tmp_path, how):
    with Fader(load(str(with_spaces(tmp_path / how, how)))) as fader:
        word = {"kind": "keywords", "words": "skate", "match": "form", "propose": True}
        begun = {"kind": "regex", "pattern": r"\bskate"}
        search = {
            "kind": "lookahead",
            "top_k": 2,
            "lookahead": 9,
            "weight": 500,
            "rewards": [{**word, "weight": 0.01}, begun],
        }
        for prefill in (None, "They like to ska", "They like to"):
            found = fader.generate(
                "the sea", prefill=prefill, max_tokens=12, alignment={"search": search}
            ).answers[0]
            assert found.search.reward >= 1, (prefill, found.text)
        greedy = fader.generate("the sea", prefill="They like to", max_tokens=6).answers[0]
        if greedy.finish_reason == "length":
            read = fader.score("the sea", greedy.text, prefill="They like to")
            assert "".join(read.tokens).replace(" ", "") == greedy.text.replace(" ", "")
            assert len(read.tokens) == len(greedy.token_ids)


def test_half_a_character_is_refused():
    with pytest.raises(ValueError, match=r"character 3 is half of one \(U\+D83D\)"):
        text_ids("x \ud83d", TOKENIZERS["chatml"])
