"""An argparse parser of the settings: exact names only, every mistake a `ConfigError` with one sentence."""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from zotune.config import FLAGS, METHOD_FLAGS, ConfigError, FlagOfField, methods_of, nearest

_SECTIONS: Final = {
    "run": "which run",
    "compare": "what to compare",
    "sweep": "how to search",
    "what": "what to train",
    "data": "data",
    "loop": "loop",
    "optimizer": "optimizer",
    "queries": "forward passes (all zeroth-order methods)",
    "model": "model and machine",
    "results": "results",
}
_METAVARS: Final = {"whole": "N", "number": "X", "text": "NAME", "path": "FOLDER"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flag, _, problem = message.removeprefix("argument ").partition(": ")
        if problem.startswith("expected"):
            raise ConfigError(f"{flag} needs a value.")
        if problem.startswith("ignored explicit argument"):
            raise ConfigError(f"{flag} is a switch, so it takes no value; leave the value out.")
        raise ConfigError(f"{message}.")


def parse_flags(
    program: str,
    about: str,
    words: Sequence[str],
    *,
    flags: Mapping[str, FlagOfField] = FLAGS,
    bare: str | Sequence[str] = (),
) -> dict[str, str | bool]:
    """Those of `flags` that are given in `words`: name to text, or to True for a switch.

    Words without a flag are the values of the flags `bare`, in that order.

    Raises `ConfigError` for an unknown flag (with the nearest name), a missing value, or a word that belongs to no
    flag; `SystemExit` after `--help` has been printed.
    """
    names = (bare,) if isinstance(bare, str) else tuple(bare)
    known, unknown = _parser(program, about, flags, names).parse_known_args(_joined(words, flags))
    for name in names:
        if not hasattr(known, name) and unknown and not unknown[0].startswith("-"):
            setattr(known, name, unknown.pop(0))
    if unknown:
        name = unknown[0].split("=")[0]
        if not name.startswith("-"):
            raise ConfigError(f"{name!r} belongs to no flag; flags are written --name value.")
        like = nearest(name.lstrip("-").replace("-", "_"), flags, prefix="--")
        raise ConfigError(f"There is no flag {name}{like}")
    return vars(known)


def _parser(program: str, about: str, flags: Mapping[str, FlagOfField], bare: Sequence[str]) -> argparse.ArgumentParser:
    usage = " ".join([program, *(name.upper() for name in bare), "[--flag value ...]"])
    parser = _Parser(prog=program, description=about, allow_abbrev=False, usage=usage)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, described in flags.items():
        section = _SECTIONS.get(described.flag.group) or "only with " + ", ".join(methods_of(name))
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        if described.kind == "switch":
            groups[section].add_argument(
                f"--{name}", action="store_true", default=argparse.SUPPRESS, help=_help(name, described)
            )
        else:
            groups[section].add_argument(
                f"--{name}",
                metavar=described.flag.metavar or _METAVARS[described.kind],
                default=argparse.SUPPRESS,
                help=_help(name, described),
            )
    return parser


def _help(name: str, described: FlagOfField) -> str:
    parts = [described.flag.help]
    if described.flag.choices:
        parts.append(f": {' '.join(described.flag.choices)}")
    if name in METHOD_FLAGS and described.flag.group == "optimizer":
        parts.append(f", with {', '.join(methods_of(name))}")
    if described.kind != "switch":
        parts.append(f" (default: {described.default_text})")
    return "".join(parts).replace("%", "%%")


def _joined(words: Sequence[str], flags: Mapping[str, FlagOfField]) -> list[str]:
    # argparse takes -1e-3 for a flag; --lr=-1e-3 it reads, and the range check can then say what is wrong with it.
    joined: list[str] = []
    for word in words:
        if re.match(r"-[\d.]", word) and joined and joined[-1].removeprefix("--") in flags:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
