"""Scores of options and written answers beside those of lm-evaluation-harness, on the same rows and prompts.

For each task: the log-likelihood of every option of real rows, by `zotune.hf.answering.option_scores` and by the
harness's own `HFLM.loglikelihood`; of squad, the answer that is written, by `written_answers` and by its
`generate_until`.  Writes the largest difference and the number of equal choices.

    pip install lm_eval
    python benchmarks/lm_eval_agreement.py MODEL DATA [--rows 60] [--tasks copa sst2 ...]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from common import head, save

from zotune.hf.answering import option_scores, written_answers
from zotune.hf.models import load_language_model, load_tokenizer
from zotune.hf.options import add_option_scores
from zotune.tasks import get_task
from zotune.tasks.asking import ask
from zotune.tasks.sources import load_rows

TASKS = ("sst2", "rte", "cb", "boolq", "copa", "wic", "wsc", "multirc", "mnli", "snli", "trec", "squad")
NEW = 16


def agreement(model: Any, tokenizer: Any, harness: Any, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the two say about the same questions; those that are too long for the model are left out."""
    from lm_eval.api.instance import Instance

    task = get_task(name)
    length = int(tokenizer.model_max_length)
    whole = [row for row in rows if len(tokenizer(task.asked.prompt(task.asked.texts(row)))["input_ids"]) < length - 64]
    asked = [ask(row, task, tokenizer, length, reserve=NEW if task.writes else 0) for row in whole]
    prompts = [task.asked.prompt(task.asked.texts(row)) for row in whole]
    if task.writes:
        ours = written_answers(model, tokenizer, asked, max_new_tokens=NEW, stop=task.asked.stop, batchsize=8)
        how = {"until": list(task.asked.stop), "max_gen_toks": NEW, "do_sample": False}
        requests = [Instance("generate_until", {}, (prompt, how), i, (name, i, 1)) for i, prompt in enumerate(prompts)]
        theirs = [text.strip() for text in harness.generate_until(requests, disable_tqdm=True)]
        return {"task": name, "rows": len(whole), "equal": sum(a == b for a, b in zip(ours, theirs, strict=True))}
    ours = option_scores(model, asked, pad=int(tokenizer.pad_token_id), batchsize=8)
    pairs = [
        (prompt, task.asked.joint + option)
        for prompt, row in zip(prompts, whole, strict=True)
        for option in task.asked.options(row)  # type: ignore[misc]
    ]
    requests = [Instance("loglikelihood", {}, pair, i, (name, i, 1)) for i, pair in enumerate(pairs)]
    flat = iter(value for value, _ in harness.loglikelihood(requests, disable_tqdm=True))
    theirs = [[next(flat) for _ in row] for row in ours]
    differences = [abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]
    best = (
        [max(range(len(row)), key=row.__getitem__) for row in ours],
        [max(range(len(r)), key=r.__getitem__) for r in theirs],
    )
    equal = sum(a == b for a, b in zip(*best, strict=True))
    return {"task": name, "rows": len(whole), "equal": equal, "largest difference": max(differences)}


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path, help="holds a folder for each task")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        print(f"This needs lm-evaluation-harness: pip install lm_eval ({error}).")
        return 2
    tokenizer = load_tokenizer(options.model)
    model = add_option_scores(load_language_model(options.model, tokenizer=tokenizer), per_token=False)
    harness = HFLM(pretrained=options.model, device="cpu", dtype="float32", batch_size=8, add_bos_token=True)
    rows = []
    for name in options.tasks:
        source = next(options.data.glob(f"**/{name}"))
        found = load_rows(get_task(name), "validation", source=source, limit=options.rows).to_list()
        rows.append({"model": Path(options.model).name, **agreement(model, tokenizer, harness, name, found)})
        print(rows[-1])
    first = {**head("differences of log-likelihoods"), "harness": lm_eval.__version__}
    save("lm_eval_agreement", first, rows, ("model", "task"), options.results)
    return 0


if __name__ == "__main__":
    sys.exit(run())
