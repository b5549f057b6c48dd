"""Irregular forms that are words of their own: "left" is left, and a form of leave.

A dictionary of lemmas has one lemma for each form. Here are the lemmas that it leaves out, as lines
`lemma form form ...`, and the regular inflections of words whose forms are words too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

IRREGULAR: Mapping[str, str] = {
    "en": """
        be am is are was were been being; have has had; do does did done; go goes went gone
        can could; will would; shall should; may might; arise arose arisen; awake awoke awoken
        bear bore borne born; beat beaten; become became; begin began begun; bend bent; bind bound
        bite bit bitten; bleed bled; blow blew blown; break broke broken; breed bred; bring brought
        build built; burn burnt; buy bought; catch caught; choose chose chosen; cling clung
        come came; creep crept; deal dealt; dig dug; dive dove; draw drew drawn; dream dreamt
        drink drank drunk; drive drove driven; dwell dwelt; eat ate eaten; fall fell fallen
        feed fed; feel felt; fight fought; find found; flee fled; fling flung; fly flew flown flies
        forbid forbade forbidden; forget forgot forgotten; forgive forgave forgiven
        freeze froze frozen; get got gotten; give gave given; grind ground; grow grew grown
        hang hung; hear heard; hide hid hidden; hold held; keep kept; kneel knelt; know knew known
        lay laid; lead led; lean leant; leap leapt; learn learnt; leave left; lend lent
        lie lay lain lying; light lit; lose lost; make made; mean meant; meet met
        mistake mistook mistaken; pay paid; prove proven; ride rode ridden; ring rang rung
        rise rose risen; run ran; saw sawn; say said; see saw seen; seek sought; sell sold
        send sent; sew sewn; shake shook shaken; shear shorn; shine shone; shoot shot; show shown
        shrink shrank shrunk; sing sang sung; sink sank sunk sunken; sit sat; slay slew slain
        sleep slept; slide slid; sling slung; smell smelt; sneak snuck; sow sown; speak spoke spoken
        speed sped; spell spelt; spend spent; spill spilt; spin spun; spit spat; spoil spoilt
        spring sprang sprung; stand stood; steal stole stolen; stick stuck; sting stung
        stink stank stunk; stride strode; strike struck stricken; string strung
        strive strove striven; swear swore sworn; sweep swept; swell swollen; swim swam swum
        swing swung; take took taken; teach taught; tear tore torn; tell told; think thought
        throw threw thrown; tread trod trodden; understand understood; wake woke woken
        wear wore worn; weave wove woven; weep wept; win won; wind wound; wring wrung
        write wrote written; leaf leaves; life lives; wife wives; half halves; shelf shelves
        thief thieves; loaf loaves; calf calves; knife knives; wolf wolves; elf elves; self selves
        scarf scarves; hoof hooves; wharf wharves; dwarf dwarves; sheaf sheaves; beef beeves
        yourself yourselves; person people; man men; woman women; child children; foot feet
        tooth teeth; goose geese; mouse mice; louse lice; ox oxen; die dice; datum data
        medium media; criterion criteria; phenomenon phenomena; axis axes; axe axes; basis bases
        base bases; crisis crises; thesis theses; analysis analyses; ellipsis ellipses
        index indices
        appendix appendices; matrix matrices; vertex vertices; cactus cacti; fungus fungi
        nucleus nuclei; radius radii; stimulus stimuli; larva larvae; penny pence; genus genera
        bacterium bacteria; staff staves; good better best; well better best; bad worse worst
        ill worse worst; badly worse worst; far farther further farthest furthest; much more most
        many more most; little less least; late later latest; old elder eldest
        big bigger biggest; rend rent; cleave cleft clove; bid bade bidden; work wrought
    """,
    "de": """
        sein bin bist ist sind seid war warst waren wäre gewesen; haben hat hatte hätte gehabt
        werden wird wurde würde geworden worden; stehen stand gestanden; gestehen gestanden
        beißen biss gebissen; essen aß isst gegessen; fahren fuhr fährt gefahren; biegen bog gebogen
        fallen fiel fällt gefallen; gefallen gefiel gefällt; heißen hieß geheißen
        liegen lag gelegen
        brechen brach bricht gebrochen; denken dachte gedacht; waschen wusch wäscht gewaschen
        viel mehr meiste meisten meist; gern lieber liebsten; nah näher nahe nächste nächsten
        verlieren verlor verloren; binden band gebunden; finden fand gefunden; sehen sah sieht
        lesen las liest gelesen; schließen schloss geschlossen; schneiden schnitt geschnitten
        reiten ritt geritten; greifen griff gegriffen; graben grub gegraben; heben hob gehoben
        laden lud geladen; reißen riss gerissen; treiben trieb getrieben; lassen ließ gelassen
        scheinen schien geschienen; steigen stieg gestiegen; rufen rief gerufen; ziehen zog gezogen
        schlafen schlief geschlafen; halten hielt hält gehalten; werfen warf wirft geworfen
        sterben starb stirbt gestorben; treffen traf trifft getroffen; trinken trank getrunken
        singen sang gesungen; springen sprang gesprungen; klingen klang geklungen
        sinken sank gesunken; schwimmen schwamm geschwommen; beginnen begann begonnen
        gewinnen gewann gewonnen; wissen weiß wusste gewusst; können kann konnte gekonnt
        mögen mag mochte gemocht; wollen will wollte; sollen soll sollte; müssen muss musste
        dürfen darf durfte; tun tat getan; treten trat tritt getreten; tragen trug trägt getragen
        schlagen schlug schlägt geschlagen; wachsen wuchs wächst gewachsen; leihen lieh geliehen
        leiden litt gelitten; lügen log gelogen; riechen roch gerochen; schreiten schritt
        trügen trog; fliehen floh geflohen; fliegen flog geflogen; gießen goss gegossen
        schießen schoss geschossen; genießen genoss genossen; messen maß misst gemessen
        vergessen vergaß vergisst; fressen fraß frisst gefressen; sitzen saß gesessen
        bitten bat gebeten; bieten bot geboten; stechen stach sticht; helfen half hilft geholfen
        gelten galt gilt; sprechen sprach spricht; stehlen stahl stiehlt gestohlen
        schweigen schwieg geschwiegen; streiten stritt gestritten; weisen wies gewiesen
        meiden mied; scheiden schied geschieden; bleiben blieb geblieben; schreiben schrieb
        reiben rieb gerieben; gehen ging gegangen; fangen fing gefangen; hängen hing gehangen
        kommen kam gekommen; nehmen nahm nimmt genommen; geben gab gibt gegeben; backen buk
        braten briet; raten riet rät; stoßen stieß; laufen lief läuft gelaufen; saufen soff
        gut besser beste besten bester bestes; hoch höher hohe hohen höchste; groß größer größte
        Bank Banken Bänke; Mutter Mütter Muttern; Wort Worte Wörter; Mann Männer
    """,
    "fr": """
        être suis es est sommes êtes sont été étais était étant fus fut fûmes furent serai serait
        être sois soit soient étant; avoir ai as a avons avez ont eu avais avait avions eut aura aie
        avoir ait ayant; aller vais vas va vont allé ira irai aille; faire fait fais font fit fera
        faire fasse faites; voir vu vois voit vit vis verra voyait; savoir su sais sait sut sache
        pouvoir peux peut peuvent pu put puis puisse; vouloir veux veut veulent voulu veuille
        devoir dois doit doivent dû du due dut; prendre pris prise prend prends prit prenne
        mettre mis mise met mets mit; dire dit dis dite disent; lire lu lue lis lit lisent lut
        boire bu bue bois boit but boivent; vivre vis vit vécu vécut vivent; croire cru crois croit
        courir couru cours court courent; croître crû croît; tenir tenu tiens tient tint
        venir venu viens vient vint; mourir mort morte meurt mourut; naître né née naît naquit
        connaître connu connais connaît; écrire écrit écrite écris écrivent; rire ri rit ris
        suivre suis suit suivi suivie suite; ouvrir ouvert ouverte ouvre ouvres
        offrir offert offerte offre offres; couvrir couvert couverte couvre; souffrir souffert
        finir fini finie finis finit; asseoir assis assise assied; pleuvoir plu pleut
        plaire plu plaît; taire tu tue tait tais; tuer tue tues tué; recevoir reçu reçue reçoit
        sentir sens sent senti sentie; servir sers sert servi servie; partir pars part parti partie
        sortir sors sort sorti sortie; dormir dors dort dormi; conduire conduit conduite
        coudre cousu; résoudre résolu résout; vaincre vaincu; falloir faut fallu; valoir vaut valu
        produire produit produite; construire construit; détruire détruit; permettre permis permet
        promettre promis promet; apprendre appris; comprendre compris; perdre perdu perd
        rendre rendu rend; vendre vendu vend; attendre attendu attend; entendre entendu entend
        répondre répondu répond; descendre descendu; fuir fui fuit; haïr haï hait; élire élu
        peindre peint; craindre craint; joindre joint; éteindre éteint; cuire cuit; nuire nui
        œil yeux; bon bonne meilleur meilleure meilleurs; bien mieux; mauvais pire pires; mal pis
        beau bel belle beaux belles; nouveau nouvel nouvelle; vieux vieil vieille; fou fol folle
        monsieur messieurs; madame mesdames; ciel cieux; aïeul aïeux; travail travaux; mal maux
        mou mol molle; petit moindre
    """,
    "es": """
        ser soy eres es somos son fui fue fueron era eran sido sea siendo; estar está estuvo estoy
        ir voy vas va vamos van fui fue fueron iba iban ido vaya yendo ve
        ver veo ve vio visto vista
        haber ha han he hay hubo había habido haya; tener tengo tiene tuvo; saber sé supo sepa
        venir vengo viene vino vinieron venido ven; hacer hago hace hizo hecho hecha haz
        decir digo dice dijo dicho dicha di; poner pongo pone puso puesto puesta pon
        traer traigo trae trajo traje trajeron; dar doy da dio di dé dado dada; reír río ríe rió
        volver vuelto vuelta vuelve vuelvo; morir muerto muerta muere murió; freír frito frita
        escribir escrito escrita; abrir abierto abierta; romper roto rota; cubrir cubierto cubierta
        resolver resuelto resuelta; caer caigo cae cayó caído caída; oír oigo oye oyó oído
        salir salgo sale sal; caber quepo cupo; andar anduvo; producir produjo; conducir condujo
        poder puedo puede pudo; querer quiero quiere quiso; sentir siento siente sintió sentido
        sentar siento sienta; vestir visto viste vista vistió; pedir pido pide pidió; medir mido
        jugar juego juega; servir sirvo sirve sirvió; seguir sigo sigue siguió; dormir duermo duerme
        bueno buen buena mejor mejores; bien mejor; malo mal mala peor peores; mal peor
        grande gran mayor mayores; pequeño menor menores; mucho más; poco menos; amigo amiga
        satisfacer satisfecho; imprimir impreso; proveer provisto; creer creído; leer leyó
        valer valgo; crear creo crea; nacer nazco; bendecir bendito; elegir electo elige
    """,
    "it": """
        essere sono sei è siamo siete era eri erano stato stata stati fu fui furono sia sarà
        stare sto stai sta stanno stette stato stata; avere ho hai ha hanno ebbe avuto abbia
        andare vado vai va vanno andato; fare faccio fai fa fanno fece fatto fatta
        dire dico dice disse detto detta; leggere leggo legge leggi lesse letto letta
        correre corro corre corso corsa corse; prendere presi prese preso presa
        scrivere scrissi scrisse scritto scritta; sapere so sai sa sanno seppe saputo
        potere posso può poté potuto; volere voglio vuole volle; dovere devo deve dovuto
        chiedere chiese chiesto chiesta; chiudere chiuse chiuso chiusa
        aprire apro apre aperto aperta
        perdere perse perso persa; vivere vivo vive vivi visse vissuto; muovere mosse mosso mossa
        salire salgo sale sali; porre pongo pone pose posto posta; mettere misi mise messo messa
        vedere vidi vide visto vista; morire muoio muore morto morta; nascere nacque nato nata
        vincere vinse vinto vinta; rompere ruppe rotto rotta; cadere cadde; piacere piaccio piace
        uscire esco esce; scegliere scelse scelto scelta; dare do dà diede dato data; venire venni
        venire vengo viene venne; tenere tengo tiene tenne; rimanere rimase rimasto
        rispondere rispose risposto risposta; decidere decise deciso; spendere spese speso spesa
        spegnere spento spense; accendere acceso accese; offrire offro offre offerto offerta
        coprire copro coperto coperta; soffrire soffre sofferto; piangere pianse pianto
        ridere riso rise
        uccidere ucciso; difendere difeso difesa; scendere sceso scesa scese; cuocere cotto cotta
        condurre condotto; produrre prodotto; tradurre tradotto; trarre tratto trae; fondere fuso
        dio dei; uomo uomini; bue buoi; uovo uova; dito dita; braccio braccia; osso ossa
        labbro labbra
        buono buon buona migliore migliori ottimo; bene meglio
        cattivo peggiore peggiori peggio pessimo
        male peggio; grande gran maggiore maggiori; piccolo minore minori; molto più; poco meno
        partire parto parte parti; sentire sento sente; conoscere conosco conobbe
        crescere cresciuto
    """,
    "nl": """
        zijn ben bent is was waren geweest; hebben heb heeft had hadden gehad; gaan ging gegaan
        worden werd geworden; komen kwam gekomen; zien zag gezien; vinden vond gevonden
        geven gaf gegeven; nemen nam genomen; lopen liep gelopen; liggen lag gelegen; lezen las
        eten at gegeten; staan stond gestaan; binden bond gebonden; bijten beet gebeten
        rijden reed gereden; snijden sneed; goed beter best; veel meer meest; graag liever
        kind kinderen; stad steden; schip schepen; lid leden; weten wist; kunnen kan kon
        blad bladeren blaren; liegen loog gelogen
    """,
    "sv": """
        ligga låg legat; binda band bundit; bita bet bitit; sitta satt suttit; god bättre bäst
        bra bättre bäst; dålig sämre värre värst; många fler flest; hand händer; mus möss
    """,
    "pl": """
        zły gorszy gorsza gorsze; dobry lepszy lepsza lepsze; rok lata lat; duży większy większa
        mały mniejszy mniejsza; móc może mogę mógł; mieć ma mam miał; jeść je jem jadł
        ksiądz księża; człowiek ludzie ludzi
    """,
    "pt": """
        ser sou és é somos são foi fui era sido seja; ir vou vai vamos vão foi fui ia ido vá
        ver vejo vê viu visto vista; vir venho vem veio vindo; fazer faço faz fez feito
        dizer digo diz disse dito; pôr ponho põe pôs posto; ter tenho tem teve; dar dou dá deu dado
        saber sei soube; poder posso pôde; querer quis; trazer trago trouxe; morrer morto
        escrever escrito; abrir aberto; ganhar ganho; gastar gasto; pagar pago; sair saio sai
        bom boa melhor; mau má pior; grande maior; pequeno menor; muito mais; bem melhor; mal pior
        homem homens; mão mãos; ter tinha; estar estou está esteve; rir rio ri; sentir sinto
        querer quero quer quis; perder perco; dormir durmo; servir sirvo
    """,
}


@lru_cache(maxsize=16)
def irregular(lang: str) -> Mapping[str, frozenset[str]]:
    """Of each irregular form its lemmas, in lower case."""
    found: dict[str, set[str]] = {}
    for line in IRREGULAR.get(lang, "").replace("\n", ";").split(";"):
        for form in line.casefold().split()[1:]:
            found.setdefault(form, set()).add(line.casefold().split()[0])
    return {form: frozenset(lemmas) for form, lemmas in found.items()}


@lru_cache(maxsize=2**17)
def inflections(word: str, lang: str, lemma: Callable[[str, str], str]) -> frozenset[str]:
    """The regular forms of a word in lower case: English ones, and those of a verb of a Romance
    language that `lemma` knows by one of them."""
    if len(word) < 3 or not word.isalpha():
        return frozenset()
    if lang == "en":
        return _english(word)
    forms: set[str] = set()
    for ending, known, endings in CONJUGATIONS.get(lang, ()):
        stem = word.removesuffix(ending)
        if stem != word and lemma(stem + known, lang) == word:
            forms |= {stem + one for one in endings.split()}
            if lang == "es":  # contar, cuento; pensar, pienso; jugar, juego
                forms |= {_broken(stem) + one for one in endings.split()}
    return frozenset(forms)


CONJUGATIONS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    # of each the ending of the infinitive, one that tells that it is a verb, and the others
    "fr": (("er", "ait", "e es ons ez ent é ée és ées ant ais ait a ai"),),
    "es": (
        ("ar", "aba", "o as a amos áis an e es en é aste ó aron ado ada ados adas ando"),
        ("er", "ía", "o es e emos éis en a as an í iste ió ieron ido ida idos idas iendo"),
        ("ir", "ía", "o es e imos ís en a as an í iste ió ieron ido ida idos idas iendo"),
    ),
    "pt": (
        ("ar", "ava", "o as a amos ais am e es em ei ou aram ado ada ados adas ando"),
        ("er", "ia", "o es e emos eis em a as am i eu eram ido ida idos idas endo"),
        ("ir", "ia", "o es e imos is em a as am i iu iram ido ida idos idas indo"),
    ),
    "it": (
        ("are", "ava", "o i a iamo ate ano ato ata ati ando ai ò"),
        ("ere", "eva", "o i e iamo ete ono uto uta uti ute endo a"),
        ("ire", "iva", "o i e iamo ite ono ito ita iti endo a"),
    ),
}


def _broken(stem: str) -> str:
    """A Spanish stem with its last vowel broken: cont, cuent; pens, piens."""
    place = max(map(stem.rfind, "oeu"), default=-1)
    if place < 0:
        return stem
    return stem[:place] + ("ie" if stem[place] == "e" else "ue") + stem[place + 1 :]


def _english(word: str) -> frozenset[str]:
    found = {word + "s", word + "es"}
    if word[-1] == "e":
        found |= {word + "d", word[:-1] + "ing"}
    elif word[-1] == "y" and word[-2] not in "aeiou":
        found |= {word[:-1] + "ies", word[:-1] + "ied", word + "ing"}
    elif word[-1] == "c":  # panic, panicked
        found |= {word + "ked", word + "king"}
    else:
        doubles = word[-1] not in "aeiouwxy" and word[-2] in "aeiou" and word[-3] not in "aeiou"
        twice = {word + word[-1] + ending for ending in ("ed", "ing")} if doubles else set()
        # of one syllable: hopping, never hoping
        short_word = doubles and not set(word[:-2]) & set("aeiouy")
        found |= twice if short_word else twice | {word + "ed", word + "ing"}
    return frozenset(found)
