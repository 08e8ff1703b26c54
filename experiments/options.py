"""What the scripts of the experiments are told; nothing here takes long to import."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent


def parser_of(doc: str, cases: Iterable[str], *, needed: bool) -> argparse.ArgumentParser:
    """What the scripts are told; ``needed``: whether they cannot do without data and models."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--encoder", type=Path, required=True, help="what experiments/encoder.py made")
    parser.add_argument("--decoder", type=Path, help="what experiments/decoder.py made")
    parser.add_argument("--data", type=Path, required=needed, help="holds a folder for each task")
    parser.add_argument("--models", type=Path, required=needed, help="holds opt-mini and llama-stories260K")
    parser.add_argument("--only", nargs="+", choices=list(cases))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What a script was told, once the folders are there."""
    options = parser.parse_args()
    for name in ("encoder", "decoder", "data", "models"):
        folder = getattr(options, name, None)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} {folder} is no folder")
    return options


def need_decoder(parser: argparse.ArgumentParser, options: argparse.Namespace, cases: Iterable[str]) -> None:
    """Refuse cases of the GPT-2 where nobody said where it is."""
    if options.decoder is None and any("gpt2" in case for case in cases):
        parser.error("the cases of gpt2 need --decoder, what experiments/decoder.py made")
