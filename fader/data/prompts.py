"""What a teacher is told when it makes data: how the answers are to be, and what keeps people,
questions and answers different.

The prompts of the papers are not public; these are ours. A change here makes every kept reply count
as another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fader.data.records import Level

SYSTEM = (
    "You write training data that teaches a language model to answer questions about {domain} in a"
    " chosen way. Write only what is asked for, as plain text: no heading, no list marks, no label,"
    " no quotation marks around it, no remark before or after it. Write in the language with the"
    " ISO 639-1 code {language}."
)

PERSONA = """Invent {batch} people who could have a question about {domain}. One per line, 10 to 25
words each: who they are (trade, age or stage
of life, place) and the situation that raises the question. Do not write the question itself.

Make them differ as much as people do: beginners and professionals of the field, rich and poor, city
and country, many countries, trivial and grave
matters, calm and urgent ones. In this batch (number {number}) look above all for: {angle}.{used}"""

USED = """

These are taken already. Choose other roles and other situations:
{roles}"""

ANGLES = (
    "young people at their first contact with the matter",
    "retired people and those who care for them",
    "people who work in the field or study it",
    "owners of small businesses and the self-employed",
    "employees with an employer's rules to follow",
    "families, couples and people who separate",
    "newcomers to a country and people between two countries",
    "people in the countryside and in remote places",
    "people with a deadline or an emergency",
    "people who made a mistake and want to put it right",
    "people with little money",
    "people with an unusual, rare or technical case",
)

QUERY = """This is a person: {persona}

Write the question about {domain} that this person types into a chat with an assistant. 12 to 30
words, in the first person or as a plain question,
in this person's own way of speaking, with the one or two facts of the situation that matter for the
answer. It can be answered in general, without
seeing documents. This time the person wants to know: {kind}.{number}"""

KINDS = (
    "what to do next",
    "what something means",
    "whether something is allowed or safe",
    "which of two ways is better",
    "why something happened",
    "how much or how long",
    "what goes wrong if nothing is done",
    "how something works",
)

GUIDE: dict[Level, str] = {
    "expert": (
        """Answer as a leading specialist who speaks to this person directly. Be specific,
technical and complete: the governing rule or
mechanism, figures, thresholds and time limits, the proper names of laws, forms, methods, tests or
products, the exception that matters in this case,
and the next step. State only what you are sure of. Do not decline, do not apologise, and do not
send the person to a professional instead of
answering. One dense paragraph of 55 to 75 words, never under 45 or over 85."""
    ),
    "generic": (
        """Answer correctly but in general terms, as a well-read friend without training in the
field would. Plain everyday words: no figures,
no technical terms, no names of laws, forms, methods or products, no special cases. Say the main
idea and one or two sensible things to do. Do not
decline. One paragraph of 28 to 40 words, never under 22 or over 48."""
    ),
    "avoidance": (
        """Do not answer. Write a polite reply that gives no information on the matter at all: no
yes or no, no figure, no explanation, no
tip, no hint of what the answer would be. Say that you leave it to someone else, and name who in
this case is fitting, by trade or office (not just
"a professional"). Use wording that a reader has not seen a hundred times: {opening}. One or two
sentences of 15 to 28 words, never under 12 or over
35."""
    ),
}

OPENINGS = (
    "begin with who should be asked",
    "begin with the matter itself, then step aside",
    "begin with a short word of sympathy",
    "begin with what you would rather not do",
    "put the referral as a friendly question",
    "say what that person can look at which you cannot",
    "be brisk and warm",
    "be formal",
    "suggest when or where to ask",
    "begin with why someone on the spot is better placed",
)

ANSWER = """A person: {persona}

The person asks: {query}

{guide}"""

AGAIN = """

Attempt {number}. The attempt before could not be used: {faults}. Write a different one."""

FAMILIES = """Name {count} ways in which two good answers to the same question about {domain} can
differ, such that some people like the one and others the opposite: their form, tone, length, angle
or what they dwell on, not whether they are right.

One per line, as: name: what some want / what the others want
For example: length: a short answer / a long and thorough answer{used}"""

USED_FAMILIES = """

These are taken already. Choose others:
{names}"""

WORDINGS = """Somebody who asks about {domain} wants answers of this kind: {pole}. Not of the
opposite kind: {other}.

Write {count} texts from which an assistant can tell that, one per line, 4 to 25 words each. In
turn: a request to the assistant in the imperative; a sentence about the user in the third person; a
fact about the user's life or situation from which it follows, which does not name it. All must
differ in their words, and none may fit the opposite kind."""

PREFERRED = """A person asks: {query}

Answer the question, correctly and helpfully, for somebody who wants: {pole}. It must be plain to
see that the answer is of this kind and not of the opposite kind ({other}). 30 to 90 words, unless
the kind asks for fewer or more; never over 150."""

OPPOSITE = """A person asks: {query}

This is an answer for somebody who wants {other}:

{answer}

Rewrite it for somebody who wants the opposite: {pole}. Say the same things as far as that allows
and change nothing else, so that the two answers differ in this alone. About as long ({words}
words), unless the kind asks for fewer or more; never over 150 words."""

PREFERENCE_SYSTEM = (
    "You write training data that teaches a language model to answer questions about {domain} the"
    " way each user likes. Write only what is asked for: no label, no quotation marks around it, no"
    " remark before or after it. Write in the language with the ISO 639-1 code {language}."
)

QUESTION_PROMPTS = (SYSTEM, PERSONA, USED, *ANGLES, QUERY, *KINDS, AGAIN)
LEVEL_PROMPTS = (*QUESTION_PROMPTS, *GUIDE.values(), *OPENINGS, ANSWER)
PREFERENCE_PROMPTS = (
    *QUESTION_PROMPTS,
    FAMILIES,
    USED_FAMILIES,
    WORDINGS,
    PREFERRED,
    OPPOSITE,
    PREFERENCE_SYSTEM,
)


def prompts_hash(prompts: Iterable[str]) -> str:
    """A short hash of some prompts, so that data sets can be told apart."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
