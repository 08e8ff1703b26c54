"""From the name of a model to its place, and from the many errors of loading to one sentence each."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from zotune.config.errors import nearest

# The HTTP client behind the hub library has changed more than once; whatever it is, this is its root error.
_TransportError: type[BaseException] = HfHubHTTPError.__bases__[0]

# Every vocabulary that a tokenizer of transformers is read from matches one of these.
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "*.bpe", "bpe.codes", "tekken.json")

# What the Auto classes say of a model that has no form of the wanted kind: of images, speech and the like.
_OTHER_KIND = re.compile(r"Unrecognized configuration class <class '(?:[\w.]*\.)?(\w+)'>")

EMBEDDED = "embedded"


def resolve(name: str, *, flag: str = "--model_name") -> str:
    """Folder of a local or the embedded model, or the name of a repository on the hub as it is.

    Args:
        name: as the user gave it.
        flag: with which; for the sentences.

    Raises:
        ValueError: a path that is not there, is a file, or is a folder without config.json.
    """
    if name == EMBEDDED:
        from zotune.embedded import MODEL_DIR

        return str(MODEL_DIR)
    try:
        path = Path(name).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long for the file system, or the home folder of nobody
        raise ValueError(f"{flag} {name[:100]} cannot be a folder or a name on the hub; check it.") from error
    if is_file:
        raise ValueError(f"{name} is a file; give {flag} the folder that holds the model.")
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ValueError(
                f"{name} is an adapter; give the model that it was trained on, and to zotune evaluate --adapter {name}."
            )
        if not (path / "config.json").is_file():
            raise ValueError(f"{name} is not a model folder: it has no config.json.")
        if (instead := in_place_of_run(path)) is not None:
            raise ValueError(f"{name} is a run folder, not a model; {instead}.")
        return str(path)
    if _looks_like_path(name):
        raise ValueError(f"There is no folder {name}; give {flag} a model folder or a name on the hub.")
    return name


def in_place_of_run(folder: Path, *, adapter: bool = False) -> str | None:
    """What to give in place of a run folder, as a model or as an adapter, in words; None for another kind of folder."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(settings, dict) or "algorithm" not in settings or "model_type" in settings:
        return None
    wanted = "adapter_config.json" if adapter else "config.json"
    kept = [str(folder / name) for name in ("last", "best", "merged") if (folder / name / wanted).is_file()]
    if kept:
        return f"give {' or '.join(kept)}"
    what, needed = ("adapter", "--tuning lora and --save_ckpt") if adapter else ("model", "--save_ckpt")
    return f"it has kept no {what}, which takes {needed} when it is trained"


def _looks_like_path(name: str) -> bool:
    """Names on the hub are `model` or `owner/model`; anything else that is not there was meant as a folder."""
    parts = name.split("/")
    return name.startswith((".", "~", "/")) or os.path.isabs(name) or "\\" in name or len(parts) > 2 or "" in parts


def check_tokenizer_files(name: str, place: str) -> None:
    """Refuse a folder without any tokenizer file, for which the library would build one that knows no word."""
    folder = Path(place)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise ValueError(f"{name} holds no tokenizer; put the tokenizer.json of the model into the folder.")


@contextlib.contextmanager
def explained(name: str, wanted: str) -> Iterator[None]:
    """Turn what is raised while loading `wanted` ("a model") from `name` into a `ValueError` of one sentence."""
    try:
        yield
    except Exception as error:
        # Damaged files make the libraries raise whatever their code runs into: AttributeError, TypeError and more.
        raise ValueError(_sentence(name, wanted, error)) from error


def _sentence(name: str, wanted: str, error: BaseException) -> str:
    chain = list(_causes(error))
    local = name == EMBEDDED or Path(name).expanduser().is_dir()
    if any(isinstance(cause, GatedRepoError) for cause in chain):
        if os.environ.get("HF_TOKEN"):
            return f"{name} is a gated model and your HF_TOKEN has no access to it; ask for access on its page."
        return f"{name} is a gated model; ask for access on its page and set the environment variable HF_TOKEN."
    if any(isinstance(cause, (RepositoryNotFoundError, HFValidationError)) for cause in chain):
        like = nearest(name, (EMBEDDED,))
        return (
            f"There is no model {name} on the Hugging Face hub, nor a folder of that name"
            f"{'; check the spelling.' if like == '.' else like}"
        )
    offline = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, _TransportError, ConnectionError)
    if not local and any(isinstance(cause, offline) for cause in chain):
        return (
            f"{name} is not a folder here and the Hugging Face hub cannot be reached; "
            "connect to the network or give the folder of a downloaded model"
            f"{nearest(name, (EMBEDDED,))}"
        )
    if any(isinstance(cause, json.JSONDecodeError) for cause in chain):
        return f"{name} has a configuration file that is not JSON; download the model again."
    if any(isinstance(cause, SafetensorError) for cause in chain):
        return f"The weights of {name} are damaged or cut short; download the model again."
    other = next((found for cause in chain if (found := _OTHER_KIND.search(str(cause)))), None)
    if other is not None:
        return (
            f"{name} is described by a {other[1]}, and transformers can make no text classifier of such a model; "
            "choose a language model, one that reads tokens, such as BERT, OPT or Llama."
        )
    missing = next((cause for cause in chain if isinstance(cause, ImportError)), None)
    if missing is not None:
        return f"Loading {wanted} from {name} needs a package that is not installed: {_first_sentence(missing)}."
    reason = _first_sentence(error)
    if not isinstance(error, (OSError, ValueError, RuntimeError)):
        reason = f"one of its files is damaged ({type(error).__name__}: {reason})"
    return f"Cannot load {wanted} from {name}: {reason}."


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".: ") if lines else type(error).__name__
