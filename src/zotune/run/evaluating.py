"""`zotune evaluate` as the command line sees it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence

import datasets
import torch
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zotune.config import ConfigError, EvaluateConfig
from zotune.hf.adapters import load_adapter
from zotune.hf.answering import Tick, choices, option_loss, option_scores, written_answers
from zotune.hf.models import load_language_model, load_tokenizer
from zotune.hf.options import add_option_scores
from zotune.run.answered import Answered, facts, show
from zotune.run.base import DTYPES
from zotune.run.classifying import check_classes, classifies, classify, load_with_classes, say_order
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
    show(config, answered)
    if config.output is None:
        return 0
    try:
        config.output.write_text(json.dumps(facts(config, answered), indent=1) + "\n")
    except OSError as error:
        say(f"--output {config.output} could not be written ({error.strerror or error}); name another file.")
        return 1
    return 0


def evaluate(config: EvaluateConfig, console: Console) -> list[Answered]:
    """Load what ``config`` names, and ask; what was answered with each seed.

    Raises:
        ConfigError: data or a model that cannot be used.
    """
    with sentences():
        task = config.training().chosen_task()
        in_classes = classifies(config)
        if in_classes:
            check_classes(config, task)
        elif task.writes and (config.calibrate or config.score != "task"):
            raise ConfigError(f"Task {task.name} has no options to compare; leave --calibrate and --score out.")
        machine = choose_machine(config.training(), console.print)
        tokenizer = load_tokenizer(config.model_name, trust_remote_code=config.trust_remote_code)
        # First, because a wrong file should not wait for the model.
        asked = [_rows(config, task, tokenizer, seed) for seed in config.all_seeds]
        one = (_in_classes if in_classes else _in_words)(config, task, tokenizer, machine.device)
        with Progress(console=console, transient=True) as progress:
            questions = sum(len(rows) for rows, _ in asked)
            bar = progress.add_task(f"{task.name}, {questions} questions", total=questions)

            def tick(done: int) -> None:
                progress.advance(bar, done)

            return [one(rows, solved, tick) for rows, solved in asked]


_One = Callable[[datasets.Dataset, list[str], Tick], Answered]


def _in_words(config: EvaluateConfig, task: Task, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> _One:
    """What asks a language model in words."""
    model = load_language_model(
        config.model_name,
        tokenizer=tokenizer,
        dtype=DTYPES[config.dtype],
        device=device,
        adapted=True,
        trust_remote_code=config.trust_remote_code,
    )
    if config.adapter is not None:
        model = load_adapter(model, config.adapter, tokenizer=tokenizer)
    per_token = task.asked.per_token if config.score == "task" else config.score == "mean"
    if not task.writes:
        add_option_scores(model, per_token=per_token)

    def one(rows: datasets.Dataset, solved: list[str], tick: Tick) -> Answered:
        return answer(model, tokenizer, task, rows.to_list(), config, solved=solved, tick=tick)

    return one


def _in_classes(config: EvaluateConfig, task: Task, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> _One:
    """What asks a model that answers with classes."""
    model = load_with_classes(config, task, tokenizer, device)
    if not config.soft_prompt:
        say_order(config, task)

    def one(rows: datasets.Dataset, _solved: list[str], tick: Tick) -> Answered:
        return classify(model, tokenizer, task, rows, config, tick=tick)

    return one


def _rows(
    config: EvaluateConfig, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[datasets.Dataset, list[str]]:
    """The rows that are asked with a seed, and the demonstrations in front of each."""
    pool = config.demonstrations * (_POOL if task.labels else 1)
    training = dataclasses.replace(config.training(), samplesize=max(1, pool))
    splits = read_splits(training, task, tokenizer, seed=derive_seed(seed, 0, "rows"), training=pool > 0)
    return splits.validation, demonstrations(task, splits.train.to_list(), config.demonstrations)


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
    if any(math.isnan(value) for row in values for value in row):
        raise ValueError(f"The scores of {config.model_name} are NaN; its weights are damaged or overflow.")
    without = None
    if config.calibrate:
        bare = [_without_content(row, task, tokenizer, length, solved) for row in rows]
        without = option_scores(model, bare, pad=pad, batchsize=config.batchsize)
    chosen = choices(values, without)
    right = [list(task.asked.right(row)) for row in rows]
    assert task.asked.options is not None
    options = [list(task.asked.options(row)) for row in rows]
    loss = option_loss(values, [int(row["label"]) for row in rows], without)
    return Answered(
        scores={**score(task, rows, chosen), "loss": loss},
        answers=chosen,
        gold=right,
        texts=[texts[number] for texts, number in zip(options, chosen, strict=True)],
        options=options,
        option_scores=values,
        without_content=without,
    )


_LONGEST = 1 << 20


def _without_content(
    row: Row, task: Task, tokenizer: PreTrainedTokenizerBase, length: int, solved: Sequence[str]
) -> Asked:
    constant = task.asked.constant
    texts: Mapping[str, str] = {
        name: text if name in constant else WITHOUT_CONTENT for name, text in task.asked.texts(row).items()
    }
    return ask(row, task, tokenizer, length, demonstrations=solved, texts=texts)
