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
        return datasets.load_dataset(repository, configuration, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"{repository} ({', '.join(name for name in (configuration or 'default', split) if name)})"
        raise ValueError(_sentence(error, repository, where, files)) from error


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
    there = re.search(r"(?:Available|available configs): \[(.*?)\]", said, re.S)
    if there is not None:
        names = ", ".join(name.strip(" '\"") for name in there[1].split(","))
        return f"{where} is no configuration of {repository}; give one of {names} as {repository}:CONFIGURATION."
    if isinstance(error, (ValueError, RuntimeError)):
        return f"{where} could not be loaded ({(said.strip().splitlines() or [''])[0].rstrip('.')}); {files}."
    # Offline shows as ConnectionError, as a missing cache entry or as the hub's own offline error, by version.
    return (
        f"{where} could not be loaded from the Hugging Face hub ({type(error).__name__}); connect to the network, or"
        f" {files}."
    )
