"""What the command line has to know about a field of the settings."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

Kind = Literal["whole", "number", "text", "path", "switch"]

_KINDS: dict[Any, Kind] = {bool: "switch", int: "whole", float: "number", str: "text", Path: "path"}


@dataclasses.dataclass(frozen=True)
class Flag:
    """Section and meaning of a flag, its choices, how to say its default where that is not one value, what its value
    is called where the kind does not tell, and words that it takes in place of a number."""

    group: str
    help: str
    choices: tuple[str, ...] = ()
    default_text: str = ""
    metavar: str = ""
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlagOfField:
    """A flag together with what the field's type says: its kind and its default."""

    flag: Flag
    kind: Kind
    default: Any

    @property
    def default_text(self) -> str:
        """The default as the help says it."""
        if self.flag.default_text:
            return self.flag.default_text
        return "off" if self.kind == "switch" else f"{self.default:g}" if self.kind == "number" else str(self.default)


def flags_of(settings: type) -> dict[str, FlagOfField]:
    """The flags of a dataclass whose fields are `Annotated[type, Flag(...)]`, by name, in the order of the fields."""
    hints = typing.get_type_hints(settings, include_extras=True)
    flags = {}
    for field in dataclasses.fields(settings):
        annotated, flag = typing.get_args(hints[field.name])
        given = [part for part in typing.get_args(annotated) if part is not types.NoneType] or [annotated]
        flags[field.name] = FlagOfField(flag=flag, kind=_KINDS[given[0]], default=field.default)
    return flags
