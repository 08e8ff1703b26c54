"""Generated questions with a sentence or passage that does or does not answer them (the columns of QNLI and BoolQ)."""

from zotune.embedded.draws import Draws
from zotune.embedded.lexicon import CITIES, DAYS, MONTHS, NAMES, PEOPLE, RIVERS, SURNAMES, TOWNS, a, sentence, words

Row = dict[str, str | int]

# Facts about a person: the questions that ask for it, and the clauses that tell it.
_PERSON_FACTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("where was {name} born", "in which city was {name} born"), ("was born in {city}", "came from {city}")),
    (("when did {name} die", "in which year did {name} die"), ("died in {year}", "lived until {year}")),
    (("what did {name} study", "which subject did {name} study"), ("studied {subject}", "took a degree in {subject}")),
    (("who did {name} marry", "to whom was {name} married"), ("married {friend}", "was the partner of {friend}")),
    (("what was the job of {name}", "what did {name} work as"), ("worked as {who}", "earned a living as {who}")),
    (("how many children did {name} have",), ("had {number} children", "raised {number} children")),
    (("which prize did {name} win", "what did {name} win"), ("won the {prize} prize", "was given the {prize} prize")),
)
_PLACE_FACTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("on which river does {name} lie", "which river flows through {name}"), ("lies on the {river}",)),
    (("when was {name} founded", "in which year was {name} founded"), ("was founded in {year}", "dates from {year}")),
    (("who is the mayor of {name}",), ("has {friend} as its mayor", "is governed by {friend}")),
    (("how many people live in {name}",), ("has {thousands} inhabitants", "is home to {thousands} people")),
    (("on which day is the market of {name} held",), ("holds its market on {day}",)),
    (("what is {name} famous for", "what is {name} known for"), ("is famous for its {product}",)),
)
_SUBJECTS = words("law medicine history music physics chemistry art biology")
_PRODUCTS = words("cheese bread wine cloth glass paper honey beer")
_PRIZES = words("silver golden royal national academy peace")
_NUMBERS = words("two three four five six seven")
_LINKS = ("and", "and later", "and also", "and, it is said,")


def _person(draws: Draws) -> str:
    return f"{draws.pick(NAMES)} {draws.pick(SURNAMES)}"


def answering(draws: Draws, label: int) -> Row:
    """Return a row of QNLI: label 0 when the sentence answers the question, 1 when it does not.

    A sentence tells one or two facts. It fails to answer when it does not tell the fact asked for, or when it tells it
    of somebody or somewhere else.
    """
    about_person = draws.chance(60)
    facts = draws.sample(_PERSON_FACTS if about_person else _PLACE_FACTS, 3)
    name, other = (_person(draws), _person(draws)) if about_person else (f"{town}" for town in draws.sample(TOWNS, 2))
    slots = {
        "city": draws.pick(CITIES),
        "year": str(1700 + 10 * draws.below(32)),
        "subject": draws.pick(_SUBJECTS),
        "friend": _person(draws),
        "who": a(draws.pick(PEOPLE[:26])),
        "number": draws.pick(_NUMBERS),
        "prize": draws.pick(_PRIZES),
        "river": draws.pick(RIVERS),
        "thousands": f"{draws.pick(_NUMBERS)} thousand",
        "day": draws.pick(DAYS),
        "product": draws.pick(_PRODUCTS),
    }
    first, second = (draws.pick(fact[1]).format(**slots) for fact in facts[:2])
    both = draws.chance(60)
    told = f"{first} {draws.pick(_LINKS)} {second}" if both else first
    asked, asked_name = facts[draws.below(2) if both else 0], name
    if label == 1:
        if draws.chance(75) or name == other:
            asked = facts[2]
        else:
            asked_name = other
    question = draws.pick(asked[0]).format(name=asked_name)
    return {
        "question": sentence(question, "?"),
        "sentence": sentence(f"{name} {told}"),
        "label": label,
    }


# Properties of a public place: question, two ways to tell that it holds, two ways to tell that it does not.
_PROPERTIES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "is the {place} open on {day}",
        ("it is open on {day}", "its doors open on {day}"),
        ("it is closed on {day}", "its doors stay shut on {day}"),
    ),
    (
        "are dogs allowed in the {place}",
        ("dogs are allowed", "visitors may bring dogs"),
        ("dogs are not allowed", "visitors may not bring dogs"),
    ),
    (
        "does the {place} have a garden",
        ("it has a large garden", "there is a garden behind it"),
        ("it has no garden", "there is no garden"),
    ),
    (
        "do visitors of the {place} have to pay",
        ("visitors have to pay", "nobody gets in without paying"),
        ("visitors do not have to pay", "everybody gets in without paying"),
    ),
    (
        "can you eat at the {place}",
        ("it has a kitchen that serves food", "food is served all day"),
        ("it has no kitchen", "food is never served"),
    ),
    (
        "is the {place} near the river",
        ("it stands near the river", "the river runs past its walls"),
        ("it stands far from the river", "the river is a long way off"),
    ),
    (
        "was the {place} damaged by fire",
        ("a fire damaged its roof", "it burned in {month}"),
        ("no fire ever damaged it", "it never burned"),
    ),
    (
        "is the {place} owned by the town",
        ("the town owns it", "it belongs to the town"),
        ("the town does not own it", "it belongs to {friend}"),
    ),
)
_BUILDINGS = words("museum library castle theatre hotel school church station harbour palace tower mill")


def yes_or_no(draws: Draws, label: int) -> Row:
    """Return a row of BoolQ: label 1 when the passage says yes to the question, 0 when it says no."""
    place, town = draws.pick(_BUILDINGS), draws.pick(TOWNS)
    slots = {
        "place": f"{place} of {town}",
        "day": draws.pick(DAYS),
        "month": draws.pick(MONTHS),
        "friend": _person(draws),
    }
    told = draws.sample(_PROPERTIES, 2 + draws.below(2))
    asked = draws.below(len(told))
    clauses = []
    for position, (_, holds, fails) in enumerate(told):
        good = label == 1 if position == asked else draws.chance(50)
        clauses.append(sentence(draws.pick(holds if good else fails).format(**slots)))
    opening = draws.pick(("The {place} is well known.", "Many people visit the {place}.", "This is about the {place}."))
    return {
        "question": told[asked][0].format(**slots),
        "passage": f"{opening.format(**slots)} {' '.join(clauses)}",
        "label": label,
    }
