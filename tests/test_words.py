"""Words in texts: any form by lemma, irregular ones too, and whole words only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fader.rewards.specs import ForbiddenSpec, KeywordsSpec
from fader.rewards.table import make
from fader.rewards.words import rest, settled

# Of each language irregular forms, most of them words of their own too, as `word form form ...`.
FORMS = {
    "en": """leaf leaves; life lives; wife wives; half halves; shelf shelves; thief thieves
        loaf loaves; calf calves; person people; drink drunk; ring rung; rise rose; feel felt
        leave left; think thought; wind wound; bind bound; grind ground; shoot shot; bite bit
        dive dove; shake shook; bad worse; panic panicked; run ran; mouse mice; go went; take took
        see saw; find found; lie lay; fall fell; spell spelt; wear wore worn; tear tore torn
        good better best; far further; be was; hang hung; sew sewn; base bases; axe axes
        strike struck; light lit; mean meant; spring sprang; bear bore born; well better""",
    "de": """sein war ist; gehen ging; finden fand; binden band; beißen biss; schließen schloss
        stehen stand gestanden; lesen las; liegen lag; sehen sah; schneiden schnitt; reiten ritt
        fahren gefahren; denken gedacht; gut besser; viel mehr; gern lieber; verlieren verloren
        biegen bog; brechen brach; Mutter Mütter; Haus Häuser; können kann; wissen weiß
        fallen fiel fällt; essen gegessen""",
    "fr": """être sommes suis; avoir avions; voir vu vit; lire lit lu; boire bois bu; vivre vis
        mourir mort; courir cours; écrire écrit; rire rit; suivre suis; porter porte portes
        marcher marche; livrer livre; sentir sens; partir part; œil yeux; bon meilleur; beau bel
        savoir su; mettre mis; offrir offre; pouvoir puis""",
    "es": """ir fue; venir vino; hacer hecho; decir dicho; poner puesto; ver visto; traer traje
        morir muerto; escribir escrito; reír río; contar cuento cuenta; comer como; nadar nada
        casar casa; vestir vista; jugar juego; salir sale; bueno mejor; malo peor; vivir vivo
        encontrar encuentro; soñar sueño; volar vuelo; parar para""",
    "it": """dire detto; leggere legge letto; correre corso; prendere prese; scrivere scritto
        stare stato; sapere so; chiedere chiese; aprire aperto; perdere perso; vivere vive
        salire sale; porre posto; dio dei; portare porta; buono migliore; cattivo peggio
        lavorare lavoro; giocare gioco; uomo uomini; fare fatto; vedere visto""",
}
PAIRS = [
    (lang, word, form)
    for lang, table in FORMS.items()
    for word, *forms in map(str.split, table.replace("\n", ";").split(";"))
    for form in forms
]
APART = [
    ("en", "safe", "saves"),
    ("en", "car", "caring"),
    ("en", "hop", "hoping"),
    ("en", "believe", "beliefs"),
    ("en", "leaf", "left"),
    ("en", "life", "live"),
    ("en", "wound", "window"),
    ("en", "be", "bed"),
    ("de", "Band", "Bandit"),
    ("de", "gut", "Güte"),
    ("fr", "mer", "mes"),
    ("fr", "fer", "fait"),
    ("fr", "lit", "lisse"),
    ("es", "casa", "cosa"),
    ("es", "mar", "mano"),
    ("it", "mare", "mano"),
    ("it", "sale", "solo"),
]


def held(word, text, **settings):
    [found] = make(KeywordsSpec(kind="keywords", words=[word], **settings)).score([""], [text])
    [allowed] = make(ForbiddenSpec(kind="forbidden", words=[word], **settings)).score([""], [text])
    assert allowed == 1 - found
    return bool(found)


def test_there_are_pairs_enough():
    assert len(PAIRS) >= 150
    assert len({lang for lang, _, _ in PAIRS}) == 5


@pytest.mark.parametrize(("lang", "word", "form"), PAIRS)
def test_irregular_forms_count(lang, word, form):
    assert held(word, f"« {form.capitalize()} », x", lang=lang)
    assert held(word, f"x {form}.", lang=lang)
    assert not held(word, f"x {form}.", match="form")
    assert not held(word, f"x{form}.", lang=lang)


@pytest.mark.parametrize(("lang", "word", "other"), APART)
def test_other_words_do_not(lang, word, other):
    assert not held(word, f"x {other} x", lang=lang)


WHOLE = [
    ("C++", "I like C++.", True),
    ("C++", "C++, C# and F#", True),
    ("C", "I like C++.", False),
    ("C", "in C#", False),
    ("C", "in C, not C++", True),
    ("C+", "in C++", False),
    ("2", "2+2 is 4", True),
    ("don't", "I don\u2019t.", True),
    ("don", "I don't.", False),
    ("do", "I don't.", False),
    ("t", "I don't.", False),
    ("well-known", "a well-known man", True),
    ("well", "a well-known man", False),
    ("known", "a well\u2011known man", False),
    ("well", "well - known", True),
    ("dog", "a dog--a cat", True),
    ("dog", "'dog'", True),
    ("dogs", "the dogs' home", True),
    ("clock", "ten o'clock", False),
    ("U.S.", "the U.S. is", True),
    ("U.S.", "the U.S.", True),
    ("U.S.", "the U.S.A.", False),
    ("U.S", "the U.S. is", True),
    ("S", "the U.S. is", False),
    ("U", "the U.S. is", False),
    ("example", "see example.com", False),
    ("example.com", "see example.com.", True),
    ("3", "about 3.5 of them", False),
    ("3.5", "about 3.5.", True),
    ("home", "He ran home.The dog too", True),
    ("The", "He ran home.The dog too", True),
    ("R", "R&D", False),
    ("R&D", "in R&D.", True),
    ("ann", "ann@example.com", False),
    ("and", "and/or", True),
    ("ice cream", "an ice cream-maker", False),
    ("ice cream", "an ice cream, please", True),
    (".NET", "in .NET", True),
    (".NET", "in ASP.NET", False),
    ("e-mail", "by e\u2011mail", True),
    ("e-mail", "by e\u2010mail", True),
    ("mail", "by e\u2011mail", False),
]


@pytest.mark.parametrize(("word", "text", "there"), WHOLE)
@pytest.mark.parametrize("match", ["form", "lemma"])
def test_words_are_whole(word, text, there, match):
    assert held(word, text, match=match) == there


def test_what_is_written_to_a_word_counts_where_forms_do():
    for text in ("the dog's day", "dog\u2019s", "the dog'll bark", "DOG'S"):
        assert held("dog", text)
        assert not held("dog", text, match="form")
    assert held("they", "they're")
    assert held("eau", "l'eau et l\u2019air", lang="fr")
    assert held("acqua", "dell'acqua", lang="it")
    assert not held("eau", "l'eau", lang="fr", match="form")


def test_a_proposal_goes_on_from_whole_words():
    assert rest("a d", "dog") == "og"
    assert rest("well-d", "dog") == " dog"
    assert rest("l'd", "dog") == " dog"
    assert rest("(d", "dog") == "og"


PIECES = ["dog", "do", "g", "C", "+", "#", ".", "-", "'", "s", "U", "S", " ", ",", "&", "@", "2"]
LINES = st.lists(st.sampled_from([*PIECES, "\u2019", "狗", "\u0301", "!"]), max_size=9).map("".join)
WORDS = ["dog", "C++", "C", "U.S.", "S", "dog's", "well-dog", "2", "do", ".NET", "+", "狗"]
REWARDS = [
    make(kind(kind=name, words=[word], match=match))
    for kind, name in ((KeywordsSpec, "keywords"), (ForbiddenSpec, "forbidden"))
    for word in WORDS
    for match in ("form", "lemma")
]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(REWARDS), LINES, LINES)
def test_what_is_settled_stays_whatever_is_appended(reward, text, more):
    low, high = reward.prefix_bounds(text)
    assert low <= reward.score([""], [text + more])[0] <= high
    assert text.startswith(settled(text))
