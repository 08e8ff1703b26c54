"""Scores of options and written answers beside those of lm-evaluation-harness, on the same rows and prompts.

For each task: the log-likelihood of every option of real rows, by `zotune.hf.answering.option_scores` and by the
harness's own `HFLM.loglikelihood`; of squad and drop, the answer that is written, by `written_answers` and by its
`generate_until`.  Writes the largest difference and the number of equal choices.  With demonstrations, the same solved
questions stand in front of both.

Rows whose prompt and answer do not fit into the model are left out, because the two cut in different ways; how many
they are is said for each task, as "too long".  The harness counts white space at a prompt's end (ReCoRD's line breaks)
as the option's, so what it gives that alone is subtracted.  It ends a written answer at a line break that stands at its
very beginning, where zotune goes on; such answers are counted as "line break first", and not compared.  ReCoRD and DROP
are the few rows in experiments/rows where the data folder has none.

    pip install "zotune[harness]"
    python benchmarks/lm_eval_agreement.py MODEL DATA [--rows 60] [--tasks copa sst2 ...] [--demonstrations 4]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import head, save

from zotune.hf.answering import option_scores, written_answers
from zotune.hf.models import load_language_model, load_tokenizer
from zotune.hf.options import add_option_scores
from zotune.tasks import Task, get_task
from zotune.tasks.asking import BETWEEN, Asked, ask
from zotune.tasks.demonstrations import demonstrations
from zotune.tasks.sources import load_rows

TASKS = "sst2 sst5 rte cb boolq copa wic wsc multirc mnli snli qnli mrpc cola trec record squad drop"
ROWS = Path(__file__).resolve().parents[1] / "experiments" / "rows"
NEW = 16
ENDLESS = 1 << 40
POOL = 64
"""Training rows, for each demonstration, among which those of every class are looked for."""

Rows = Sequence[dict[str, Any]]


def fitting(task: Task, tokenizer: Any, rows: Rows, solved: Sequence[str]) -> tuple[list[str], list[Asked], Rows]:
    """Prompts, questions and rows of those that the model can read as a whole."""
    found = []
    for row in rows:
        asked = ask(row, task, tokenizer, ENDLESS, demonstrations=solved)
        answer = max([NEW if task.writes else 0, *map(len, asked.options)])
        if len(asked.prompt) + answer <= int(tokenizer.model_max_length):
            found.append((BETWEEN.join([*solved, task.asked.prompt(task.asked.texts(row))]), asked, row))
    return [one[0] for one in found], [one[1] for one in found], [one[2] for one in found]


def agreement(
    model: Any, tokenizer: Any, harness: Any, name: str, rows: Rows, solved: Sequence[str] = ()
) -> dict[str, Any]:
    """What the two say about the same questions."""
    task = get_task(name)
    prompts, asked, whole = fitting(task, tokenizer, rows, solved)
    facts = {"task": name, "demonstrations": len(solved), "rows": len(whole), "too long": len(rows) - len(whole)}
    if not whole:
        return facts
    if task.writes:
        return {**facts, **written(model, tokenizer, harness, task, prompts, asked)}
    ours = option_scores(model, asked, pad=int(tokenizer.pad_token_id), batchsize=8)
    theirs = scores_of_harness(harness, task, prompts, whole)
    differences = [abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    equal = sum(best(one) == best(other) for one, other in zip(ours, theirs, strict=True))
    return {**facts, "equal": equal, "largest difference": max(differences)}


def best(scores: Sequence[float]) -> int:
    """Number of the largest."""
    return max(range(len(scores)), key=scores.__getitem__)


def written(
    model: Any, tokenizer: Any, harness: Any, task: Task, prompts: Sequence[str], asked: Sequence[Asked]
) -> dict[str, int]:
    """How many written answers are the same, and how many the harness has ended before they began."""
    from lm_eval.api.instance import Instance

    ours = written_answers(model, tokenizer, asked, max_new_tokens=NEW, stop=task.asked.stop, batchsize=8)
    how = {"until": list(task.asked.stop), "max_gen_toks": NEW, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, how), i, (task.name, i, 1)) for i, text in enumerate(prompts)]
    theirs = [text.strip() for text in harness.generate_until(requests, disable_tqdm=True)]
    ended = sum(a != b == "" for a, b in zip(ours, theirs, strict=True))
    return {"equal": sum(a == b for a, b in zip(ours, theirs, strict=True)), "line break first": ended}


def scores_of_harness(harness: Any, task: Task, prompts: Sequence[str], rows: Rows) -> list[list[float]]:
    """The harness's log-likelihood of every option of every row."""
    assert task.asked.options is not None
    options = [task.asked.options(row) for row in rows]
    pairs = [(text, task.asked.joint + one) for text, of_row in zip(prompts, options, strict=True) for one in of_row]
    flat = iter(likelihoods(harness, task.name, pairs))
    ends = [(text.rstrip(), text[len(text.rstrip()) :]) for text in prompts]
    space = likelihoods(harness, task.name, ends) if all(end for _, end in ends) else [0.0] * len(ends)
    return [[next(flat) - own for _ in of_row] for of_row, own in zip(options, space, strict=True)]


def likelihoods(harness: Any, name: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The harness's log-likelihood of each second text after the first."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, pair, i, (name, i, 1)) for i, pair in enumerate(pairs)]
    return [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]


def rows_of(name: str, data: Path, rows: int, count: int) -> tuple[Rows, list[str]]:
    """Validation rows of a task, and ``count`` solved training questions."""
    task, source = get_task(name), next(data.glob(f"**/{name}"), ROWS / name)
    asked = load_rows(task, "validation", source=source, limit=rows).to_list()
    if not count:
        return asked, []
    taught = load_rows(task, "train", source=source, limit=count * (POOL if task.labels else 1)).to_list()
    return asked, demonstrations(task, taught, count)


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path, help="holds a folder for each task")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tasks", nargs="+", default=TASKS.split())
    parser.add_argument("--demonstrations", type=int, default=0, help="solved questions in front of each")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        print(f"This needs lm-evaluation-harness: pip install zotune[harness] ({error}).")
        return 2
    tokenizer = load_tokenizer(options.model)
    model = add_option_scores(load_language_model(options.model, tokenizer=tokenizer), per_token=False)
    harness = HFLM(pretrained=options.model, device="cpu", dtype="float32", batch_size=8, add_bos_token=True)
    rows = []
    for name in options.tasks:
        found, solved = rows_of(name, options.data, options.rows, options.demonstrations)
        rows.append({"model": Path(options.model).name, **agreement(model, tokenizer, harness, name, found, solved)})
        print(rows[-1])
    asked, long = (sum(row[what] for row in rows) for what in ("rows", "too long"))
    print(f"{asked} questions compared, {long} left out because they are too long for the model.")
    first = {**head("differences of log-likelihoods"), "harness": lm_eval.__version__}
    save("lm_eval_agreement", first, rows, ("model", "task", "demonstrations"), options.results)
    return 0


if __name__ == "__main__":
    sys.exit(run())
