"""Generated short film reviews with a clear verdict (the columns of SST-2)."""

from zotune.embedded.draws import Draws
from zotune.embedded.lexicon import NAMES, SURNAMES, a, words

Row = dict[str, str | int]

POSITIVE = words(
    "wonderful brilliant charming funny moving clever superb lovely gripping fresh delightful touching witty "
    "beautiful warm thrilling smart elegant rich sincere graceful inventive tender honest fine"
)
NEGATIVE = words(
    "terrible dull boring awful clumsy tedious stupid lifeless painful ugly shallow messy predictable weak pointless "
    "flat silly annoying cheap stale hollow lazy dreary ridiculous poor"
)
_GOOD_THINGS = words("delight triumph joy treat masterpiece pleasure success gem")
_BAD_THINGS = words("mess bore disaster waste failure mistake insult disappointment")
_GOOD_VERBS = words("charms delights moves surprises entertains thrills shines works")
_BAD_VERBS = words("bores annoys tires insults drags fails disappoints stumbles")
_FILMS = words("film movie story comedy drama thriller picture sequel romance western")
_PARTS = words("plot acting script music cast dialogue humour ending direction camera opening scene pace")
_DEGREES = ("", "", "very", "truly", "really", "quite", "deeply", "remarkably")
_TIMES = (
    "from start to finish",
    "from the first scene",
    "throughout",
    "all the way",
    "in every scene",
    "at every turn",
)

_PLAIN = (
    "the {part} is {deg} {adj}.",
    "{aadj} {film}, {adj2} {time}.",
    "the {part} is {adj} and the {part2} is {deg} {adj2}.",
    "{name} has made {adeg_adj} {film}.",
    "this {film} is {athing}.",
    "{adj}, {adj2} and {deg} {adj3}.",
    "the {film} {verb} {time}.",
    "what {aadj} {film}, and what {adj2} {part}!",
    "i {felt} every minute of this {adj} {film}.",
    "{name}'s {film} is {athing}, with {aadj} {part} and {aadj2} {part2}.",
    "with its {adj} {part} and {adj2} {part2}, the {film} {verb}.",
    "it is {deg} {adj}, and its {part} {verb} {time}.",
)
# The verdict of these is the opposite of the word that stands in them.
_NEGATED = (
    "the {part} is never {opp}.",
    "this {film} is anything but {opp}.",
    "there is nothing {opp} about the {part} of this {film}.",
    "{name}'s {film} is not {opp} at all.",
    "the {film} is far from {opp}, and its {part} {verb}.",
)
_CONTRASTS = (
    "although the {part} is {opp}, the {film} is {deg} {adj}.",
    "the {part} may be {opp}, but {name} makes it {aadj} {film}.",
    "despite {aopp} {part}, this is {aadj} {film}.",
    "the {part} looks {opp} at first, yet the {film} {verb} {time}.",
    "{name} turns {aopp} idea into {aadj} {film}.",
)


def review(draws: Draws, label: int) -> Row:
    """Return one review; label 1 is positive, 0 negative. In a contrast the main clause gives the verdict."""
    good = label == 1
    adjectives = draws.sample(POSITIVE if good else NEGATIVE, 3)
    opposite = draws.pick(NEGATIVE if good else POSITIVE)
    degree = draws.pick(_DEGREES)
    kind = draws.below(10)
    template = draws.pick(_PLAIN if kind < 7 else _NEGATED if kind < 8 else _CONTRASTS)
    parts = draws.sample(_PARTS, 2)
    text = template.format(
        part=parts[0],
        part2=parts[1],
        film=draws.pick(_FILMS),
        name=f"{draws.pick(NAMES)} {draws.pick(SURNAMES)}",
        deg=degree,
        time=draws.pick(_TIMES),
        adj=adjectives[0],
        adj2=adjectives[1],
        adj3=adjectives[2],
        aadj=a(adjectives[0]),
        aadj2=a(adjectives[1]),
        adeg_adj=a(f"{degree} {adjectives[0]}".strip()),
        opp=opposite,
        aopp=a(opposite),
        athing=a(draws.pick(_GOOD_THINGS if good else _BAD_THINGS)),
        verb=draws.pick(_GOOD_VERBS if good else _BAD_VERBS),
        felt=draws.pick(("loved", "enjoyed", "adored") if good else ("hated", "regretted", "loathed")),
    )
    return {"sentence": " ".join(text.split()), "label": label}
