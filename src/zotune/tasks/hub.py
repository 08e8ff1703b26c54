"""Data sets of the Hugging Face hub, and what goes wrong with them in one sentence each."""

from __future__ import annotations

import os
import re
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError


def load(repository: str, configuration: str | None, split: str | None, *, files: str) -> Any:
    """What `datasets.load_dataset` gives; the library keeps its download in its own cache folder.

    Args:
        repository: name on the hub, or a folder that the library reads.
        configuration: None where there is only one.
        split: None for all of them by name.
        files: how to give the same data as files; for the sentences.

    Raises:
        ValueError: one sentence that says what is wrong and what to do.
    """
    try:
        try:
            return datasets.load_dataset(repository, configuration, split=split)
        except RuntimeError as error:
            if _SCRIPT not in str(error):
                raise
            return _converted(repository, configuration, split, error)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"{repository} ({', '.join(name for name in (configuration or 'default', split) if name)})"
        raise ValueError(_sentence(error, repository, where, files)) from error


_SCRIPT = "scripts are no longer supported"
"""What the library says about a repository that is a program; its rows are then in a branch of the hub's own making."""
_CONVERTED = "refs/convert/parquet"


def _converted(repository: str, configuration: str | None, split: str | None, script: Exception) -> Any:
    """The rows as the hub has converted them; there a single configuration may have another name.

    Raises:
        Exception: what the library said first, where there is no such branch.
    """
    try:
        return datasets.load_dataset(repository, configuration, split=split, revision=_CONVERTED)
    except DatasetNotFoundError:
        raise script from None
    except ValueError as error:
        names = _configurations(error)
        if len(names) != 1:
            raise
        return datasets.load_dataset(repository, names[0], split=split, revision=_CONVERTED)


def _configurations(error: Exception) -> list[str]:
    """The configurations that the library lists where there is none of the name that it was given."""
    there = re.search(r"(?:Available|available configs): \[(.*?)\]", str(error), re.S)
    return [name.strip(" '\"") for name in there[1].split(",")] if there is not None else []


def _sentence(error: Exception, repository: str, where: str, files: str) -> str:
    said = str(error)
    if isinstance(error, DatasetNotFoundError) and "gated" in said:
        if os.environ.get("HF_TOKEN"):
            return (
                f"{repository} is a gated data set and your HF_TOKEN has no access to it; ask for access on its page."
            )
        return (
            f"{repository} is a gated data set; ask for access on its page and set the environment variable HF_TOKEN."
        )
    if isinstance(error, DatasetNotFoundError):
        return (
            f"There is no data set {repository} on the Hugging Face hub, or none that you may see; check the spelling."
        )
    if names := _configurations(error):
        listed = ", ".join(names)
        return f"{where} is no configuration of {repository}; give one of {listed} as {repository}:CONFIGURATION."
    if isinstance(error, (ValueError, RuntimeError)):
        return f"{where} could not be loaded ({(said.strip().splitlines() or [''])[0].rstrip('.')}); {files}."
    # Offline shows as ConnectionError, as a missing cache entry or as the hub's own offline error, by version.
    return (
        f"{where} could not be loaded from the Hugging Face hub ({type(error).__name__}); connect to the network, or"
        f" {files}."
    )
