"""Generated pairs of sentences that use one word in the same or in two senses (the columns of WiC)."""

import re

from zotune.embedded.draws import Draws
from zotune.embedded.lexicon import CITIES, DAYS, NAMES, PEOPLE, sentence

Row = dict[str, str | int]

# Each word with its two senses: a gloss and sentences that can only be meant in that sense.
SENSES: dict[str, tuple[tuple[str, tuple[str, ...]], tuple[str, tuple[str, ...]]]] = {
    "bank": (
        ("money", ("{p} borrowed money from the bank", "the bank gave {p} a loan", "{p} paid the cash in at the bank")),
        ("river", ("{p} sat on the bank of the river", "boats lay along the grassy bank", "{p} fished from the bank")),
    ),
    "bat": (
        ("animal", ("a bat flew out of the cave", "the bat hung from the roof asleep", "{p} saw a bat with wings")),
        ("club", ("{p} hit the ball with a bat", "{p} swung the wooden bat", "the player dropped his bat")),
    ),
    "ring": (
        ("jewel", ("{p} wore a gold ring", "the ring had a small diamond", "{p} lost a wedding ring")),
        ("call", ("{p} gave us a ring from the phone", "one ring of the bell woke {p}", "the loud ring of the phone")),
    ),
    "match": (
        ("game", ("{p} won the tennis match", "the football match ended late", "our team lost the match to {p}")),
        ("fire", ("{p} lit the candle with a match", "the match burned down", "{p} struck a match in the dark")),
    ),
    "letter": (
        ("mail", ("{p} posted a letter to a friend", "the letter came by mail", "{p} opened the letter from home")),
        ("sign", ("the first letter of the word is wrong", "a is a letter", "{p} wrote each letter of the name")),
    ),
    "spring": (
        ("season", ("flowers bloom in spring", "after winter comes spring", "{p} visits us every spring")),
        ("coil", ("the metal spring in the clock broke", "{p} pressed the steel spring", "a spring holds the lock")),
    ),
    "pen": (
        ("writing", ("{p} wrote with a pen", "the pen ran out of ink", "{p} signed the paper with a pen")),
        ("fence", ("the sheep stood in the pen", "{p} drove the pigs into the pen", "the pen has a wooden fence")),
    ),
    "crane": (
        ("bird", ("a crane flew over the lake", "the crane laid two eggs", "{p} fed the crane and other birds")),
        ("machine", ("the crane lifted steel", "{p} drove the crane at the port", "a crane moved the heavy load")),
    ),
    "note": (
        ("music", ("{p} sang a high note", "the last note of the song", "{p} played the wrong note on the piano")),
        ("message", ("{p} left a note on the door", "a short note told us to wait", "{p} read the note from mother")),
    ),
    "plant": (
        ("green", ("{p} watered the plant", "the plant has green leaves", "a plant needs light and water")),
        ("factory", ("the plant makes steel", "{p} works at the car plant", "the plant sacked many workers")),
    ),
    "trunk": (
        (
            "elephant",
            ("the elephant lifted its trunk", "an elephant drinks with its trunk", "{p} touched its grey trunk"),
        ),
        (
            "box",
            ("{p} packed clothes in the trunk", "the old trunk was full of shirts", "{p} locked the trunk for travel"),
        ),
    ),
    "seal": (
        ("animal", ("a seal swam in the sea", "the seal ate a fish", "{p} fed the seal at the zoo")),
        ("stamp", ("the letter had a wax seal", "{p} broke the seal of the letter", "the royal seal is on the paper")),
    ),
    "wave": (
        ("water", ("a wave hit the ship", "the wave broke on the beach", "{p} rode a wave in the sea")),
        (
            "hand",
            ("{p} gave a wave of the hand", "with a friendly wave {p} left", "{p} answered with a wave and a smile"),
        ),
    ),
    "mouse": (
        ("animal", ("the cat caught a mouse", "a mouse ate the cheese", "{p} saw a mouse in its hole")),
        (
            "computer",
            ("{p} clicked with the mouse", "the computer needs a mouse", "{p} plugged in the mouse and screen"),
        ),
    ),
    "glass": (
        ("drink", ("{p} drank a glass of water", "the glass was full of wine", "{p} poured milk into a glass")),
        ("window", ("the window is made of glass", "{p} cut the glass for the window", "the door of glass broke")),
    ),
    "light": (
        ("lamp", ("{p} turned on the light", "the light in the lamp is bright", "the light of the sun woke {p}")),
        ("weight", ("the bag is light to carry", "{p} lifted the light box", "feathers are light, stones weigh more")),
    ),
    "fan": (
        ("admirer", ("{p} is a fan of the team", "every fan cheered the singer", "a fan asked {p} to sign")),
        ("cooling", ("the fan cooled the hot room", "{p} switched the fan on in the heat", "a fan blew air at {p}")),
    ),
    "train": (
        ("rail", ("{p} missed the train", "the train reached the station", "{p} took the train to {c}")),
        ("teach", ("{p} will train the dogs", "they train for the race", "coaches train young players hard")),
    ),
    "club": (
        ("group", ("{p} joined the chess club", "the members of the club met", "our club has new members")),
        ("stick", ("{p} hit the golf ball with a club", "the giant swung a club", "{p} held a heavy wooden club")),
    ),
    "star": (
        ("sky", ("a star shone in the night sky", "{p} watched a star", "the star is far from the earth")),
        ("fame", ("the star signed books for {p}", "{p} became a star of film", "the film star met {p}")),
    ),
}
_TIMES = (*(f"on {day}" for day in DAYS), "yesterday", "last year", "again", "that day", "one evening")
_FRAMES = ("{text} {time}", "{text} in {city}", "{time} {text}", "{who} said that {text}", "{text}, as {who} told us")


def _use(draws: Draws, frames: tuple[str, ...]) -> str:
    person = draws.pick((*NAMES, *(f"the {noun}" for noun in PEOPLE)))
    text = draws.pick(frames).format(p=person, c=draws.pick(CITIES))
    frame = draws.pick(_FRAMES)
    return sentence(frame.format(text=text, time=draws.pick(_TIMES), city=draws.pick(CITIES), who=draws.pick(NAMES)))


def use_with_gloss(draws: Draws) -> tuple[str, str, str]:
    """Return a word, a sentence that uses it, and the gloss of the sense it has there."""
    word = draws.pick(tuple(SENSES))
    gloss, frames = draws.pick(SENSES[word])
    return word, _use(draws, frames), gloss


def same_sense(draws: Draws, label: int) -> Row:
    """Return a row of WiC: label 1 when both sentences use the word in the same sense, 0 when they do not.

    `start1`, `end1`, `start2` and `end2` are the character offsets of the word in the two sentences.
    """
    word = draws.pick(tuple(SENSES))
    first = draws.below(2)
    second = first if label == 1 else 1 - first
    row: Row = {"word": word}
    for number, sense in ((1, first), (2, second)):
        text = _use(draws, SENSES[word][sense][1])
        place = re.search(rf"\b{word}\b", text, flags=re.IGNORECASE)
        assert place is not None, f"a sentence for {word!r} does not contain it"
        row |= {f"sentence{number}": text, f"start{number}": place.start(), f"end{number}": place.end()}
    row["label"] = label
    return row
