"""Preferences in the context: typed tiers, a conflict rule, and the ways to say them.

MetaAlign (arXiv 2410.14184) trains a model to obey a meta prompt with two tiers above the user's
query: the provider's guidelines between <System Info> tags and the user's background and
preferences between <User Info> tags. The tiers and their tags are the paper's; the wording of the
conflict rule is ours: avoiding harm comes first, then the provider, then the user. `tiers` leaves
the rule out, for models that were taught it.

PAD (arXiv 2410.04070) and Linear Alignment tell the model a principle; `principle` is that
rendering: one user turn with the paper's three section titles, the question after the last of them.

Implicit preferences are facts about the user, or a history of answers they chose and rejected, from
which the model is to infer. A history may grow without end: the newest choices are told, as many as
the model has room for.

What people write is text, whatever it looks like. The tags and titles of a rendering that stand in
it get other brackets, in whatever disguise (lookalikes.py), so that no text can close its tier and
open another. Control tokens in it are read as the characters they are written with: only the chat
template ends a turn.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import regex  # type: ignore[import-untyped]
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fader.methods.lookalikes import change_brackets, folded
from fader.methods.tokens import marked, template_ids, text_ids
from fader.request import Message, Preferences
from fader.schema import whole_characters

CONFLICT_RULE = (
    "If these instructions disagree: avoiding harm to anyone comes first, then the provider's"
    " guidelines, then the user's preferences. Follow each of them as far as the ones before it"
    " allow."
)


# Of a folded text: what may stand in a tag beside letters, and between letters where no slash and
# no closing bracket tells a tag from code.
_ANY = r"[^\p{L}\p{N}<>()\[\]{}]*+"
_GAP = r"[\s\p{Pd}\p{Pc}]*+"
_JOIN = r"[\p{Pd}\p{Pc}]*+"
_WORD = r"[\p{L}\p{N}]"


def _words(words: Sequence[str], gap: str) -> str:
    """Any of the words, as it looks, with gaps between its letters."""
    each = (gap.join(map(folded, word)) for word in words)
    return f"(?:{'|'.join(each)})".replace("m", f"(?:m|r{gap}n)").replace("i", "[i|]")


# `<System Info>`, `</User Info>` in any disguise: closed, or with a slash, or else unlike code,
# such as `a < user_info` or `<user-info-card>`.
_TAGS = ("systeminfo", "userinfo")
_CODE = rf"(?<={_WORD}[ \t]*<|[)\]][ \t]*<)=?[ \t]*{_words(_TAGS, _JOIN)}(?![^<>\n]*+>)"
_TAG = regex.compile(
    r"(?P<open><)(?:"
    rf"{_ANY.replace('^', '^/')}/{_ANY}{_words(_TAGS, _ANY)}(?!{_JOIN}{_WORD})"
    rf"|{_ANY}{_words(_TAGS, _ANY)}{_ANY}(?=>)"
    rf"|(?!{_CODE}){_ANY}{_words(_TAGS, _GAP)}(?![\p{{Pd}}\p{{Pc}}.:]*+{_WORD})"
    rf"){_ANY}(?P<close>>)?"
)
_TITLES = ("guidelines", "principles", "instruction")
_TITLE = regex.compile(rf"(?P<open>\[){_ANY}{_words(_TITLES, _ANY)}{_ANY}(?P<close>\])")


def render(preferences: Preferences) -> str:
    """The text of `preferences` that goes above the query; empty where there are none."""
    if preferences.empty:
        return ""
    say = {"meta": _meta, "tiers": _tiers, "system": _system, "principle": _principle}
    return say[preferences.rendering](preferences)


def newest_that_fit(
    preferences: Sequence[Preferences], fits: Callable[[Sequence[Preferences]], bool]
) -> tuple[Sequence[Preferences], int]:
    """The preferences with the newest choices of their histories, as many of each as fit, and how
    many of the oldest are left out. Where nothing fits, all are."""

    def newest(count: int) -> list[Preferences]:
        return [
            one.model_copy(update={"history": one.history[max(0, len(one.history) - count) :]})
            for one in preferences
        ]

    most = max((len(one.history) for one in preferences), default=0)
    if not most:
        return preferences, 0
    high = 1
    while high < most and fits(newest(high)):  # from below: the whole may be very long
        high *= 2
    counts = range(1, min(high, most) + 1)
    kept = newest(bisect_left(counts, True, key=lambda count: not fits(newest(count))))
    left_out = sum(len(one.history) for one in preferences) - sum(len(one.history) for one in kept)
    return kept, left_out


def conversation(
    messages: Sequence[Message],
    preferences: Sequence[Preferences],
    tokenizer: PreTrainedTokenizerBase,
    prefill: str | None = None,
) -> str:
    """The text that the model reads: the messages under the preferences, in the model's chat
    template, ready for the assistant to answer.

    A principle stands in the last user turn, other preferences in the system turn. Where the
    template has no system role, system text goes above the last user turn; a model without a
    template reads plain paragraphs. Raises ValueError where the template refuses the conversation.
    """
    return _written(_turns(messages, preferences, tokenizer), tokenizer) + (prefill or "")


def prompt_ids(
    messages: Sequence[Message],
    preferences: Sequence[Preferences],
    tokenizer: PreTrainedTokenizerBase,
    prefill: str | None = None,
) -> list[int]:
    """`conversation` as token ids, in which the template's control tokens are tokens, and those
    that are spelled in messages, preferences and prefill are text. A model without a template gets
    its begin tokens. Raises ValueError as `conversation` does."""
    turns = _turns(messages, preferences, tokenizer)
    if tokenizer.chat_template is None:
        return text_ids(_written(turns, tokenizer) + (prefill or ""), tokenizer, begin=True)
    marks: dict[str, str] = {}
    turns = [
        {"role": turn["role"], "content": marked(turn["content"], marks, tokenizer)}
        for turn in turns
    ]
    text = _written(turns, tokenizer) + marked(prefill or "", marks, tokenizer)
    return template_ids(text, marks, tokenizer)


def raw_ids(
    raw: str | Sequence[int],
    preferences: Sequence[Preferences],
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """A text that the model continues as it is, or its token ids, as token ids: begin tokens first,
    preferences as a paragraph above it. Control tokens that are spelled in it are control tokens:
    whoever writes the whole text writes its turns too."""
    told = [one for one in preferences if not one.empty]
    above = text_ids("".join(f"{render(one)}\n\n" for one in told), tokenizer)
    begin = list(tokenizer("")["input_ids"]) if tokenizer.bos_token_id is not None else []
    begin = [token for token in begin if token == tokenizer.bos_token_id]
    if isinstance(raw, str):
        whole_characters(raw)
        ids = list(tokenizer(raw, add_special_tokens=False)["input_ids"])
        ids = ids if ids[: len(begin)] == begin else [*begin, *ids]
    else:
        ids = list(raw)
    start = len(begin) if ids[: len(begin)] == begin else 0
    return [*ids[:start], *above, *ids[start:]]


def ending_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the chat template writes after an assistant's answer, as token ids."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ANSWER-MARK"}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    return template_ids(text.rpartition("ANSWER-MARK")[2], {}, tokenizer)


def _turns(
    messages: Sequence[Message],
    preferences: Sequence[Preferences],
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, str]]:
    """The turns that the template gets."""
    told = [one for one in preferences if not one.empty]
    principles = [one for one in told if one.rendering == "principle"]
    neutral: list[Callable[[str], str]] = [_untitled] if principles else []
    if any(one.rendering in ("meta", "tiers") for one in told):
        neutral.append(_untagged)
    lines = [_beside(one, neutral) for one in told if one not in principles]
    above = "\n\n".join([*lines, *([CONFLICT_RULE] if _unruled(told) else [])])
    turns = [{"role": message.role, "content": message.content} for message in messages]
    for turn in turns:
        for change in neutral:
            turn["content"] = change(turn["content"])
    if principles:
        _above_the_question(turns, _beside(_together(principles), neutral), " ")
    if above and turns[0]["role"] == "system":
        turns[0]["content"] += f"\n\n{above}"
    elif above:
        turns.insert(0, {"role": "system", "content": above})
    if (
        turns[0]["role"] == "system"
        and tokenizer.chat_template is not None
        and not has_system_role(tokenizer)
    ):
        _above_the_question(turns, turns.pop(0)["content"], "\n\n")
    return turns


def _unruled(told: Sequence[Preferences]) -> bool:
    """Whether the two tiers speak, but each in preferences of its own, so that none of them has the
    rule that keeps them apart. Where one of them are bare tiers, the model was taught the rule."""
    principles = _together(one for one in told if one.rendering == "principle")
    rendered = [*(one for one in told if one.rendering != "principle"), principles]
    tiers = [(bool(one.provider), bool(one.user or one.facts or one.history)) for one in rendered]
    ruled = any(one.rendering in ("meta", "tiers") and not one.empty for one in rendered)
    both = [any(speaks) for speaks in zip(*tiers, strict=True)] == [True, True]
    return both and not ruled and (True, True) not in tiers


def _beside(preferences: Preferences, neutral: Sequence[Callable[[str], str]]) -> str:
    """The text of preferences without the tags and titles of those that stand beside them."""
    own = {"meta": _untagged, "tiers": _untagged, "principle": _untitled}.get(preferences.rendering)
    text = render(preferences)
    for change in neutral:
        if change is not own:
            text = change(text)
    return text


def _above_the_question(turns: list[dict[str, str]], text: str, between: str) -> None:
    """Put a text into the last user turn, before what the user says."""
    last = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
    if last is None:
        place = 1 if turns and turns[0]["role"] == "system" else 0
        turns.insert(place, {"role": "user", "content": text})
    else:
        last["content"] = f"{text}{between}{last['content']}"


def _written(turns: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """The turns in the model's chat template, up to where the assistant begins."""
    if tokenizer.chat_template is None:
        return "\n\n".join(turn["content"] for turn in turns) + "\n\n"
    try:
        return str(
            tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        )
    except TemplateError as error:
        raise ValueError(
            f"messages: the model's chat template refuses this conversation: {error}"
        ) from error


def has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template says what a system turn says."""
    turns = [{"role": "system", "content": "SYSTEM-MARK"}, {"role": "user", "content": "hello"}]
    try:
        return "SYSTEM-MARK" in str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError:
        return False


def _meta(preferences: Preferences) -> str:
    return _tagged([*preferences.provider, CONFLICT_RULE], preferences)


def _tiers(preferences: Preferences) -> str:
    return _tagged(preferences.provider, preferences)


def _tagged(provider: Sequence[str], preferences: Preferences) -> str:
    """The lines of each tier between its tags; a tier without lines is left out."""
    tiers = {"System": provider, "User": [*preferences.user, *_implicit(preferences)]}
    found = []
    for name, lines in tiers.items():
        if lines:
            found += [f"<{name} Info>", _untagged("\n".join(lines)), f"</{name} Info>"]
    return "\n".join(found)


def _system(preferences: Preferences) -> str:
    return "\n".join(_lines(preferences))


def _principle(preferences: Preferences) -> str:
    return (
        "[Guidelines] Write your response so that it follows the principle below. [Principles]"
        f" {_untitled(' '.join(_lines(preferences)))} [Instruction]"
    )


def _lines(preferences: Preferences) -> list[str]:
    """Both tiers one after the other, with the rule that keeps them apart where there are two."""
    lines = [*preferences.provider, *preferences.user, *_implicit(preferences)]
    if preferences.provider and len(lines) > len(preferences.provider):
        lines.append(CONFLICT_RULE)
    return lines


def _together(preferences: Iterable[Preferences]) -> Preferences:
    """Several preferences as one, to be rendered as a principle."""
    all_of_them = list(preferences)
    return Preferences(
        provider=tuple(text for one in all_of_them for text in one.provider),
        user=tuple(text for one in all_of_them for text in one.user),
        facts=tuple(text for one in all_of_them for text in one.facts),
        history=tuple(choice for one in all_of_them for choice in one.history),
        rendering="principle",
    )


def _untagged(text: str) -> str:
    """The text with [] for the <> of MetaAlign's tags."""
    return change_brackets(text, _TAG, ("[", "]"))


def _untitled(text: str) -> str:
    """The text with () for the [] of PAD's section titles."""
    return change_brackets(text, _TITLE, ("(", ")"))


def _implicit(preferences: Preferences) -> list[str]:
    lines = []
    if preferences.facts:
        lines.append("About the user, to infer what suits them: " + " ".join(preferences.facts))
    for choice in preferences.history:
        asked = f' when asked "{choice.prompt}"' if choice.prompt else ""
        lines.append(
            f'Earlier{asked} the user liked the answer "{choice.chosen}" better than'
            f' "{choice.rejected}". Answer in the way they like.'
        )
    return lines
