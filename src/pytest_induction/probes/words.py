"""Words that mean alike, for models with a tokenizer: classes of them, and the same word in two languages.

Only words that the tokenizer has as one token each are of use. Spellings are kept apart: in a pair of languages no word is
spelt like one of the other language. Words for things come before those of grammar, which say less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

Encode = Callable[[str], list[int]]
CLASSES = {
    "months": "January February March April May June July August September October November December",
    "colours": "red blue green yellow black white brown pink purple grey violet",
    "animals": "dog cat horse cow pig lion tiger bear wolf rabbit mouse sheep",
    "fruits": "apple banana lemon cherry grape peach pear plum strawberry mango coconut",
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "countries": "France Germany Italy Spain China Japan India Russia Brazil Canada Mexico Egypt",
    "body": "hand foot head arm leg nose mouth ear eye knee finger neck",
    "family": "mother father sister brother son daughter uncle aunt cousin wife husband",
    "vehicles": "car bus train truck boat ship plane bicycle",
    "clothes": "shirt hat coat shoes dress pants jacket socks",
    "cities": "London Paris Berlin Rome Tokyo Moscow Madrid Vienna Chicago Boston",
    "jobs": "doctor teacher lawyer nurse farmer soldier artist writer engineer chef",
}
PATTERN_CLASSES = ("months", "colours", "animals", "numbers", "countries", "body", "family", "vehicles", "clothes", "jobs")
"""Of lines: those that are clearly apart. A peach or a cherry is a colour too, and a day is a date as a month is."""
PAIRS_ENOUGH = 48  # of words: about twice as many as the longest text has, drawn anew in every row
LANGUAGES = {
    "German": (
        "day Tag, time Zeit, child Kind, country Land, car Auto, book Buch, game Spiel, year Jahr, world Welt, life Leben, "
        "woman Frau, city Stadt, people Menschen, work Arbeit, money Geld, small klein, many viele, first ersten, part Teil, "
        "history Geschichte, question Frage, two zwei, three drei, four vier, five fünf, ten zehn, old alt, new neu, "
        "big groß, black schwarz, white weiß, green grün, blue blau, house Haus, water Wasser, street Straße, mountain Berg, "
        "castle Burg, forest Wald, field Feld, bridge Brücke, church Kirche, king König, man Mann, head Kopf, heart Herz, "
        "eye Auge, dog Hund, bread Brot, milk Milch, night Nacht, morning Morgen, evening Abend, week Woche, war Krieg, "
        "death Tod, god Gott, love Liebe, word Wort, picture Bild, school Schule, door Tür, tree Baum, sun Sonne, moon Mond, "
        "fire Feuer, stone Stein, garden Garten, place Platz, way Weg, friend Freund, brother Bruder, sister Schwester, "
        "father Vater, mother Mutter, son Sohn, daughter Tochter, today heute, horse Pferd, chicken Huhn, girl Mädchen, "
        "boy Junge, bird Vogel, fish Fisch, egg Ei, apple Apfel, cheese Käse, salt Salz, table Tisch, window Fenster, "
        "wall Wand, bed Bett, knife Messer, letter Brief, newspaper Zeitung, language Sprache, river Fluss, sea Meer, "
        "sky Himmel, snow Schnee, rain Regen, ship Schiff, train Zug, summer Sommer, blood Blut, foot Fuß, mouth Mund, "
        "leg Bein, nose Nase, flower Blume, market Markt, village Dorf, island Insel, air Luft, light Licht, piece Stück, "
        "side Seite, number Zahl, law Gesetz, power Kraft, hour Stunde, month Monat, wife Ehefrau, and und, with mit, "
        "from von, but aber, where wo, he er, until bis, all alle, not nicht, for für, also auch, or oder, if wenn, who wer, "
        "how wie, only nur, very sehr, there dort, now jetzt, always immer, never nie, we wir, they sie, between zwischen, "
        "without ohne, because weil, more mehr, the der, a ein, of des, to zu, is ist, on auf, by bei, after nach, over über, "
        "under unter, against gegen, through durch, which welche, I ich, you du, me mich, us uns, your dein, our unser, "
        "my mein, his sein, her ihre, are sind, have haben, will wird, can kann, must muss, one eins, again wieder, "
        "still noch, already schon, then dann, no kein, yes ja, thanks danke, please bitte, go gehen, come kommen, "
        "make machen, see sehen, say sagen, stay bleiben"
    ),
    "French": (
        "day jour, good bon, house maison, year année, time temps, world monde, life vie, woman femme, city ville, "
        "people gens, friend ami, car voiture, money argent, small petit, water eau, sea mer, black noir, white blanc, "
        "red rouge, green vert, blue bleu, king roi, night nuit, heart coeur, church église, war guerre, son fils, "
        "girl fille, man homme, dog chien, milk lait, book livre, school école, door porte, tree arbre, head tête, "
        "new nouveau, big grand, old vieux, young jeune, beautiful belle, two deux, three trois, four quatre, five cinq, "
        "seven sept, eight huit, nine neuf, ten dix, thousand mille, morning matin, evening soir, summer été, winter hiver, "
        "love amour, death mort, earth terre, sun soleil, moon lune, sky ciel, fire feu, wood bois, sister soeur, "
        "brother frère, father père, mother mère, child enfant, drink boire, eat manger, work travail, "
        "name nom, word mot, place lieu, part partie, power pouvoir, state état, language langue, were étaient, "
        "garden jardin, castle château, bridge pont, mountain montagne, beach plage, island île, river fleuve, shore rive, "
        "side côté, horse cheval, bird oiseau, fish poisson, egg oeuf, apple pomme, cheese fromage, salt sel, window fenêtre, "
        "wall mur, bed lit, knife couteau, letter lettre, station gare, boy garçon, foot pied, mouth bouche, flower fleur, "
        "market marché, town bourg, light lumière, law loi, hour heure, month mois, week semaine, song chanson, sugar sucre, "
        "butter beurre, snow neige, rain pluie, stone pierre, leg jambe, eye oeil, skin peau, ship navire, god dieu, and et, "
        "is est, not pas, from de, on sur, if si, who qui, he il, I je, through par, without sans, more plus, one un, her sa, "
        "with avec, also aussi, but mais, how comment, where où, very très, now maintenant, always toujours, never jamais, "
        "we nous, she elle, they ils, between entre, after après, before avant, the les, of des, in dans, our notre, "
        "your votre, you vous, this cette, these ces, their leur, all tous, well bien, under sous, here ici, there là, "
        "nothing rien, everyone chacun, be être, see voir, when quand, me moi, it cela, what quoi, since depuis, toward vers, "
        "at chez, was était, are sont, my mon"
    ),
    "Spanish": (
        "today hoy, tomorrow mañana, yesterday ayer, day día, night noche, year año, month mes, week semana, time tiempo, "
        "hour hora, house casa, city ciudad, country país, world mundo, life vida, death muerte, love amor, man hombre, "
        "woman mujer, child niño, girl niña, friend amigo, people gente, father padre, mother madre, brother hermano, "
        "sister hermana, son hijo, daughter hija, king rey, god dios, saint santo, water agua, fire fuego, earth tierra, "
        "sea mar, river río, mountain monte, sky cielo, sun sol, moon luna, tree árbol, flower flor, dog perro, cat gato, "
        "horse caballo, milk leche, wine vino, book libro, school escuela, door puerta, street calle, church iglesia, "
        "war guerra, hand mano, head cabeza, heart corazón, eye ojo, white blanco, black negro, red rojo, green verde, "
        "blue azul, good bueno, bad malo, big grande, small poco, new nuevo, old viejo, beautiful bella, two dos, three tres, "
        "four cuatro, five cinco, six seis, seven siete, eight ocho, ten diez, hundred cien, thousand mil, other otro, "
        "same mismo, first primero, last último, bridge puente, field campo, party fiesta, blood sangre, gold oro, "
        "silver plata, name nombre, word palabra, work trabajo, part parte, power poder, money dinero, high alto, "
        "gentleman señor, lady dama, table mesa, bed cama, chicken pollo, rice arroz, cheese queso, salt sal, boy chico, "
        "bird pájaro, fish pescado, egg huevo, apple manzana, window ventana, wall pared, letter carta, boat barco, foot pie, "
        "mouth boca, market mercado, village pueblo, island isla, air aire, light luz, law ley, song canción, sugar azúcar, "
        "snow nieve, rain lluvia, stone piedra, leg pierna, skin piel, beach playa, road camino, game juego, voice voz, "
        "and y, is es, for para, from desde, on sobre, but pero, where donde, how como, when cuando, who quien, what que, "
        "he él, she ella, we nosotros, they ellos, I yo, my mi, your tu, his su, the los, of del, in en, by por, a una, "
        "more más, very muy, also también, always siempre, never nunca, now ahora, here aquí, there allí, one uno, all todo, "
        "nothing nada, between entre, against contra, toward hacia, until hasta, under bajo, before antes, after después, "
        "if si, because porque, make hacer, say decir, see ver, live vivir, was era, this esta, these estos, that esa, "
        "thanks gracias, hello hola"
    ),
    "Italian": (
        "today oggi, tomorrow domani, day giorno, night notte, year anno, month mese, week settimana, time tempo, house casa, "
        "city città, country paese, world mondo, life vita, death morte, love amore, man uomo, woman donna, child bambino, "
        "girl ragazza, friend amico, people gente, father padre, mother madre, brother fratello, sister sorella, son figlio, "
        "daughter figlia, king re, god dio, saint santo, water acqua, fire fuoco, earth terra, river fiume, mountain monte, "
        "sky cielo, moon luna, tree albero, flower fiore, cat gatto, horse cavallo, milk latte, wine vino, book libro, "
        "school scuola, door porta, church chiesa, war guerra, hand mano, head testa, heart cuore, eye occhio, white bianco, "
        "black nero, red rosso, green verde, blue blu, good buono, big grande, small piccolo, new nuovo, old vecchio, "
        "beautiful bella, three tre, four quattro, five cinque, seven sette, eight otto, ten dieci, hundred cento, "
        "thousand mille, other altro, same stesso, first primo, last ultimo, bridge ponte, field campo, party festa, "
        "blood sangue, gold oro, name nome, word parola, work lavoro, part parte, high alto, thing cosa, boy ragazzo, "
        "bird uccello, fish pesce, egg uovo, apple mela, window finestra, wall muro, bed letto, letter lettera, ship nave, "
        "foot piede, mouth bocca, market mercato, village borgo, island isola, air aria, light luce, law legge, song canzone, "
        "sugar zucchero, snow neve, rain pioggia, stone pietra, leg gamba, skin pelle, beach spiaggia, road strada, "
        "game gioco, voice voce, cheese formaggio, and e, is è, not non, from da, on su, with con, without senza, but ma, "
        "when quando, who chi, what che, he lui, she lei, we noi, they loro, I io, my mio, your tuo, his suo, the gli, "
        "of della, in nel, by dal, a una, more più, very molto, also anche, always sempre, never mai, now ora, here qui, "
        "one uno, all tutto, nothing niente, between tra, against contro, until fino, under sotto, before prima, after dopo, "
        "if se, because perché, be essere, see vedere, was era, are sono, this questo, these questi, thanks grazie, "
        "only solo, every ogni, well bene"
    ),
    "Portuguese": (
        "today hoje, yesterday ontem, day dia, night noite, year ano, month mês, week semana, time tempo, hour hora, "
        "house casa, city cidade, country país, world mundo, life vida, death morte, love amor, man homem, woman mulher, "
        "child criança, girl menina, friend amigo, people gente, father pai, mother mãe, brother irmão, son filho, "
        "daughter filha, king rei, god deus, saint santo, water água, fire fogo, earth terra, sea mar, river rio, "
        "mountain monte, sky céu, sun sol, moon lua, tree árvore, flower flor, dog cão, cat gato, horse cavalo, bread pão, "
        "milk leite, wine vinho, book livro, school escola, door porta, street rua, church igreja, war guerra, hand mão, "
        "head cabeça, heart coração, white branco, black preto, red vermelho, green verde, blue azul, good bom, bad mau, "
        "big grande, small pequeno, new novo, old velho, beautiful bela, two dois, three três, four quatro, five cinco, "
        "seven sete, eight oito, ten dez, hundred cem, thousand mil, other outro, same mesmo, first primeiro, last último, "
        "bridge ponte, field campo, party festa, blood sangue, gold ouro, name nome, word palavra, work trabalho, part parte, "
        "high alto, boy menino, bird pássaro, fish peixe, egg ovo, window janela, wall parede, bed cama, letter carta, "
        "boat barco, foot pé, mouth boca, market mercado, village aldeia, island ilha, air ar, light luz, law lei, "
        "song canção, sugar açúcar, snow neve, rain chuva, stone pedra, leg perna, skin pele, beach praia, road estrada, "
        "game jogo, voice voz, cheese queijo, table mesa, money dinheiro, and e, is é, not não, for para, from desde, "
        "on sobre, with com, without sem, but mas, where onde, how como, when quando, who quem, what que, he ele, she ela, "
        "we nós, they eles, I eu, my meu, your seu, the os, of da, in em, by por, a uma, more mais, very muito, also também, "
        "always sempre, never nunca, now agora, here aqui, one um, all todo, nothing nada, between entre, against contra, "
        "until até, before antes, after depois, if se, because porque, make fazer, say dizer, see ver, was era, are são, "
        "this esta, these estes, thanks obrigado, only só, every cada, well bem"
    ),
}


class Pairs(NamedTuple):
    """Words of two languages: the second language, the ids of both words of each pair, and how many pairs are listed."""

    language: str
    ids: tuple[tuple[int, int], ...]
    listed: int


class Words:
    """The listed words that are one token each, with a space before them where that makes more of them one token.

    An id that two spellings share, such as that of unknown words, stands for neither.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        listed = _of_classes()
        self._lead = max((" ", ""), key=lambda lead: len(self._ids(listed, lead)))

    def classes(self) -> dict[str, tuple[int, ...]]:
        """The ids of each class, no id in two of them."""
        ids = self._ids(_of_classes(), self._lead)
        return {name: tuple(ids[word] for word in words.split() if word in ids) for name, words in CLASSES.items()}

    def pairs(self) -> Pairs:
        """English words and those of the language that has most of one token each: the first `PAIRS_ENOUGH` pairs."""
        found = [self._pairs(language, [pair.split() for pair in pairs.split(", ")]) for language, pairs in LANGUAGES.items()]
        return max(found, key=lambda pairs: len(pairs.ids))

    def marks(self) -> tuple[int | None, tuple[int, ...], tuple[int, ...]]:
        """What a line has beside its words: the colon, the digits 0 to 3 as far as they are one token each, the line's end."""
        digits = [self._first(f" {digit}", f"{digit}") for digit in range(4)]
        end = self._one("\n")
        return self._one(":"), tuple(digit for digit in digits if digit is not None), () if end is None else (end,)

    def _pairs(self, language: str, pairs: list[list[str]]) -> Pairs:
        ids = self._ids([word for pair in pairs for word in pair], self._lead)
        whole = [(ids[one], ids[other]) for one, other in pairs if one in ids and other in ids]
        return Pairs(language, tuple(whole[:PAIRS_ENOUGH]), len(pairs))

    def _ids(self, words: Iterable[str], lead: str) -> dict[str, int]:
        """The ids of the words that are one token, each with an id of its own."""
        single = {word: token for word in words if (token := self._one(lead + word)) is not None}
        count = Counter(single.values())
        return {word: token for word, token in single.items() if count[token] == 1}

    def _first(self, *spellings: str) -> int | None:
        return next((token for text in spellings if (token := self._one(text)) is not None), None)

    def _one(self, text: str) -> int | None:
        """The id of a text that is one token."""
        ids = self._encode(text)
        return ids[0] if len(ids) == 1 else None


def _of_classes() -> list[str]:
    return [word for words in CLASSES.values() for word in words.split()]


def counted(classes: Mapping[str, tuple[int, ...]], names: Iterable[str]) -> str:
    """How many words there are of each class, and how many are listed."""
    return ", ".join(f"{len(classes[name])} of {len(CLASSES[name].split())} {name}" for name in names)
