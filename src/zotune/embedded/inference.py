"""Generated pairs of premise and hypothesis whose relation follows from the words (the columns of MNLI, RTE and CB)."""

from collections.abc import Callable

from zotune.embedded.draws import Draws
from zotune.embedded.lexicon import (
    ACTIONS,
    CITIES,
    COLOURS,
    DAYS,
    DOINGS,
    GROUPS,
    KIND_OF,
    MOODS,
    NAMES,
    NUMBERS,
    OPPOSITE,
    OPPOSITES,
    PEOPLE,
    PLACES,
    SURNAMES,
    SYNONYMS,
    THINGS,
    a,
    participle,
    past,
    sentence,
    words,
)

Row = dict[str, str | int]
Pair = tuple[str, str]

ENTAILED, NEUTRAL, CONTRADICTED = 0, 1, 2


def _event(draws: Draws, relation: int) -> Pair:
    """Somebody did something to a thing: dropped or added details, kinds, passives, synonyms and denials."""
    who, verb, thing = draws.pick(PEOPLE), draws.pick(ACTIONS), draws.pick(THINGS)
    colour, place, day = draws.pick(COLOURS), draws.pick(PLACES), draws.pick(DAYS)
    with_place = draws.chance(50)
    detail = f"in the {place}" if with_place else f"on {day}"
    premise = f"the {who} {past(verb)} {a(f'{colour} {thing}')} {detail}"
    plain = f"the {who} {past(verb)} {a(thing)}"
    if relation == ENTAILED:
        choices = [
            plain,
            f"the {who} {past(verb)} {a(KIND_OF[thing])}",
            f"somebody {past(verb)} {a(thing)}",
            f"{a(f'{colour} {thing}')} was {participle(verb)} {detail}",
            f"{a(thing)} was {participle(verb)} by the {who}",
        ]
        if verb in SYNONYMS:
            choices.append(f"the {who} {past(SYNONYMS[verb])} {a(thing)}")
        return premise, draws.pick(choices)
    if relation == NEUTRAL:
        other = f"on {day}" if with_place else f"in the {place}"
        mood = draws.pick(MOODS)
        choices = [f"{plain} {other}", f"the {mood} {who} {past(verb)} {a(thing)}", f"{plain} to help a friend"]
        return premise, draws.pick(choices)
    choices = [
        f"the {who} did not {verb} {a(thing)}",
        f"the {who} did not {verb} anything",
        f"nobody {past(verb)} {a(thing)}",
        f"the {who} never {past(verb)} {a(KIND_OF[thing])}",
        f"no {thing} was {participle(verb)}",
    ]
    return premise, draws.pick(choices)


def _state(draws: Draws, relation: int) -> Pair:
    """A thing that belongs to somebody and its properties: opposites contradict, other properties stay open."""
    who, thing, colour = draws.pick(PEOPLE), draws.pick(THINGS), draws.pick(COLOURS)
    first, second = draws.sample(tuple(OPPOSITES), 2)
    state = draws.pick((first, OPPOSITES[first]))
    owned = f"the {who}'s {thing}"
    premise = f"{owned} is {draws.pick((f'{state} and {colour}', f'{colour} and {state}', state))}"
    if relation == ENTAILED:
        choices = [f"{owned} is not {OPPOSITE[state]}", f"the {who} has {a(thing)}"]
        if colour in premise:
            choices.append(f"{owned} is {state}")
    elif relation == NEUTRAL:
        open_state = draws.pick((second, OPPOSITES[second]))
        choices = [f"{owned} is {open_state}", f"{owned} is not {open_state}", f"the {who} likes the {thing}"]
    else:
        choices = [f"{owned} is {OPPOSITE[state]}", f"{owned} is not {state}", f"the {who} has no {thing}"]
    return premise, draws.pick(choices)


def _quantity(draws: Draws, relation: int) -> Pair:
    """All, some, none of a group, and numbers; a group that is spoken of is understood to have members."""
    group, doing = draws.pick(GROUPS), draws.pick(DOINGS)
    place = draws.pick(PLACES)
    at, done = f"the {group} in the {place}", past(doing)
    mood = draws.pick(MOODS)
    low, middle, high = (NUMBERS[i] for i in sorted(draws.sample(range(len(NUMBERS)), 3)))
    pairs = {
        ENTAILED: (
            (f"all of {at} {done}", f"some of {at} {done}"),
            (f"none of {at} {done}", f"not all of {at} {done}"),
            (f"exactly {middle} of {at} {done}", f"more than {low} of {at} {done}"),
            (f"exactly {middle} of {at} {done}", f"some of {at} {done}"),
        ),
        NEUTRAL: (
            (f"some of {at} {done}", f"the {mood} {group} {done}"),
            (f"all of {at} {done}", f"all of {at} were {mood}"),
            (f"many of {at} {done}", f"exactly {middle} of {at} {done}"),
            (f"exactly {middle} of {at} {done}", f"exactly {middle} of {at} were {mood}"),
        ),
        CONTRADICTED: (
            (f"all of {at} {done}", f"none of {at} {done}"),
            (f"none of {at} {done}", f"some of {at} {done}"),
            (f"exactly {middle} of {at} {done}", f"exactly {draws.pick((low, high))} of {at} {done}"),
            (f"some of {at} {done}", f"none of {at} {done}"),
            (f"exactly {middle} of {at} {done}", f"fewer than {low} of {at} {done}"),
        ),
    }
    return draws.pick(pairs[relation])


def _order(draws: Draws, relation: int) -> Pair:
    """Two people and the order of what they did."""
    first, second = draws.sample(PEOPLE, 2)
    done = past(draws.pick(("leave", "arrive", "sing", "dance", "rest")))
    premise = f"the {first} {done} before the {second}"
    if relation == ENTAILED:
        return premise, draws.pick((f"the {second} {done} after the {first}", f"the {first} {done}"))
    if relation == NEUTRAL:
        mood = draws.pick(MOODS)
        open_choices = (
            f"the {first} {done} because of the rain",
            f"the {second} was {mood}",
            f"the {first} was {mood}",
        )
        return premise, draws.pick(open_choices)
    choices = (f"the {second} {done} before the {first}", f"the {first} {done} after the {second}")
    return premise, draws.pick((*choices, f"the {first} never {done}"))


_FORMS: tuple[Callable[[Draws, int], Pair], ...] = (_event, _event, _state, _state, _quantity, _order)
# How a speaker may bring in a premise without taking anything back.
_OPENINGS = ("", "", "", "", "well, ", "yes, ", "in the end, ", "as we know, ", "after all, ")


def natural_inference(draws: Draws, label: int) -> Row:
    """Return a row of MNLI: label 0 entailment, 1 neutral, 2 contradiction."""
    premise, hypothesis = draws.pick(_FORMS)(draws, label)
    return {
        "premise": sentence(draws.pick(_OPENINGS) + premise),
        "hypothesis": sentence(hypothesis),
        "label": label,
    }


def textual_entailment(draws: Draws, label: int) -> Row:
    """Return a row of RTE, news of two sentences: label 0 entailment, 1 not entailment (open or contradicted)."""
    name = f"{draws.pick(NAMES)} {draws.pick(SURNAMES)}"
    who, (city, other_city) = draws.pick(PEOPLE[:26]), draws.sample(CITIES, 2)
    verb, thing, colour, day = draws.pick(ACTIONS), draws.pick(THINGS), draws.pick(COLOURS), draws.pick(DAYS)
    object_ = a(f"{colour} {thing}")
    first = draws.pick(
        (
            f"{name}, {a(who)} from {city}, {past(verb)} {object_} on {day}",
            f"on {day} {name}, {a(who)} who lives in {city}, {past(verb)} {object_}",
            f"{object_} was {participle(verb)} by {name}, {a(who)} from {city}, on {day}",
        )
    )
    extra_relation = draws.below(3) if label else ENTAILED
    extra, about_extra = _state(draws, extra_relation if label and extra_relation else ENTAILED)
    other_who = draws.pick([person for person in PEOPLE[:26] if person != who])
    if label == 0:
        choices = [
            f"{name} is {a(who)}",
            f"{name} {past(verb)} {a(thing)}",
            f"{name} {past(verb)} {a(KIND_OF[thing])}",
            f"{a(who)} from {city} {past(verb)} {a(thing)}",
            f"{a(thing)} was {participle(verb)} on {day}",
            about_extra,
        ]
    else:
        choices = [
            f"{name} is {a(other_who)}",
            f"{name} is {a(who)} from {other_city}",
            f"{name} did not {verb} {a(thing)}",
            f"{name} {past(verb)} {a(thing)} for a friend",
            f"nobody {past(verb)} {a(thing)}",
        ]
        if extra_relation:
            choices.append(about_extra)
    return {
        "premise": f"{sentence(first)} {sentence(extra)}",
        "hypothesis": sentence(draws.pick(choices)),
        "label": label,
    }


_FACTIVE = words("knew realised noticed remembered discovered regretted learned")
_OPEN = words("thought hoped believed suspected said claimed guessed")
_FALSE = ("wrongly thought", "falsely claimed", "pretended", "wrongly believed", "lied")
_SUCCESS = ("managed to", "remembered to", "was able to and did")
_ATTEMPT = ("wanted to", "planned to", "hoped to", "promised to", "agreed to")
_FAILURE = ("failed to", "forgot to", "refused to", "was not able to")
_ASIDES = ("", "", "It was a long day. ", "A: And then? B: ", "We heard it later. ", "A: What do you think? B: ")


def commitment(draws: Draws, label: int) -> Row:
    """Return a row of CB: label 0 entailment, 1 contradiction, 2 neutral.

    Whether the speaker stands by the clause under the verb follows from the verb: "noticed that" takes it for true
    (also under "did not"), "pretended that" for false, "hoped that" leaves it open; likewise "managed to", "failed to",
    "wanted to".
    """
    speaker, who = draws.sample(PEOPLE, 2)
    verb, thing, place = draws.pick(ACTIONS), draws.pick(THINGS), draws.pick(PLACES)
    object_ = f"{a(f'{draws.pick(COLOURS)} {thing}')} in the {place}"
    kind = (ENTAILED, CONTRADICTED, NEUTRAL)[label]
    positive = draws.chance(50)
    # A denied hypothesis turns entailment into contradiction and back, and leaves what is open open.
    attitude = kind if positive or kind == NEUTRAL else CONTRADICTED - kind
    if draws.chance(60):
        verbs = {ENTAILED: _FACTIVE, NEUTRAL: _OPEN, CONTRADICTED: _FALSE}[attitude]
        premise = f"the {speaker} {draws.pick(verbs)} that the {who} {past(verb)} {object_}"
    else:
        verbs = {ENTAILED: _SUCCESS, NEUTRAL: _ATTEMPT, CONTRADICTED: _FAILURE}[attitude]
        premise = f"the {who} {draws.pick(verbs)} {verb} {object_}"
    hypothesis = f"the {who} {past(verb)} {object_}" if positive else f"the {who} did not {verb} {object_}"
    return {
        "premise": draws.pick(_ASIDES) + sentence(premise),
        "hypothesis": sentence(hypothesis),
        "label": label,
    }
