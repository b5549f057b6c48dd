# ruff: noqa: RUF001 - look-alikes are what this file is about
"""Texts as they look: patterns that no disguise of a letter or a bracket gets past.

A pattern is matched on a folded copy of the text, in which what a reader takes for the same thing
is the same: HTML entities and other escapes are decoded, compatibility characters and accents are
taken apart (NFKD), what cannot be seen is left out, letters of other alphabets become the Latin
letters that they look like, and look-alikes of < > and / become these. The text itself keeps every
character but the brackets that are changed.

The look-alikes among letters are those of Unicode's confusables (UTS 39) for the letters that
fader's own tags and titles have, and a few more; letters l and digits 1 fold to i, digits 0 to o.
"""

from __future__ import annotations

import html
import unicodedata
from bisect import bisect_right
from functools import lru_cache
from html.entities import html5
from itertools import accumulate

import regex  # type: ignore[import-untyped]

# Names that HTML decodes without their semicolon, longest first.
_BARE = "|".join(sorted((name for name in html5 if name[-1] != ";"), key=len, reverse=True))
_PIECE = regex.compile(
    r"&(?:(?:amp|AMP|#0{0,9}38|#[xX]0{0,9}26);){0,9}"
    rf"(?:#\d{{1,60}};?|#[xX][\da-fA-F]{{1,60}};?|[A-Za-z][A-Za-z\d]{{1,31}};|{_BARE})"
    r"|\\u\{?[\da-fA-F]{2,6}\}|\\u[\da-fA-F]{4}|\\x[\da-fA-F]{2}|%[2-7][\da-fA-F]|.",
    regex.DOTALL,
)
_INVISIBLE = regex.compile(r"[\p{M}\p{Cf}\p{Default_Ignorable_Code_Point}]|(?!\s)\p{Cc}")
_LATIN = regex.compile(r".*\b(?:LATIN|SQUARED|CIRCLED|INDICATOR|MODIFIER)\b.* ([A-Z])(?: WITH .*)?")
_LOOK_ALIKES = {
    one: letter
    for letter, alike in {
        "c": "ΣςСсᏟⲤⲥꓚꮯ𐊢𐌂𐐕𐐽𐔜𑣲🝌",
        "d": "δԁᎠᏧᑯᗞᗪꓒꓓ",
        "e": "ΕεЕеҽᎬ℮⋿ⴹꓰ𐊆𑢦𑢮",
        "f": "Ϝғքᖴꓝ𐊇𐊥𐔥𑢢𑣂𝈓",
        "g": "ƍԌցᏀᏳꓖ",
        "i": "lL1ιіӏᎥ⍳ꙇꭵ𑣃ƖǀΙІӀᏞᒪᛁⲒⳐⵏꓡꓲ𐊊𐌉𐌠𐐛𐔦𑢣𑢲𖼖𖼨𝈪",
        "m": "ΜϺМмᎷᗰᛖⲘꓟ𐊰𐌑",
        "n": "ΝΠηНпոռⲚꓠ𐔓",
        "o": "0ΟοσОоՕօଠంಂംഠංဝჿዐⲞⲟⵔ〇ꓳ𐊒𐊫𐐄𐐬𐓂𐓪𐔖𑢵𑣈𑣗",
        "p": "ΡρРрᏢᑭ⍴Ⲣⲣꓑ𐊕",
        "r": "ƦгᎡᏒᖇᴦⲅꓣꭇꮁ𐒴𖼵𝈖",
        "s": "ƽЅѕՏᏕᏚꓢꮪ𐊖𐐠𐑈𑣁𖼺",
        "t": "ΤτТтᎢ⊤⟙Ⲧꓔ𐊗𐊱𐌕𑢼𖼊🝨",
        "u": "ʋμυиՍսሀᑌ∪⋃ꓴꞟ𐓎𐓶𑢸𑣘𖽂",
        "y": "ɣΥγУуҮүყᎩᎽᶌⲨꓬ𐊲𑢤𑣜𖽃",
        "/": "\\ノ丿〳Ⳇ⼃⁁╱⟋",
        "<": "ᐸᚲ𝈶≺⋘",
        ">": "ᐳ𖼿𝈷≻⋙",
        " ": "\u2800",
    }.items()
    for one in alike
}


def change_brackets(text: str, pattern: regex.Pattern[str], brackets: tuple[str, str]) -> str:
    """The text with other brackets wherever its folded copy matches.

    `brackets` take the place of what the pattern's groups `open` and `close` match, one character
    each; everything else stays as it is, to the byte. `folded` tells what patterns are made of.
    """
    pieces = _PIECE.findall(text)
    folds = [*map(folded, pieces)]
    ends = [*accumulate(map(len, folds))]
    for match in pattern.finditer("".join(folds)):
        for group, bracket in zip(("open", "close"), brackets, strict=True):
            if match[group]:
                pieces[bisect_right(ends, match.start(group))] = bracket
    return "".join(pieces)


@lru_cache(maxsize=1 << 16)
def folded(piece: str) -> str:
    """A character or an escape as it looks; empty where nothing can be seen."""
    piece = _decoded(piece)
    visible = str(_INVISIBLE.sub("", unicodedata.normalize("NFKD", piece)))
    return "".join(map(_looks, visible))


def _decoded(piece: str) -> str:
    """What an escape stands for, however often it was escaped."""
    if len(piece) == 1:
        return piece
    if piece[0] == "&":
        while (plain := html.unescape(piece)) != piece:
            piece = plain
        return piece
    code = int(piece.lstrip("\\%ux{").rstrip("}"), 16)
    return chr(code) if code < 0x110000 else piece


def _looks(character: str) -> str:
    """One visible character as the letter or bracket that it looks like."""
    if character in _LOOK_ALIKES:
        return _LOOK_ALIKES[character]
    name = unicodedata.name(character, "")
    if latin := _LATIN.fullmatch(name):
        letter = str(latin[1]).lower()
        return _LOOK_ALIKES.get(letter, letter)
    if "LESS-THAN" in name or ("LEFT" in name and ("ANGLE" in name or "ARROWHEAD" in name)):
        return "<"
    if "GREATER-THAN" in name or ("RIGHT" in name and ("ANGLE" in name or "ARROWHEAD" in name)):
        return ">"
    if "SOLIDUS" in name or "SLASH" in name:
        return "/"
    if unicodedata.category(character) in ("Ps", "Pe") and "BRACKET" in name:
        return "[" if "LEFT" in name else "]"
    return character
