"""Preferences in the context: typed tiers, a conflict rule, and three ways to say them.

MetaAlign (arXiv 2410.14184) trains a model to obey a meta prompt with two tiers above the user's
query: the provider's guidelines between <System Info> tags and the user's background and
preferences between <User Info> tags. The tiers and their tags are the paper's; the wording of the
conflict rule is ours: avoiding harm comes first, then the provider, then the user.

PAD (arXiv 2410.04070) and Linear Alignment tell the model a principle; `principle` is that
rendering, with the same three section titles.

Implicit preferences are facts about the user, or a history of answers they chose and rejected, from
which the model is to infer.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fader.request import Message, Preferences

CONFLICT_RULE = (
    "If these instructions disagree: avoiding harm to anyone comes first, then the provider's"
    " guidelines, then the user's preferences. Follow each of them as far as the ones before it"
    " allow."
)


def render(preferences: Preferences) -> str:
    """The text of `preferences` that goes above the query; empty where there are none."""
    if preferences.empty:
        return ""
    return {"meta": _meta, "system": _system, "principle": _principle}[preferences.rendering](
        preferences
    )


def conversation(
    messages: Sequence[Message],
    preferences: Sequence[Preferences],
    tokenizer: PreTrainedTokenizerBase,
    prefill: str | None = None,
) -> str:
    """The text that the model reads: the messages under the preferences, in the model's chat
    template, ready for the assistant to answer.

    Where the template has no system role, system text goes above the last user turn; a model
    without a template reads plain paragraphs.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    if above := "\n\n".join(render(one) for one in preferences if not one.empty):
        if turns[0]["role"] == "system":
            turns[0] = {"role": "system", "content": f"{turns[0]['content']}\n\n{above}"}
        else:
            turns.insert(0, {"role": "system", "content": above})
    if tokenizer.chat_template is None:
        return "\n\n".join(turn["content"] for turn in turns) + "\n\n" + (prefill or "")
    if turns[0]["role"] == "system" and not has_system_role(tokenizer):
        said = turns.pop(0)["content"]
        last = max(
            (place for place, turn in enumerate(turns) if turn["role"] == "user"), default=None
        )
        if last is None:
            turns.insert(0, {"role": "user", "content": said})
        else:
            turns[last] = {"role": "user", "content": f"{said}\n\n{turns[last]['content']}"}
    try:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ) + (prefill or "")
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
    provider = "\n".join([*preferences.provider, CONFLICT_RULE])
    user = "\n".join([*preferences.user, *_implicit(preferences)])
    return f"<System Info>\n{provider}\n</System Info>" + (
        f"\n<User Info>\n{user}\n</User Info>" if user else ""
    )


def _system(preferences: Preferences) -> str:
    lines = [*preferences.provider, *preferences.user, *_implicit(preferences)]
    if preferences.provider and len(lines) > len(preferences.provider):
        lines.append(CONFLICT_RULE)
    return "\n".join(lines)


def _principle(preferences: Preferences) -> str:
    principles = " ".join([*preferences.provider, *preferences.user, *_implicit(preferences)])
    return (
        "[Guidelines] Write your response so that it follows the principle below. [Principles]"
        f" {principles} [Instruction]"
    )


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
