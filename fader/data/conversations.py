"""One record of preference data as a conversation and two answers to it, whatever form it has.

| form | fields |
|---|---|
| TRL, standard | prompt, chosen, rejected as text; without a prompt, what both begin with |
| TRL, conversational | the same as messages; without a prompt, chosen and rejected are whole |
| UltraFeedback, distilabel | prompt is the question as text, chosen and rejected are whole |
| HH | chosen and rejected (or prompt) are transcripts: "Human: ... Assistant: ..." |
| OpenAI | input.messages, preferred_output, non_preferred_output |
| ShareGPT | conversations of {from, value}, chosen, rejected |
| Orca | system, question (or input), chosen, rejected |
| PKU-SafeRLHF | prompt, response_0, response_1, better_response_id, safer_response_id |
| HelpSteer | prompt, response, and columns of ratings: one record an answer |
| UltraFeedback, rated | instruction, completions of {response, annotations, overall_score} |
| distilabel, rated | instruction, generations, ratings |

The set of fields is closed. What could belong to the conversation and is not understood is refused;
any other column is ignored, and `unknown` names it. Everything that a record says of its
conversation has to agree: prompt, system, and the histories of both answers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fader.request import Message
from fader.schema import parse, short

Turns = tuple[Message, ...]
Row = Mapping[str, Any]

PROMPTS = (
    "prompt",
    "messages",
    "conversations",
    "question",
    "query",
    "instruction",
    "input",
)
SYSTEMS = ("system", "system_prompt")
ANSWERS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_response", "rejected_response"),
)
RESPONSES = ("response_0", "response_1")
PREFERENCES = ("better_response_id", "safer_response_id")
RATED = ("response", "completions", "generations")
REFUSED = (
    "audio",
    "chat_template_kwargs",
    "completion",
    "context",
    "conversation",
    "documents",
    "functions",
    "history",
    "image",
    "images",
    "prefix",
    "tools",
    "video",
    "videos",
)
"""Columns that belong to a conversation and that no form here has."""
ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
}
SPEAKERS = {
    *("user", "assistant", "system", *ROLES),
    *("function", "function_call", "ipython", "observation", "tool"),
}
"""Who speaks in conversations, also in those that are refused."""
UNRATED = ("none", "n/a", "na", "nan", "null", "")
"""What stands for a rating that was not given."""
_SCORE = re.compile(r"score|rating|reward")
_PRINTED = re.compile(
    r"\s*\[\s*{\s*'(role'.*?'content|content'.*?'role|from'.*?'value|value'.*?'from)'\s*:", re.S
)
_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
_MARKED = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


_TEMPLATED = re.compile(
    r"\A\s*(<s>|<bos>|<\|begin_of_text\|>)?\s*(\[INST\]|<\|im_start\|>|<\|start_header_id\|>"
    r"|<start_of_turn>|<\|(system|user|assistant|prompter)\|>)"
    r"|(</s>|<end_of_turn>|<\|(im_end|eot_id|end_of_text|endoftext)\|>)\s*\Z"
)
"""How a text begins or ends that somebody's chat template has written."""


class NoPreference(ValueError):
    """A record that is well formed and teaches nothing; why, in words that can be counted."""


@dataclass(frozen=True)
class Comparison:
    """A conversation and two answers to it, the first preferred."""

    messages: Turns
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Rated:
    """A conversation and answers to it, each with its rating."""

    messages: Turns
    answers: tuple[tuple[str, float], ...]
    unrated: int = 0
    """Answers that nobody has rated; they are not among the others."""


def is_rated(row: Row) -> bool:
    """Whether a record holds answers with ratings instead of a chosen and a rejected one."""
    return any(name in row for name in RATED) and not any(
        _given(row.get(chosen)) for chosen, _ in ANSWERS
    )


def unknown(row: Row) -> list[str]:
    """The columns of a record that nothing is taken from."""
    known = {*PROMPTS, *SYSTEMS, *REFUSED, "split", *(name for pair in ANSWERS for name in pair)}
    known |= {*RATED, "ratings"} if is_rated(row) else set()
    known |= {*RESPONSES, *PREFERENCES} if "response_0" in row else set()
    scores = {name for pair in _scores(row) for name in pair}
    found = [name for name in row if name not in known | scores and _given(row[name])]
    if is_rated(row) and any("custom_system_prompt" in one for one in _completions(row)):
        found.append("completions.custom_system_prompt")
    return found


def comparison(row: Row, where: str, rating: str | None = None) -> Comparison:
    """A record as a comparison. Raises ValueError naming `where` and the field that is wrong,
    NoPreference for one whose answers are the same or scored alike.

    `rating`: of PKU-SafeRLHF's columns the one that says which answer is preferred.
    """
    _refuse_others(row, where)
    names, values = _sides(row, where, rating)
    sides = [_turns(value, f"{where}: {name}") for name, value in zip(names, values, strict=True)]
    answers, histories = [], []
    for name, value, side in zip(names, values, sides, strict=True):
        answer, history = _answer(side, value, f"{where}: {name}")
        answers.append(answer)
        histories.append(history)
    prompts = _prompts(row, where)
    if not prompts and not any(histories):
        prompt, answers = _begun_alike(answers, where)
        prompts = {"prompt": prompt}
    history = _agreed(prompts, histories, names, answers[0], where)
    messages = _under_system(history, row, where)
    _check_scores(row, where)
    if answers[0].strip() == answers[1].strip():
        raise NoPreference(f"{names[0]} and {names[1]} are the same")
    return Comparison(messages, *answers)


def rated(row: Row, where: str, rating: str | None) -> Rated:
    """A record of rated answers. Raises ValueError naming `where` and the field that is wrong, also
    where `rating` (the column that says which answer is better) is not given."""
    _refuse_others(row, where)
    if rating is None:
        raise ValueError(
            f"{where}: holds rated answers; name the column that says which is better, as in"
            f" --rating NAME (there are {', '.join(_ratings(row)) or 'none'})"
        )
    prompts = _prompts(row, where)
    if not prompts:
        raise ValueError(f"{where}: prompt: must be a text or messages (there is none)")
    found = [
        (field, text, _rating(value, f"{where}: {field}: its {rating}"))
        for field, text, value in _rated_answers(row, where, rating)
    ]
    answers = tuple(
        (_text(text, f"{where}: {field}"), score)
        for field, text, score in found
        if not math.isnan(score)
    )
    history = _agreed(prompts, [None], (), answers[0][0] if answers else "", where)
    return Rated(_under_system(history, row, where), answers, len(found) - len(answers))


def best_and_worst(found: Rated) -> Comparison:
    """The best-rated answer over the worst-rated one. Raises NoPreference where no two differ."""
    if len(found.answers) < 2:
        raise NoPreference("there are no two rated answers to compare")
    best, worst = (pick(found.answers, key=lambda answer: answer[1]) for pick in (max, min))
    if best[1] == worst[1]:
        raise NoPreference("its answers are rated alike")
    if best[0].strip() == worst[0].strip():
        raise NoPreference("its answers are the same")
    return Comparison(found.messages, best[0], worst[0])


def _given(value: Any) -> bool:
    """Whether a cell says anything."""
    return value is not None and not (isinstance(value, str | list | dict) and not value)


def refuse_misspelt(row: Row, where: str, known: Iterable[str]) -> None:
    """Raises ValueError for a column that is a known one in other letters, as `Split` is."""
    spelt = {name.lower(): name for name in known}
    for name in row:
        meant = spelt.get(str(name).strip().lower(), name)
        if meant != name and _given(row[name]):
            raise ValueError(f"{where}: {name}: call the column {meant!r}, or take it out")


def _refuse_others(row: Row, where: str) -> None:
    answers = (name for pair in ANSWERS for name in pair)
    refuse_misspelt(row, where, (*PROMPTS, *SYSTEMS, *answers, *RESPONSES, *PREFERENCES, "split"))
    systems = [name for name in row if "system" in str(name).lower() and name not in SYSTEMS]
    for name in (*REFUSED, *systems):
        if _given(row.get(name)):
            raise ValueError(
                f"{where}: {name}: is not understood (got {short(row[name])}); put what it says"
                " into the prompt's messages, or take the column out"
            )


def _sides(row: Row, where: str, rating: str | None) -> tuple[tuple[str, str], list[Any]]:
    """The names and the values of the preferred and of the other answer."""
    pairs = [pair for pair in ANSWERS if any(_given(row.get(name)) for name in pair)]
    if len(pairs) > 1:
        raise ValueError(f"{where}: has both {pairs[0][0]} and {pairs[1][0]}; keep one of the two")
    if pairs and rating is not None:
        raise ValueError(
            f"{where}: {rating}: {pairs[0][0]} says which answer is better already; leave --rating"
            " out"
        )
    if pairs:
        return pairs[0], [row.get(name) for name in pairs[0]]
    if not any(name in row for name in RESPONSES):
        columns = ", ".join(map(str, row)) or "none"
        raise ValueError(f"{where}: chosen: must be a text or messages (the columns are {columns})")
    said = [name for name in ([rating] if rating else PREFERENCES) if row.get(name) is not None]
    picked = {str(row[name]) for name in said}
    if not said:
        raise ValueError(f"{where}: {rating or PREFERENCES[0]}: must be 0 or 1 (there is none)")
    if len(picked) > 1:
        raise ValueError(
            f"{where}: better_response_id is {row[said[0]]} and safer_response_id is"
            f" {row[said[1]]}; name the one that is meant, as in --rating {said[0]}"
        )
    if not picked <= {"0", "1"}:
        raise ValueError(f"{where}: {said[0]}: must be 0 or 1 (got {row[said[0]]!r})")
    first = int(picked.pop())
    names = (RESPONSES[first], RESPONSES[1 - first])
    return names, [row.get(name) for name in names]


def _turns(value: Any, where: str) -> Turns | str | None:
    """A cell as turns, or as the plain text that it is; None where it says nothing."""
    if not _given(value):
        return None
    if isinstance(value, str):
        return _transcript(value, where)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise ValueError(f"{where}: must be a text or messages (got {short(value)})")
    found = tuple(_turn(turn, f"{where}.{place}") for place, turn in enumerate(value))
    for place, turn in enumerate(found):
        if turn.role == "system" and place:
            raise ValueError(f"{where}.{place}: a system turn must be the first one")
    return found


def _turn(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: must be a message, role and content (got {short(value)})")
    fields = {name: inner for name, inner in value.items() if _given(inner)}
    if "from" in fields and not {"role", "content"} & fields.keys():
        fields = {
            {"from": "role", "value": "content"}.get(name, name): inner
            for name, inner in fields.items()
        }
    role = fields.get("role")
    if isinstance(role, str):
        fields["role"] = ROLES.get(role, role)
    content = fields.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        fields["content"] = _parts(content, f"{where}.content")
    return parse(Message, fields, where)


def _parts(parts: Sequence[Any], where: str) -> str:
    """The text of content that is a list of parts, as OpenAI writes it."""
    for place, part in enumerate(parts):
        if not (
            isinstance(part, Mapping)
            and {name for name in part if _given(part[name])} == {"type", "text"}
            and part["type"] == "text"
            and isinstance(part["text"], str)
        ):
            raise ValueError(f"{where}.{place}: must be a part of type text (got {short(part)})")
    return "".join(part["text"] for part in parts)


def _transcript(text: str, where: str) -> Turns | str:
    """The turns of a text that holds a conversation: JSON of messages, as in tables, or a
    transcript; any other text as it is. Raises ValueError for one that is in a chat template."""
    if found := _TEMPLATED.search(text):
        raise ValueError(
            f"{where}: is written in a chat template already ({short(found[0].strip())}); give what"
            " was said alone, the model's own template is put around it"
        )
    if _PRINTED.match(text):
        raise ValueError(f"{where}: holds messages as Python prints them; write them as JSON")
    if re.match(r"\s*[\[{]\s*[\[{\"]", text):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # ValueError also for integers of too many digits
            return text
        first = value[0] if isinstance(value, list) and value else value
        if _is_turn(first):
            return _turns(value, where) or text
        messages = first.get("messages") if isinstance(first, dict) else None
        if isinstance(messages, list) and any(map(_is_turn, messages)):
            return _openai_input(value, where) or text
        return text
    if _MARKED.search(text):
        first, *rest = _MARKED.split(text)
        parts = ["User", first, *rest]
        roles = {"User": "user", "Assistant": "assistant"}
    else:
        heads = _TURN.findall(text)
        if "Assistant" not in heads and re.match(r"\s*Human:.*\n\s*Assistant:", text, re.S):
            raise ValueError(
                f"{where}: is a transcript whose turns are not parted by empty lines (got"
                f" {short(text)}); put one before each Human: and Assistant:, or write messages"
            )
        if not heads or not re.match(r"\s*Human:", text):
            return text
        if not text.startswith(("\n", "\r")) and "Assistant" not in heads:
            return text
        parts = _TURN.split(text)[1:]
        roles = {"Human": "user", "Assistant": "assistant"}
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    if turns[-1][0] == "Assistant" and not turns[-1][1].strip() and where.endswith("prompt"):
        turns.pop()  # a prompt that ends where the answer begins
    return tuple(
        parse(Message, {"role": roles[who], "content": said.strip()}, f"{where}.{place}")
        for place, (who, said) in enumerate(turns)
    )


def _is_turn(value: Any) -> bool:
    """Whether JSON in a text is a turn: somebody who speaks in conversations, or just who and what
    was said. Any other object may have these fields too, such as a letter `from` somebody."""
    return isinstance(value, Mapping) and any(
        isinstance(value.get(who), str) and (value[who] in SPEAKERS or value.keys() == {who, said})
        for who, said in (("role", "content"), ("from", "value"))
    )


def _openai_input(value: Any, where: str) -> Turns | str | None:
    if not (isinstance(value, Mapping) and "messages" in value):
        return _turns(value, where)
    for name, inner in value.items():
        if name not in ("messages", "parallel_tool_calls") and _given(inner):
            raise ValueError(f"{where}.{name}: is not understood (got {short(inner)})")
    return _turns(value["messages"], f"{where}.messages")


def _prompts(row: Row, where: str) -> dict[str, Turns]:
    """What each column says that tells of the conversation before the answers."""
    found = {}
    for name in PROMPTS:
        read = _openai_input if name == "input" else _turns
        value = read(row.get(name), f"{where}: {name}")
        if isinstance(value, str):
            if not value.strip():
                continue
            value = (parse(Message, {"role": "user", "content": value}, f"{where}: {name}"),)
        if value:
            found[name] = value
    return found


def _answer(side: Turns | str | None, value: Any, where: str) -> tuple[str, Turns | None]:
    """A side's answer, and the conversation before it where the side holds that too."""
    if side is None or isinstance(side, str):
        return _text(value, where), None
    last = side[-1]
    if last.role != "assistant":
        raise ValueError(
            f"{where}: must end with the assistant's turn (it ends with the {last.role}'s,"
            f" {short(last.content)})"
        )
    return _text(last.content, where), side[:-1] or None


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: must be a text, or messages that end with one (got {value!r})")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: holds half a surrogate pair (got {short(value)})") from None
    return value


def _begun_alike(answers: Sequence[str], where: str) -> tuple[Turns, list[str]]:
    """TRL's implicit prompt: the words that two texts begin with."""
    same = 0
    while same < min(map(len, answers)) and answers[0][same] == answers[1][same]:
        same += 1
    begun = re.match(r"(.*\S)?(?=\s)", answers[0][: same + 1], re.S)
    prompt = answers[0][:same] if answers[0] == answers[1] else (begun[0] if begun else "")
    if not prompt.strip() or answers[0] == answers[1]:
        raise ValueError(
            f"{where}: prompt must be a text or a list of messages (there is none, and chosen and"
            " rejected do not begin alike)"
        )
    rest = [answer[len(prompt) :] for answer in answers]
    if not all(map(str.strip, rest)):
        raise ValueError(f"{where}: chosen and rejected: one is the beginning of the other")
    return (parse(Message, {"role": "user", "content": prompt}, f"{where}: prompt"),), rest


def _agreed(
    prompts: Mapping[str, Turns],
    histories: Sequence[Turns | None],
    names: Sequence[str],
    chosen: str,
    where: str,
) -> Turns:
    """The conversation that all columns agree on. Raises ValueError naming those that do not."""
    told = {
        name: turns[:-1]
        if turns[-1].role == "assistant" and turns[-1].content.strip() == chosen.strip()
        else turns
        for name, turns in prompts.items()
    }
    longest = max(told, key=lambda name: len(_spoken(told[name])), default=None)
    base = told[longest] if longest else ()
    whole = [
        history if history and history[0].role != "assistant" else (*base, *(history or ()))
        for history in histories
    ]
    if any(_plain(history) != _plain(whole[0]) for history in whole):
        raise ValueError(
            f"{where}: {names[0]} and {names[1]} answer different conversations"
            f" ({_differ(whole[0], whole[1])})"
        )
    agreed = whole[0]
    for name, turns in told.items():
        if not _agrees(turns, agreed):
            other = names[0] if any(histories) else longest
            raise ValueError(
                f"{where}: {name} says another conversation than {other} ({_differ(turns, agreed)})"
            )
    above = [turns[0] for turns in told.values() if turns and turns[0].role == "system"]
    if above and agreed[0].role != "system":
        agreed = (above[0], *agreed)
    for turn in above:
        if turn.content.strip() != agreed[0].content.strip():
            raise ValueError(f"{where}: has two system turns ({_differ((turn,), agreed[:1])})")
    if not agreed or agreed[-1].role != "user":
        last = f"the {agreed[-1].role}'s, {short(agreed[-1].content)}" if agreed else "empty"
        raise ValueError(
            f"{where}: {longest or (names[0] if names else 'prompt')}: the turn before the answers"
            f" must be the user's (it is {last})"
        )
    return agreed


def _agrees(turns: Turns, agreed: Turns) -> bool:
    """Whether these turns are the conversation, or its question alone (the first one or the
    last)."""
    mine, whole = _plain(_spoken(turns)), _plain(_spoken(agreed))
    asked = [turn for turn in whole if turn[0] == "user"]
    return mine == whole or (len(mine) == 1 and mine[0] in (asked[:1] + asked[-1:]))


def _spoken(turns: Turns) -> Turns:
    return turns[1:] if turns and turns[0].role == "system" else turns


def _plain(turns: Iterable[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in turns]


def _differ(one: Turns, two: Turns) -> str:
    """Where two conversations part, quoted."""
    first, second = _plain(one), _plain(two)
    place = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    said = [
        f"{found[place][0]} {short(found[place][1])}" if place < len(found) else "nothing"
        for found in (first, second)
    ]
    return f"turn {place}: {said[0]} against {said[1]}"


def _under_system(history: Turns, row: Row, where: str) -> Turns:
    """The conversation under the text of the record's system column."""
    for name in SYSTEMS:
        value = row.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, str):
            raise ValueError(f"{where}: {name}: must be a text (got {short(value)})")
        if history[0].role == "system":
            if history[0].content.strip() != value.strip():
                raise ValueError(
                    f"{where}: {name}: is {short(value)}, and the conversation's system turn"
                    f" {short(history[0].content)}; keep one of the two"
                )
            continue
        history = (
            parse(Message, {"role": "system", "content": value}, f"{where}: {name}"),
            *history,
        )
    for place, turn in enumerate(history):
        _text(turn.content, f"{where}: turn {place}")
    return history


def _scores(row: Row) -> list[tuple[str, str]]:
    """Pairs of columns that score the chosen and the rejected answer, however they are called."""
    return [
        (name, other)
        for name in row
        if isinstance(name, str)
        and "chosen" in name
        and _SCORE.search(name)
        and (other := name.replace("chosen", "rejected")) in row
    ]


def _check_scores(row: Row, where: str) -> None:
    for name, other in _scores(row):
        high, low = _number(row[name]), _number(row[other])
        if high < low:
            raise ValueError(
                f"{where}: {name} is {row[name]}, below {other}, which is {row[other]}; swap chosen"
                " and rejected, or take the scores out"
            )
        if high == low:
            raise NoPreference(f"{name} and {other} are the same")


def _number(value: Any) -> float:
    """A cell as a number; NaN where it is none, as in "N/A"."""
    if isinstance(value, bool) or value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _completions(row: Row) -> list[Mapping[str, Any]]:
    """The answers of a rated record that are objects."""
    found = row.get("completions")
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _rating(value: Any, where: str) -> float:
    """A rating as a number; NaN where none was given."""
    number = float(value) if isinstance(value, bool) else _number(value)
    if math.isnan(number) and str(value).strip().lower() not in UNRATED:
        raise ValueError(f"{where} must be a number (got {short(value)})")
    if math.isinf(number):
        raise ValueError(f"{where} must be a finite number (got {short(value)})")
    return number


def _two_responses(row: Row, where: str, rating: str) -> list[tuple[str, Any, Any]]:
    """The same of a record with two responses. The rating is a column that says which of them is
    better (it has 1, the other 0), or `response_0_RATING` and `response_1_RATING`."""
    columns = [f"{name}_{rating}" for name in RESPONSES]
    if all(name in row for name in columns):
        values = [row[name] for name in columns]
    elif rating in PREFERENCES and rating in row:
        picked = row[rating]
        if picked is not None and str(picked) not in ("0", "1"):
            raise ValueError(f"{where}: {rating}: must be 0 or 1 (got {short(picked)})")
        values = [None if picked is None else int(int(picked) == place) for place in (0, 1)]
    else:
        known = [name for name in PREFERENCES if name in row]
        starts, ends = (f"{name}_" for name in RESPONSES)
        known += [
            rest
            for name in row
            if str(name).startswith(starts)
            and f"{ends}{(rest := str(name).removeprefix(starts))}" in row
        ]
        raise ValueError(
            f"{where}: {rating}: there is no such rating (there are {', '.join(known) or 'none'})"
        )
    return [(name, row.get(name), value) for name, value in zip(RESPONSES, values, strict=True)]


def _ratings(row: Row) -> list[str]:
    """The columns of a rated record that could say which answer is better."""
    if "response" not in row and (completions := _completions(row)):
        first = completions[0]
        flat = [name for name, value in first.items() if not math.isnan(_number(value))]
        return [*map(str, _annotations(first)), *flat]
    if isinstance(row.get("generations"), list) and "response" not in row:
        count = len(row["generations"])
        return [
            name
            for name, value in row.items()
            if name != "generations" and isinstance(value, list) and len(value) == count
        ]
    return [name for name, value in row.items() if not math.isnan(_number(value))]


def _annotations(completion: Mapping[str, Any]) -> Mapping[str, Any]:
    found = completion.get("annotations")
    return found if isinstance(found, Mapping) else {}


def _rated_answers(row: Row, where: str, rating: str) -> list[tuple[str, Any, Any]]:
    """Field, text and rating of every answer of a record."""
    if "response" not in row and RESPONSES[0] in row:
        return _two_responses(row, where, rating)
    for name in ("completions", "generations"):
        if name in row and "response" not in row and not isinstance(row[name], list):
            raise ValueError(f"{where}: {name}: must be a list of answers (got {short(row[name])})")
    for place, one in enumerate(row.get("completions") or () if "response" not in row else ()):
        if not isinstance(one, Mapping):
            raise ValueError(
                f"{where}: completions.{place}: must be an object with `response` (got"
                f" {short(one)})"
            )
    if rating not in _ratings(row) and not ("response" in row and rating in row):
        raise ValueError(
            f"{where}: {rating}: there is no such rating (there are"
            f" {', '.join(_ratings(row)) or 'none'})"
        )
    if "response" in row:
        return [("response", row["response"], row[rating])]
    if "completions" in row:
        found = []
        for place, one in enumerate(row["completions"]):
            value = _annotations(one).get(rating, one.get(rating))
            if isinstance(value, Mapping):
                value = value.get("Rating")
            found.append((f"completions.{place}.response", one.get("response"), value))
        return found
    return [
        (f"generations.{place}", text, value)
        for place, (text, value) in enumerate(zip(row["generations"], row[rating], strict=True))
    ]
