"""The words of the generated English, and the regular part of English inflection."""

_VOWELS = "aeiou"


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text that are separated by blanks."""
    return tuple(text.split())


PEOPLE = words(
    "doctor teacher farmer baker lawyer singer painter nurse pilot sailor soldier student writer gardener judge "
    "driver cook priest dancer butcher plumber tailor chemist actor banker engineer professor manager waiter "
    "neighbour child woman man girl boy"
)
GROUPS = words("students guests players workers children tourists farmers visitors nurses pupils singers dogs")
FEMALE = words("Anna Maria Clara Emma Julia Laura Sofia Helen Alice Nora Ruth Sarah Martha Irene Diana Eva")
MALE = words("Peter Paul John Thomas Martin David Henry Oscar Victor Simon Robert Frank George Adam Felix Hugo")
NAMES = FEMALE + MALE
SURNAMES = words("Keller Moreno Novak Larsen Conti Weber Silva Brandt Fischer Olsen Rossi Marek Dubois Tanaka")
CITIES = words("Paris London Rome Madrid Vienna Berlin Oslo Lisbon Prague Dublin Athens Warsaw Cairo Boston")
TOWNS = words("Alden Brook Corley Dunmore Elton Farley Grafton Hadley Ivers Kelby Larkin Milton Norwood Orford")
RIVERS = words("Arle Bourne Calder Dove Esk Frome Glen Hale Isen Kern")
MONTHS = words("January February March April May June July August September October November December")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
PLACES = words("garden kitchen park market station library office museum hotel village harbour school street church")
COLOURS = words("red blue green black white brown yellow grey")

KINDS = {
    "vehicle": words("car bus truck van tractor bicycle"),
    "fruit": words("pear plum cherry peach lemon banana"),
    "flower": words("rose tulip lily daisy"),
    "animal": words("dog cat horse cow goat rabbit"),
    "tool": words("hammer saw spade drill"),
    "instrument": words("violin piano flute guitar drum"),
}
THINGS = tuple(thing for things in KINDS.values() for thing in things)
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}

# Verbs that take any thing as their object; for some of them a verb that says the same.
ACTIONS = words("buy find sell paint steal see choose hide photograph describe")
SYNONYMS = {"buy": "purchase", "find": "discover", "see": "notice", "choose": "select", "hide": "conceal"}
DOINGS = words("sleep laugh sing dance wait work leave arrive smile cry travel rest talk swim run")
OPPOSITES = {
    "old": "new",
    "big": "small",
    "heavy": "light",
    "clean": "dirty",
    "cheap": "expensive",
    "wet": "dry",
    "open": "closed",
    "full": "empty",
    "warm": "cold",
    "safe": "dangerous",
    "strong": "weak",
    "fast": "slow",
}
OPPOSITE = OPPOSITES | {second: first for first, second in OPPOSITES.items()}
STATES = tuple(OPPOSITE)
MOODS = words("happy tired angry hungry proud nervous lonely busy")
NUMBERS = words("two three four five six seven eight nine ten twelve")

_PLURALS = {"child": "children", "woman": "women", "man": "men", "person": "people"}
_PASTS = {
    "buy": ("bought", "bought"),
    "find": ("found", "found"),
    "sell": ("sold", "sold"),
    "steal": ("stole", "stolen"),
    "see": ("saw", "seen"),
    "choose": ("chose", "chosen"),
    "hide": ("hid", "hidden"),
    "sleep": ("slept", "slept"),
    "sing": ("sang", "sung"),
    "leave": ("left", "left"),
    "swim": ("swam", "swum"),
    "run": ("ran", "run"),
    "bring": ("brought", "brought"),
}
_GERUNDS = {"swim": "swimming", "run": "running", "see": "seeing"}


def _y_after_consonant(word: str) -> bool:
    return word.endswith("y") and word[-2] not in _VOWELS


def _add_s(word: str) -> str:
    if _y_after_consonant(word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    return _PLURALS.get(noun) or _add_s(noun)


def third(verb: str) -> str:
    """Return the third person singular of the present: "carry" gives "carries"."""
    return _add_s(verb)


def past(verb: str) -> str:
    """Return the simple past of a verb."""
    return _PASTS[verb][0] if verb in _PASTS else _add_ed(verb)


def participle(verb: str) -> str:
    """Return the past participle of a verb."""
    return _PASTS[verb][1] if verb in _PASTS else _add_ed(verb)


def gerund(verb: str) -> str:
    """Return the -ing form of a verb."""
    return _GERUNDS.get(verb) or (verb[:-1] if verb.endswith("e") else verb) + "ing"


def _add_ed(verb: str) -> str:
    if _y_after_consonant(verb):
        return verb[:-1] + "ied"
    return verb + ("d" if verb.endswith("e") else "ed")


def a(phrase: str) -> str:
    """Put the indefinite article before a phrase: "old car" gives "an old car"."""
    return ("an " if phrase[0].lower() in _VOWELS else "a ") + phrase


def sentence(text: str, end: str = ".") -> str:
    """Write a sentence: one space between words, a capital at the start, a mark at the end."""
    text = " ".join(text.split())
    return text[0].upper() + text[1:] + end
