"""Tasks as questions to a causal model: prompts, options, demonstrations, scores, written answers, objectives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_tasks
import tiny_models
import torch
from command_runs import losses_of, rows_of, train, workshop
from command_runs import shelf as shelf
from safetensors.torch import load_file
from torch.nn import functional

import zotune
from zotune.cli import main
from zotune.hf.answering import choices, ended, option_scores, written_answers
from zotune.hf.models import load_tokenizer
from zotune.hf.options import (
    ABSENT,
    OptionCollator,
    add_option_scores,
    as_language_model,
    error_rate,
    option_likelihood,
)
from zotune.hf.randomness import lent
from zotune.run.evaluating import _without_content
from zotune.tasks import TASKS, get_task
from zotune.tasks.asking import Asked, as_columns, ask
from zotune.tasks.demonstrations import demonstrations, few_shot
from zotune.tasks.metrics import exact_match, score, text_f1
from zotune.tasks.sources import load_rows

__all__ = ["workshop"]

RECORD = {
    "passage": "Anna met Bo in Rome.\n@highlight\nThey talked.",
    "query": "Later @placeholder went home to Rome.",
    "entities": ["Anna", "Bo", "Rome", "Anna"],
    "answers": ["Bo", "Anna"],
}
DROP = {"passage": "They won 3 games and lost 2.", "question": "How many games?", "answers": ["5", "five games"]}
SQUAD = {"context": "The dog ran in May.", "question": "When did it run?", "answers": ["May", "in May"]}

# What a causal model reads before the answer, and what it chooses among.  A change needs a higher Task.version.
GOLDEN: dict[str, tuple[dict[str, Any], str, list[str] | None]] = {
    "copa": (
        {"premise": "I fell.", "choice1": "It was icy.", "choice2": "I slept.", "question": "cause"},
        "I fell because",
        ["it was icy.", "I slept."],
    ),
    "record": (
        RECORD,
        "Anna met Bo in Rome.\n- They talked.\n-",
        [f"Later {name} went home to Rome." for name in ("Anna", "Bo", "Rome")],
    ),
    "squad": (SQUAD, "Context: The dog ran in May.\nQuestion: When did it run?\nAnswer:", None),
    "drop": (DROP, "Passage: They won 3 games and lost 2.\nQuestion: How many games?\nAnswer:", None),
    **{
        name: (row, prompt.removesuffix(" "), list(TASKS[name].words))
        for name, (row, _, prompt) in test_tasks.GOLDEN.items()
        if name != "copa"
    },
}


@pytest.mark.parametrize("name", TASKS)
def test_golden_questions(name: str) -> None:
    row, prompt, options = GOLDEN[name]
    asked = get_task(name).asked
    assert asked.prompt(asked.texts(row)) == prompt
    assert (None if asked.options is None else list(asked.options(row))) == options
    assert get_task(name).version == test_tasks.VERSIONS.get(name, 1)


def test_right_options_and_answers() -> None:
    record = get_task("record").asked
    assert list(record.right(RECORD)) == [1, 0]
    assert record.gold(RECORD) == ["Bo", "Anna"]
    assert record.solved(RECORD).endswith("\n- Later Bo went home to Rome.")
    assert get_task("drop").asked.solved(DROP).endswith("Answer: 5")
    for task, row, taught in (("drop", DROP, "5\n"), ("squad", SQUAD, "May\n")):
        trained = get_task(task).asked.trained
        assert trained is not None
        assert trained(row) == taught, "so that the model learns to end its answer"
    assert get_task("copa").asked.solved({**GOLDEN["copa"][0], "label": 1}) == "I fell because I slept."


# ------------------------------------------------------------------------------------- rows


def write_rows(folder: Path, task: str, rows: list[dict[str, Any]]) -> Path:
    place = folder / task
    place.mkdir(parents=True)
    for split in ("train", "validation"):
        (place / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize(("task", "row"), [("record", RECORD), ("drop", DROP), ("squad", SQUAD)])
def test_rows_without_classes_load(task: str, row: dict[str, Any], tmp_path: Path) -> None:
    (loaded,) = load_rows(get_task(task), "validation", source=write_rows(tmp_path, task, [row])).to_list()
    assert {name: loaded[name] for name in row} == row
    assert loaded["label"] == (1 if task == "record" else 0)


def test_a_title_is_read_where_the_data_has_one(tmp_path: Path) -> None:
    rows = [{**SQUAD, "title": "Dogs"}, {**SQUAD, "title": None}]
    loaded = load_rows(get_task("squad"), "train", source=write_rows(tmp_path, "squad", rows)).to_list()
    assert sorted(row["title"] for row in loaded) == ["", "Dogs"]
    asked = get_task("squad").asked
    prompts = sorted(asked.prompt(asked.texts(row)).split("\n")[0] for row in loaded)
    assert prompts == ["Context: The dog ran in May.", "Title: Dogs"]


def test_lists_as_public_releases_and_tables_have_them(tmp_path: Path) -> None:
    nested = {**SQUAD, "answers": {"text": ["May"], "answer_start": [15]}}
    spans = {key: value for key, value in DROP.items() if key != "answers"}
    spans["answers_spans"] = {"spans": ["5"], "types": ["number"]}
    for task, row, answers in (("squad", nested, ["May"]), ("drop", spans, ["5"])):
        (loaded,) = load_rows(get_task(task), "train", source=write_rows(tmp_path, task, [row])).to_list()
        assert loaded["answers"] == answers
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text(
        'context,question,answers\n"A b.",Who?,"[""A"", ""a b""]"\nC.,What?,C\n'
    )
    rows = load_rows(get_task("squad"), "train", source=tmp_path / "csv").to_list()
    assert sorted(row["answers"] for row in rows) == [["A", "a b"], ["C"]]


@pytest.mark.parametrize(
    ("task", "change", "sentence"),
    [
        ("record", {"answers": ["Zoe"]}, "none of the answers is among the entities"),
        ("record", {"query": "Later she went."}, "has no @placeholder"),
        ("record", {"entities": []}, "give a list of one or more texts"),
        ("squad", {"answers": [1]}, "give a list of one or more texts"),
        ("squad", {"answers": "[1"}, "give a JSON list of texts"),
        ("drop", {"passage": ""}, "has no text in the column 'passage'"),
    ],
)
def test_wrong_rows_are_named(task: str, change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    rows = [{"record": RECORD, "squad": SQUAD, "drop": DROP}[task] | change]
    with pytest.raises(ValueError, match="Row 1 of") as caught:
        load_rows(get_task(task), "train", source=write_rows(tmp_path, task, rows))
    assert sentence in str(caught.value)


# ------------------------------------------------------------------------------------- token ids


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_models.tokenizer("llama")


def question(tokenizer: Any, length: int, task: str = "squad", row: dict[str, Any] = SQUAD, **more: Any) -> Asked:
    return ask(row, get_task(task), tokenizer, length, **more)


def test_options_continue_the_prompt_as_running_text(tokenizer: Any) -> None:
    row = GOLDEN["sst2"][0]
    asked = ask(row, get_task("sst2"), tokenizer, 60)
    for word, ids in zip(("terrible", "great"), asked.options, strict=True):
        assert asked.prompt + ids == tokenizer(f"a fine film It was {word}")["input_ids"]


def test_too_long_questions_lose_demonstrations_first_and_then_the_text(tokenizer: Any) -> None:
    shots = ["Context: one", "Context: two"]
    whole = question(tokenizer, 10_000, demonstrations=shots)

    squad = get_task("squad").asked

    def ids(shots: list[str]) -> list[int]:
        return tokenizer("\n\n".join([*shots, squad.prompt(squad.texts(SQUAD))]))["input_ids"]

    assert whole.prompt == ids(shots)
    two = question(tokenizer, len(whole.prompt) - 1, demonstrations=shots)
    assert two.prompt == ids(shots[1:])
    bare = question(tokenizer, 10_000)
    less = question(tokenizer, len(bare.prompt) - 4, demonstrations=shots)
    end = tokenizer("Question: When did it run?\nAnswer:")["input_ids"][-12:]
    assert less.prompt[-12:] == end
    assert len(less.prompt) <= len(bare.prompt) - 4
    reserved = question(tokenizer, len(bare.prompt), reserve=5)
    assert len(reserved.prompt) + 5 <= len(bare.prompt)
    with pytest.raises(ValueError, match="too small for the question of task squad; give"):
        question(tokenizer, 8)


def test_demonstrations_take_classes_in_turn() -> None:
    rows = [{"sentence": f"s{i}", "label": int(i > 4)} for i in range(8)]
    chosen = few_shot(get_task("sst2"), rows, 4)
    assert [row["sentence"] for row in chosen] == ["s0", "s1", "s5", "s6"]
    assert demonstrations(get_task("sst2"), rows, 1) == ["s0 It was terrible"]
    assert [row["question"] for row in few_shot(get_task("squad"), [SQUAD, {**SQUAD, "question": "B?"}], 1)] == [
        SQUAD["question"]
    ]
    with pytest.raises(ValueError, match="8 training rows for 9 demonstrations"):
        demonstrations(get_task("sst2"), rows, 9)


# ------------------------------------------------------------------------------------- scores

QUESTIONS = [
    Asked([7, 8, 9], [[10], [11, 12, 13], [14, 15]]),
    Asked([20, 21, 22, 23, 24], [[25, 26], [27]]),
]


def likelihood(model: Any, asked: Asked, option: list[int]) -> float:
    """From one forward pass of its own."""
    with torch.no_grad(), as_language_model(model) as plain:
        logits = plain(torch.tensor([asked.prompt + option])).logits[0].double().log_softmax(-1)
    begin = len(asked.prompt) - 1
    return sum(float(logits[begin + i, token]) for i, token in enumerate(option))


@pytest.mark.parametrize("family", tiny_models.DECODERS)
@pytest.mark.parametrize("per_token", [False, True])
def test_scores_are_the_likelihoods_of_separate_passes(family: str, per_token: bool) -> None:
    model = add_option_scores(tiny_models.build(family, head="lm", dtype=torch.float64), per_token=per_token)
    scores = option_scores(model, QUESTIONS, pad=0, batchsize=2)
    for asked, row in zip(QUESTIONS, scores, strict=True):
        assert len(row) == len(asked.options)
        for option, value in zip(asked.options, row, strict=True):
            assert value == pytest.approx(
                likelihood(model, asked, option) / (len(option) if per_token else 1), rel=1e-5
            )
    alone = option_scores(model, QUESTIONS, pad=0, batchsize=1)
    for row, same in zip(alone, scores, strict=True):
        assert row == pytest.approx(same, rel=1e-6)


def batch_of() -> dict[str, torch.Tensor]:
    columns = as_columns(QUESTIONS, [1, 0])
    return OptionCollator(0, 4)([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def test_batches_are_padded_to_one_width() -> None:
    batch = batch_of()
    assert batch["input_ids"].shape == (2, 4, 7)
    assert batch["option_mask"].sum((1, 2)).tolist() == [6, 3]
    model = add_option_scores(tiny_models.build("opt", head="lm"), per_token=False)
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.logits.shape == (2, 4)
    assert outputs.logits[0, 3] == outputs.logits[1, 2] == ABSENT
    assert outputs.loss == pytest.approx(float(functional.cross_entropy(outputs.logits, batch["labels"])))
    right = outputs.logits.gather(1, batch["labels"][:, None]).mean()
    assert option_likelihood(outputs, batch["labels"]) == -right
    wrong = (outputs.logits.argmax(1) != batch["labels"]).float().mean()
    assert error_rate(outputs, batch["labels"]) == wrong


@pytest.mark.parametrize("family", tiny_models.DECODERS)
def test_queries_of_questions_share_a_forward(family: str) -> None:
    model = add_option_scores(tiny_models.build(family, head="lm", dtype=torch.float64), per_token=True)
    batch, losses = batch_of(), []
    labels = batch.pop("labels")
    for evaluator in (zotune.Stacked(), zotune.Overlay()):
        named = model.named_parameters()
        optimizer = zotune.LOZO(named, lr=0.0, eps=0.05, queries=4, seed=3, evaluator=evaluator)
        optimizer.step(lambda: functional.cross_entropy(model(**batch).logits, labels))
        losses.append(optimizer.last_losses)
        assert getattr(evaluator, "alone", None) is None
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_written_answers_are_those_of_one_prompt_at_a_time() -> None:
    model = add_option_scores(tiny_models.build("llama", head="lm", dtype=torch.float64), per_token=True)
    words = tiny_models.tokenizer("llama")
    options = {"max_new_tokens": 4, "stop": ("\n",)}
    together = written_answers(model, words, QUESTIONS, batchsize=2, **options)  # type: ignore[arg-type]
    assert together == [written_answers(model, words, [q], batchsize=1, **options)[0] for q in QUESTIONS]  # type: ignore[arg-type]
    for asked, text in zip(QUESTIONS, together, strict=True):
        ids = list(asked.prompt)
        with torch.no_grad(), as_language_model(model) as plain:
            for _ in range(4):
                ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
        assert text == ended(words.decode(ids[len(asked.prompt) :], skip_special_tokens=True), ("\n",))


def test_answers_end_where_they_should() -> None:
    assert ended("  May\nQuestion: more", ("\n",)) == "May"
    assert ended("in May. Then", ("\n", ". ")) == "in May"
    assert ended("May ", ("\n",)) == "May"


def test_calibration_subtracts_what_options_have_without_content() -> None:
    assert choices([[-1.0, -2.0], [-3.0, -1.0]]) == [0, 1]
    assert choices([[-1.0, -2.0], [-3.0, -1.0]], [[-0.5, -3.0], [-9.0, -1.0]]) == [1, 0]


# ------------------------------------------------------------------------------------- metrics


def test_metrics_of_texts_are_those_of_squad() -> None:
    assert exact_match("The May!", ["may", "June"]) == 1.0
    assert exact_match("in May", ["May"]) == 0.0
    assert text_f1("in the month of May", ["May", "month May"]) == pytest.approx(2 * 2 / (4 + 2))
    assert text_f1("", [""]) == 1.0
    assert text_f1("x", [""]) == 0.0
    task = get_task("squad")
    assert score(task, [SQUAD, SQUAD], ["May", "in June"]) == {"accuracy": 0.5, "f1": pytest.approx(0.75)}


def test_an_option_is_right_if_it_is_one_of_the_right_ones() -> None:
    task = get_task("record")
    found = score(task, [RECORD, RECORD, RECORD], [0, 1, 2])
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}


# ------------------------------------------------------------------------------------- the command line


def asked_of(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    given = ["evaluate", "../model", "--data_dir", "../data", "--samplesize_validation", "8", "--device", "cpu"]
    assert main([*given, *words]) == code
    found = capsys.readouterr()
    return found.out, found.err


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("words", [[], ["--demonstrations", "2"], ["--calibrate"], ["--score", "mean"]])
def test_a_model_is_asked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = asked_of(capsys, "--output", "scores.json", *words)
    facts = json.loads(Path("scores.json").read_text())
    assert len(facts["answers"]) == len(facts["right"]) == 8
    hits = [answer in right for answer, right in zip(facts["answers"], facts["right"], strict=True)]
    assert facts["scores"]["accuracy"] == sum(hits) / 8
    assert f"{facts['scores']['accuracy']:.4f}" in out
    assert ("2 demonstrations" in out) == ("--demonstrations" in words)


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--task", "sqad"], "Did you mean 'squad'?"),
        (["--task", "squad", "--calibrate"], "has no options to compare"),
        (["--score", "median"], "--score knows task, sum or mean"),
        (["--demonstrations", "-1"], "--demonstrations must be 0 or more"),
        (["--demonstrations", "1000"], "training rows for 1000 demonstrations"),
        (["--max_new_tokens", "0"], "--max_new_tokens must be 1 or more"),
        (["--max_seq_length", "3"], "too small for the question"),
        (["--outptu", "x"], "did you mean --output?"),
    ],
)
def test_wrong_words_of_evaluate_are_named(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = asked_of(capsys, *words, code=2)
    assert sentence in err
    assert "Traceback" not in err


# ------------------------------------------------------------------------------------- training


@pytest.fixture
def own_rows(workshop: Any) -> Path:
    rows = [{**RECORD, "answers": [RECORD["entities"][i % 2]]} for i in range(8)]
    write_rows(Path("own"), "record", rows)
    write_rows(Path("own"), "drop", [DROP] * 8)
    return Path("own")


@pytest.mark.parametrize("objective", ["options", "likelihood", "accuracy", "classes"])
@pytest.mark.parametrize("algorithm", ["ZO", "LOZO"])
def test_objectives_of_options(algorithm: str, objective: str, capsys: Any, workshop: Any) -> None:
    run, said = train(capsys, "--algorithm", algorithm, "--objective", objective)
    assert len(rows_of(run, "train")) == 6
    assert all(0.0 <= float(row["accuracy"]) <= 1.0 for row in rows_of(run, "eval"))
    assert "from here on" not in said


@pytest.mark.parametrize(
    ("task", "objective"), [("record", None), ("drop", None), ("drop", "f1"), ("drop", "exact_match")]
)
def test_objectives_of_tasks_without_classes(task: str, objective: str | None, capsys: Any, own_rows: Path) -> None:
    words = [] if objective is None else ["--objective", objective]
    more = ["--data_dir", str(own_rows), "--samplesize", "8", "--max_seq_length", "60", "--max_new_tokens", "2"]
    run, _ = train(capsys, "--algorithm", "ZO", "--task", task, *more, *words)
    rows = rows_of(run, "eval")
    assert {"accuracy", "f1", "loss"} <= rows[-1].keys()
    if objective:
        name = "accuracy" if objective == "exact_match" else "f1"
        assert float(rows[-1]["loss"]) == pytest.approx(1.0 - float(rows[-1][name]))


@pytest.mark.usefixtures("workshop")
@pytest.mark.parametrize("objective", ["options", "accuracy"])
def test_options_are_compared_as_is_asked_for(objective: str, capsys: Any) -> None:
    """The first evaluation of a run is what `zotune evaluate` says with the same --score."""
    rows = [{**RECORD, "answers": [RECORD["entities"][i % 2]]} for i in range(8)]
    write_rows(Path("own"), "record", rows)
    data = ["--task", "record", "--data_dir", "own", "--max_seq_length", "64"]
    losses = {}
    for how in ("task", "sum", "mean"):
        run, _ = train(capsys, *data, "--algorithm", "ZO", "--objective", objective, "--score", how)
        asked_of(capsys, *data, "--score", how, "--output", "scores.json")
        facts = json.loads(Path("scores.json").read_text())
        scores = torch.tensor(facts["option_scores"])
        right = torch.tensor([numbers[0] for numbers in facts["right"]])
        first = json.loads((run / "summary.json").read_text())["first"]
        losses[how] = first["loss"]
        assert first["loss"] == pytest.approx(float(functional.cross_entropy(scores, right)), rel=1e-4)
        assert first["accuracy"] == facts["scores"]["accuracy"]
        assert json.loads((run / "config.json").read_text())["score"] == how
    assert losses["task"] == losses["mean"] != losses["sum"]


OWN = """
def margin(model, batch):
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits.float()
    return 10.0 + logits.square().mean()

limit = 3
"""


def test_an_objective_of_ones_own(capsys: Any, workshop: Any) -> None:
    Path("own.py").write_text(OWN)
    run, _ = train(capsys, "--algorithm", "ZO", "--objective", "own.py:margin")
    assert all(float(row["loss"]) > 10.0 for row in rows_of(run, "train"))
    # What a file names is not run.
    assert main(["train", "--resume", str(run)]) == 2
    assert "say so again with --objective own.py:margin" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--objective", "other.py:margin"]) == 2
    assert "cannot be another" in capsys.readouterr().err
    code = main(["train", "--resume", str(run), "--objective", "own.py:margin"])
    assert "objective" not in capsys.readouterr().err, code


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--objective", "acuracy"], "did you mean accuracy?"),
        (["--objective", "exact_match"], "has no written answers"),
        (["--task", "record", "--objective", "f1"], "without --options, or a task with classes."),
        (["--objective", "f1", "--on_out_of_memory", "halve"], "is not the mean of its parts'"),
        (["--objective", "f1", "--algorithm", "FOAdam"], "has no gradient"),
        (["--objective", "own.py:margn"], "did you mean 'margin'?"),
        (["--objective", "own.py:limit"], "has no function 'limit'"),
        (["--objective", "none.py:f"], "There is no file none.py"),
        (["--objective", "broken.py:f"], "broken.py cannot be run: ZeroDivisionError"),
        (["--objective", "options", "--soft_prompt"], "--soft_prompt belongs to --objective classes"),
        (["--objective", "accuracy", "--algorithm", "FOAdam"], "has no gradient"),
        (["--task", "drop", "--objective", "classes"], "choose likelihood, f1 or exact_match"),
        (["--task", "record", "--objective", "classes"], "has no classes"),
        (["--max_new_tokens", "0"], "--max_new_tokens must be at least 1"),
        (["--score", "mean"], "--objective classes of task sst2 compares none; leave it out, or choose --objective"),
        (["--score", "sum", "--soft_prompt"], "--objective classes of task sst2 compares none"),
        (["--score", "sum", "--objective", "likelihood"], "--objective likelihood of task sst2 compares none"),
        (["--score", "sum", "--task", "drop"], "--objective likelihood of task drop compares none"),
        (["--score", "average"], "--score knows task, sum or mean"),
    ],
)
def test_wrong_objectives_are_named(words: list[str], sentence: str, capsys: Any, workshop: Any) -> None:
    Path("own.py").write_text(OWN)
    Path("broken.py").write_text("1 / 0")
    _, said = train(capsys, *words, code=2)
    assert sentence in said
    assert "Traceback" not in said


def test_a_run_on_questions_is_replayed_bit_for_bit(capsys: Any, workshop: Any) -> None:
    run, _ = train(capsys, "--algorithm", "ZO", "--objective", "options", "--save_ckpt")
    assert main(["replay", "../model", str(run / "trajectory.zo"), "--out", "again", "--device", "cpu"]) == 0
    from safetensors.torch import load_file

    first, second = load_file(run / "last" / "model.safetensors"), load_file("again/model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert load_tokenizer(str(run / "last")).pad_token is not None


@pytest.mark.usefixtures("workshop")
def test_draws_in_an_objective_are_the_same_for_all_queries_of_a_step(capsys) -> None:
    """A loss that is nothing but a draw moves no weight, and is another one in the next step."""
    Path("drawn.py").write_text("import torch\n\ndef loss(model, batch):\n    return torch.rand(())\n")
    runs = []
    for seed in (1, 1, 2):
        words = ["--algorithm", "ZO", "--objective", "drawn.py:loss", "--save_ckpt", "--init_seed", str(seed)]
        runs.append(train(capsys, *words, "--lr", "1")[0])
    first, last = (load_file(runs[0] / f"checkpoint-{step}/model.safetensors") for step in (3, 6))
    assert all(torch.equal(first[name], last[name]) for name in first)
    losses = [losses_of(run) for run in runs]
    assert losses[0] == losses[1] != losses[2]
    assert len(set(losses[0])) == len(losses[0])


def test_lent_draws_follow_from_the_key_and_leave_the_state() -> None:
    state = torch.random.get_rng_state()
    draws = []
    for key in (("a", 1), ("a", 1), ("a", 2), ("b", 1)):
        with lent(*key):
            draws.append(float(torch.rand(())))
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("question", "word"), [("cause", "because"), ("effect", "so")])
def test_calibration_keeps_what_belongs_to_the_question(question: str, word: str, tmp_path: Path) -> None:
    tiny_models.save(tmp_path / "model", "llama")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    row = {"premise": "I fell.", "choice1": "It was icy.", "choice2": "I slept.", "question": question, "label": 0}
    bare = _without_content(row, get_task("copa"), tokenizer, 64, ())
    assert bare.prompt == list(tokenizer(f"N/A {word}")["input_ids"])
