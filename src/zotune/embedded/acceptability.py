"""Generated sentences with and without an error of grammar (the columns of CoLA)."""

from collections.abc import Callable

from zotune.embedded.draws import Draws
from zotune.embedded.lexicon import (
    COLOURS,
    DAYS,
    DOINGS,
    FEMALE,
    KINDS,
    MALE,
    MOODS,
    PEOPLE,
    PLACES,
    STATES,
    THINGS,
    a,
    gerund,
    participle,
    past,
    plural,
    sentence,
    third,
    words,
)

Row = dict[str, str | int]

_VERBS = words("see find buy sell want need like paint carry watch bring choose hide")
_ADVERBS = words("often never always rarely usually sometimes")
_MODALS = words("can must will should may might")
# Nouns that cannot stand without an article: "liked lemon" and "in school" would be no errors.
_COUNTABLE = KINDS["vehicle"] + KINDS["tool"] + KINDS["instrument"]
_WITH_ARTICLE = tuple(place for place in PLACES if place not in ("school", "church"))


def _subject(draws: Draws) -> tuple[str, bool]:
    many = draws.chance(50)
    noun = draws.pick(PEOPLE)
    adjective = draws.pick(("", "", "young", "old", *MOODS))
    return f"the {adjective} {plural(noun) if many else noun}", many


def _object(draws: Draws) -> str:
    return f"{draws.pick(('the', 'this', 'that'))} {draws.pick(('', *COLOURS, *STATES))} {draws.pick(THINGS)}"


def _tail(draws: Draws) -> str:
    return draws.pick(("", f"in the {draws.pick(PLACES)}", f"on {draws.pick(DAYS)}", "every day", "again"))


def _agreement(draws: Draws, good: bool) -> str:
    subject, many = _subject(draws)
    verb = draws.pick(_VERBS)
    form = verb if many == good else third(verb)
    return f"{subject} {draws.pick(('', *_ADVERBS))} {form} {_object(draws)} {_tail(draws)}"


def _be_agreement(draws: Draws, good: bool) -> str:
    subject, many = _subject(draws)
    forms = draws.pick((("is", "are"), ("was", "were")))
    rest = draws.pick((draws.pick(MOODS), f"{gerund(draws.pick(DOINGS))}", f"in the {draws.pick(PLACES)}"))
    return f"{subject} {forms[many == good]} {rest} {draws.pick(('', 'today', 'again', 'now'))}"


def _word_order(draws: Draws, good: bool) -> str:
    noun, thing, verb = draws.pick(PEOPLE), draws.pick(THINGS), past(draws.pick(_VERBS))
    colour = draws.pick(COLOURS)
    right = f"the {noun} {verb} the {colour} {thing}"
    wrong = (
        f"{noun} the {verb} the {colour} {thing}",
        f"the {noun} {verb} {colour} the {thing}",
        f"the {noun} the {colour} {thing} {verb}",
        f"{verb} the {noun} the {colour} {thing}",
    )
    return f"{right if good else draws.pick(wrong)} {_tail(draws)}"


def _missing_word(draws: Draws, good: bool) -> str:
    noun, thing, verb = draws.pick(PEOPLE), draws.pick(_COUNTABLE), past(draws.pick(_VERBS))
    place = draws.pick(_WITH_ARTICLE)
    right = f"the {noun} {verb} {a(thing)} in the {place}"
    wrong = (
        f"{noun} {verb} {a(thing)} in the {place}",
        f"the {noun} {verb} {thing} in the {place}",
        f"the {noun} {a(thing)} in the {place}",
        f"the {noun} {verb} {a(thing)} in {place}",
        f"the {verb} {a(thing)} in the {place}",
        f"the {noun} {verb} {a(thing)} in the",
    )
    return right if good else draws.pick(wrong)


def _verb_form(draws: Draws, good: bool) -> str:
    subject, many = _subject(draws)
    # "read" and the like would look the same in two forms; none of _VERBS does.
    verb = draws.pick(_VERBS)
    if draws.chance(50):
        start, right, wrong = draws.pick(_MODALS), verb, [third(verb), gerund(verb)]
    else:
        start, right, wrong = ("have" if many else "has"), participle(verb), [verb, third(verb), gerund(verb)]
    return f"{subject} {start} {right if good else draws.pick(wrong)} {_object(draws)} {_tail(draws)}"


def _determiner(draws: Draws, good: bool) -> str:
    many = draws.chance(50)
    thing = draws.pick(THINGS)
    words = (("these", "those", "many", "several", "both"), ("this", "that", "every", "one", "each"))
    word = draws.pick(words[0] if many == good else words[1])
    noun = plural(thing) if many else thing
    return f"{draws.pick(FEMALE + MALE)} {past(draws.pick(_VERBS))} {word} {noun} {_tail(draws)}"


def _reflexive(draws: Draws, good: bool) -> str:
    female = draws.chance(50)
    pronoun = "herself" if female == good else "himself"
    verb = draws.pick(("saw", "painted", "hurt", "described", "watched", "blamed"))
    return f"{draws.pick(FEMALE if female else MALE)} {verb} {pronoun} {_tail(draws)}"


_FORMS: tuple[Callable[[Draws, bool], str], ...] = (
    _agreement,
    _be_agreement,
    _word_order,
    _word_order,
    _missing_word,
    _missing_word,
    _verb_form,
    _determiner,
    _reflexive,
)


def judgement(draws: Draws, label: int) -> Row:
    """Return one sentence; label 1 is acceptable, 0 has exactly one error.

    The errors are of agreement, word order, a missing word, a verb form, a determiner or a reflexive pronoun.
    """
    return {"sentence": sentence(draws.pick(_FORMS)(draws, label == 1)), "label": label}
