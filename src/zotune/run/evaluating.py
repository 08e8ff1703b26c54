"""`zotune evaluate` as the command line sees it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zotune.config import ConfigError, EvaluateConfig
from zotune.hf.adapters import load_adapter
from zotune.hf.answering import Tick, choices, option_scores, written_answers
from zotune.hf.models import load_language_model, load_tokenizer
from zotune.hf.options import add_option_scores
from zotune.run.base import DTYPES
from zotune.run.machine import choose_machine
from zotune.run.parts import sentences
from zotune.run.seeds import derive_seed
from zotune.run.speech import quiet_libraries
from zotune.run.splits import read_splits
from zotune.tasks import Task
from zotune.tasks.asking import Asked, ask
from zotune.tasks.demonstrations import demonstrations
from zotune.tasks.metrics import score
from zotune.tasks.questions import Row

WITHOUT_CONTENT = "N/A"
"""Text of a question without content (Zhao et al., 2021)."""

_POOL = 64
"""Training rows, for each demonstration, among which those of every class are looked for."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a model answered.

    Attributes:
        scores: the task's metrics by name.
        answers: for each row the number of the chosen option, or the text that was written.
        gold: for each row the numbers or texts that are right.
        texts: what was answered, in words.
    """

    scores: dict[str, float]
    answers: list[Any]
    gold: list[Any]
    texts: list[str]


def launch(config: EvaluateConfig, console: Console) -> int:
    """Ask; the table goes to standard output, everything else to ``console``.

    Returns:
        The exit code: 0, 2 for settings, data or a model that cannot be used, 1 if the file could not be written.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    try:
        with quiet_libraries(say):
            answered = evaluate(config, console)
    except ConfigError as error:
        say(str(error))
        return 2
    _show(config, answered)
    if config.output is None:
        return 0
    try:
        config.output.write_text(json.dumps(_facts(config, answered), indent=1) + "\n")
    except OSError as error:
        say(f"--output {config.output} could not be written ({error.strerror or error}); name another file.")
        return 1
    return 0


def evaluate(config: EvaluateConfig, console: Console) -> Answered:
    """Load what ``config`` names, and ask.

    Raises:
        ConfigError: data or a model that cannot be used.
    """
    with sentences():
        task = config.training().chosen_task()
        if task.writes and (config.calibrate or config.score != "task"):
            raise ConfigError(f"Task {task.name} has no options to compare; leave --calibrate and --score out.")
        training = config.training()
        machine = choose_machine(training, console.print)
        tokenizer = load_tokenizer(config.model_name, trust_remote_code=config.trust_remote_code)
        seed = derive_seed(config.init_seed, 0, "rows")
        pool = config.demonstrations * (_POOL if task.labels else 1)
        training = dataclasses.replace(training, samplesize=max(1, pool))
        splits = read_splits(training, task, tokenizer, seed=seed, training=pool > 0)
        rows = splits.validation.to_list()
        solved = demonstrations(task, splits.train.to_list(), config.demonstrations)
        model = load_language_model(
            config.model_name,
            tokenizer=tokenizer,
            dtype=DTYPES[config.dtype],
            device=machine.device,
            adapted=True,
            trust_remote_code=config.trust_remote_code,
        )
        if config.adapter is not None:
            model = load_adapter(model, config.adapter)
            tokenizer.model_max_length -= int(getattr(model.active_peft_config, "num_virtual_tokens", None) or 0)
        per_token = task.asked.per_token if config.score == "task" else config.score == "mean"
        if not task.writes:
            add_option_scores(model, per_token=per_token)
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task(f"{task.name}, {len(rows)} questions", total=len(rows))
            return answer(model, tokenizer, task, rows, config, solved=solved, tick=lambda n: progress.advance(bar, n))


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[Row],
    config: EvaluateConfig,
    *,
    solved: Sequence[str] = (),
    tick: Tick | None = None,
) -> Answered:
    """The model's answers to the questions of ``rows``, with the demonstrations ``solved`` in front of each.

    Raises:
        ValueError: a question that does not fit into ``config.max_seq_length``.
    """
    length = min(config.max_seq_length or tokenizer.model_max_length, tokenizer.model_max_length, _LONGEST)
    reserve = config.max_new_tokens if task.writes else 0
    asked = [ask(row, task, tokenizer, length, demonstrations=solved, reserve=reserve) for row in rows]
    if task.writes:
        written = written_answers(
            model,
            tokenizer,
            asked,
            max_new_tokens=config.max_new_tokens,
            stop=task.asked.stop,
            batchsize=config.batchsize,
            tick=tick,
        )
        gold = [list(task.asked.gold(row)) for row in rows]
        return Answered(scores=score(task, rows, written), answers=written, gold=gold, texts=written)
    pad = int(tokenizer.pad_token_id)
    values = option_scores(model, asked, pad=pad, batchsize=config.batchsize, tick=tick)
    without = None
    if config.calibrate:
        bare = [_without_content(row, task, tokenizer, length, solved) for row in rows]
        without = option_scores(model, bare, pad=pad, batchsize=config.batchsize)
    chosen = choices(values, without)
    right = [list(task.asked.right(row)) for row in rows]
    assert task.asked.options is not None
    texts = [task.asked.options(row)[number] for row, number in zip(rows, chosen, strict=True)]
    return Answered(scores=score(task, rows, chosen), answers=chosen, gold=right, texts=texts)


_LONGEST = 1 << 20


def _without_content(
    row: Row, task: Task, tokenizer: PreTrainedTokenizerBase, length: int, solved: Sequence[str]
) -> Asked:
    constant = task.asked.constant
    texts: Mapping[str, str] = {
        name: text if name in constant else WITHOUT_CONTENT for name, text in task.asked.texts(row).items()
    }
    return ask(row, task, tokenizer, length, demonstrations=solved, texts=texts)


def _show(config: EvaluateConfig, answered: Answered) -> None:
    shots = f"{config.demonstrations} demonstrations" if config.demonstrations else "zero-shot"
    table = Table("task", "way", "questions", *answered.scores)
    way = shots + (", calibrated" if config.calibrate else "")
    table.add_row(
        config.training().chosen_task().name,
        way,
        str(len(answered.answers)),
        *(f"{v:.4f}" for v in answered.scores.values()),
    )
    Console(file=sys.stdout).print(table)


def _facts(config: EvaluateConfig, answered: Answered) -> dict[str, Any]:
    return {
        "model": config.model_name,
        "adapter": None if config.adapter is None else str(config.adapter),
        "task": config.training().chosen_task().name,
        "version": config.training().chosen_task().version,
        "demonstrations": config.demonstrations,
        "calibrated": config.calibrate,
        "score": config.score,
        "max_seq_length": config.max_seq_length,
        "max_new_tokens": config.max_new_tokens,
        "dtype": config.dtype,
        "seed": config.init_seed,
        "scores": answered.scores,
        "answers": answered.answers,
        "texts": answered.texts,
        "right": answered.gold,
    }
