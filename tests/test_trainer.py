"""The training loop: what a step is made of, in which order, at what cost, and that a resumed run is the same run."""

import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from tiny_models import build
from tiny_runs import METHODS, Losses, examples, make_trainer, weights
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

import zotune
from zotune.hf.sampling import KeyedSampler, real_rows


def collated_ids(trainer: Any) -> list[list[int]]:
    """Wrap the collator of `trainer`; the list fills with the first tokens of every batch that is collated."""
    seen: list[list[int]] = []
    collate = trainer.data_collator

    def watching(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = collate(rows)
        seen.append(batch["input_ids"][:, 0].tolist())
        return batch

    trainer.data_collator = watching
    return seen


# The order of the data.


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    one, two = KeyedSampler(50, 7), KeyedSampler(50, 7)
    np.random.Generator(np.random.Philox(1)).random(100)
    list(two)
    assert list(one) == list(two)
    two.set_epoch(1)
    assert sorted(two) == list(range(50))
    assert list(one) != list(two)
    assert list(KeyedSampler(50, 8)) != list(one)


def test_all_methods_and_resumed_runs_see_the_same_order(tmp_path: Path) -> None:
    orders = {}
    for name in ("MeZO", "FOAdam"):
        trainer = make_trainer(tmp_path / name, method=name, save_strategy="steps", save_steps=3)
        orders[name] = collated_ids(trainer)
        trainer.train()
    trainer = make_trainer(tmp_path / "MeZO")
    resumed = collated_ids(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "MeZO" / "checkpoint-3"))
    training = [order[:8] for order in (orders["MeZO"], orders["FOAdam"])]
    assert training[0] == training[1]
    assert [len(batch) for batch in training[0][:4]] == [8, 8, 8, 6]
    assert resumed[:1] == training[0][3:4]


def test_negative_data_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data_seed must be 0 or larger"):
        make_trainer(tmp_path, data_seed=-1)


def test_a_resume_that_starts_the_data_anew_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ignore_data_skip"):
        make_trainer(tmp_path, ignore_data_skip=True)


@pytest.mark.parametrize(("size", "batch", "world"), [(37, 4, 2), (33, 8, 4), (5, 4, 3), (32, 4, 2), (3, 8, 2)])
def test_real_rows_are_the_first_of_what_accelerate_hands_out(size: int, batch: int, world: int) -> None:
    real: list[int] = []
    shards = [
        list(BatchSamplerShard(BatchSampler(SequentialSampler(range(size)), batch, False), world, rank))
        for rank in range(world)
    ]
    for number, row_of_batches in enumerate(zip(*shards, strict=True)):
        for rank, indices in enumerate(row_of_batches):
            real += indices[: real_rows(size, batch, number * world + rank)]
    assert real == list(range(size))


# A step.


@pytest.mark.parametrize("method", ["MeZO", "LOREN", "MeZOSVRG", "FOAdam"])
def test_micro_batches_make_the_same_step_also_when_ragged(tmp_path: Path, method: str) -> None:
    runs = []
    for size, accumulation in ((16, 1), (4, 4)):
        losses = Losses()
        trainer = make_trainer(
            tmp_path,
            method=method,
            train=41,
            max_steps=4,
            callbacks=[losses],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        runs.append((losses.values, weights(trainer), trainer.queries, trainer.forwards))
    for values, end, queries, forwards in runs[1:]:
        assert values == pytest.approx(runs[0][0], abs=2e-3)
        assert values[:1] == pytest.approx(runs[0][0][:1], abs=1e-6)
        torch.testing.assert_close(end, runs[0][1], atol=2e-3, rtol=0)
        assert (queries, forwards) == runs[0][2:]


class Modes(TrainerCallback):
    """Notes for each forward pass of the model whether it was in training mode, and the dtype of the loss."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.training: list[bool] = []
        model.register_forward_hook(lambda module, *_: self.training.append(module.training))


@pytest.mark.parametrize(("method", "training"), [("MeZO", False), ("FOAdam", True)])
def test_queries_run_in_evaluation_mode_and_first_order_steps_in_training_mode(
    tmp_path: Path, method: str, training: bool
) -> None:
    model = build("gpt2", resid_pdrop=0.5)
    modes = Modes(model)
    make_trainer(tmp_path, method=method, model=model.train(), max_steps=1, trainer={}).train()
    batches_of_evaluation = 3
    assert set(modes.training[:-batches_of_evaluation]) == {training}
    assert set(modes.training[-batches_of_evaluation:]) == {False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_is_reduced_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build("llama", dtype=dtype)
    trainer = make_trainer(tmp_path, model=model, train=8, max_steps=1, data_seed=0)
    batch = trainer.data_collator(examples(8))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits.double(), batch["labels"])
    loss = trainer.compute_loss(model, dict(batch)).detach()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)
    trainer.train()
    assert np.isfinite(trainer.last_loss)
    assert trainer.model.dtype == dtype


def test_a_loss_in_half_precision_is_refused(tmp_path: Path) -> None:
    def coarse(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs["logits"], labels)

    model = build("llama", dtype=torch.bfloat16)
    trainer = make_trainer(tmp_path, model=model, trainer={"compute_loss_func": coarse})
    with pytest.raises(ValueError, match=r"logits\.float"):
        trainer.train()


@pytest.mark.parametrize("method", ["MeZO", "FOAdam"])
def test_a_nan_loss_stops_the_run_before_the_weights_change(tmp_path: Path, method: str) -> None:
    def broken(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return outputs["logits"].float().mean() * float("nan")

    trainer = make_trainer(tmp_path, method=method, trainer={"compute_loss_func": broken})
    before = weights(trainer)
    with pytest.raises(zotune.NonFiniteLossError):
        trainer.train()
    assert torch.equal(weights(trainer), before)


def test_a_snapshot_step_reads_the_whole_sample_once(tmp_path: Path) -> None:
    losses = Losses()
    trainer = make_trainer(
        tmp_path,
        method=lambda groups: zotune.MeZOSVRG(groups, lr=0.0, lr_minibatch=0.0, period=2, eps=1e-6),
        train=30,
        max_steps=2,
        callbacks=[losses],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    batch = trainer.data_collator(examples(30))
    with torch.no_grad():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    whole = torch.nn.functional.cross_entropy(logits, batch["labels"])
    trainer.train()
    assert losses.values[0] == pytest.approx(float(whole), abs=1e-5)
    assert losses.values[1] != pytest.approx(float(whole), abs=1e-5)
    full, pair = 2 * 30, 4 * 8
    assert trainer.forwards == full + pair
    assert trainer.queries == 6


@pytest.mark.parametrize(
    ("method", "queries", "backwards"), [("MeZO", 2, 0), ("LOREN", 2, 0), ("HiZOO", 3, 0), ("FOAdam", 1, 1)]
)
def test_the_cost_is_counted_per_batch_and_per_example(
    tmp_path: Path, method: str, queries: int, backwards: int
) -> None:
    trainer = make_trainer(tmp_path, method=method, train=30, max_steps=5)
    trainer.train()
    rows = 8 + 8 + 8 + 6 + 8
    assert (trainer.queries, trainer.forwards) == (5 * queries, rows * queries)
    assert trainer.backwards == 5 * backwards


# Optimizer and arguments.


def test_the_factory_gets_named_parameters_and_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    model = build("gpt2")
    model.transformer.wte.weight.requires_grad_(False)
    seen: dict[float, set[str]] = {0.1: set(), 0.0: set()}

    def factory(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        for group in groups:
            seen[group["weight_decay"]] |= {name for name, _ in group["params"]}
        return zotune.MeZO(groups, lr=1e-3)

    make_trainer(tmp_path, method=factory, model=model, weight_decay=0.1, max_steps=1).train()
    decayed, plain = seen[0.1], seen[0.0]
    assert "transformer.h.0.attn.c_attn.weight" in decayed
    assert {"transformer.h.0.attn.c_attn.bias", "transformer.ln_f.weight"} <= plain
    assert "transformer.wte.weight" not in decayed | plain
    assert decayed | plain == {name for name, p in model.named_parameters() if p.requires_grad}


def test_autocast_is_refused_for_queries(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="load the model in that dtype"):
        make_trainer(tmp_path, bf16=True).train()


def test_a_model_without_trainable_parameters_is_refused(tmp_path: Path) -> None:
    model = build("llama").requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_trainer(tmp_path, model=model).train()


def test_the_bars_of_the_library_are_gone(tmp_path: Path) -> None:
    for disable in (False, True):
        callbacks = make_trainer(tmp_path, disable_tqdm=disable).callback_handler.callbacks
        assert not any(isinstance(callback, (PrinterCallback, ProgressCallback)) for callback in callbacks)


# Evaluation.


class Evaluations(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"eval_strategy": "no"}, [6]),
        ({"eval_strategy": "steps", "eval_steps": 3}, [3, 6]),
        ({"eval_strategy": "steps", "eval_steps": 4, "eval_on_start": True}, [0, 4, 6]),
        ({"eval_strategy": "epoch"}, [4, 6]),
        ({"eval_strategy": "epoch", "max_steps": 8}, [4, 8]),
    ],
)
def test_the_last_weights_are_evaluated_exactly_once(
    tmp_path: Path, arguments: dict[str, Any], steps: list[int]
) -> None:
    evaluations = Evaluations()
    make_trainer(tmp_path, callbacks=[evaluations], **arguments).train()
    assert evaluations.steps == steps


@pytest.mark.parametrize("batch", [3, 4, 10])
def test_the_evaluation_loss_is_the_mean_over_the_examples(tmp_path: Path, batch: int) -> None:
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=batch)
    rows = trainer.data_collator(examples(10, seed=1))
    with torch.no_grad():
        logits = trainer.model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    metrics = trainer.evaluate()
    expected = torch.nn.functional.cross_entropy(logits.double(), rows["labels"])
    assert metrics["eval_loss"] == pytest.approx(float(expected), abs=1e-6)
    assert metrics["eval_accuracy"] == float((logits.argmax(dim=1) == rows["labels"]).double().mean())


# Checkpoints.


@pytest.mark.parametrize(("method", "restore"), [("MeZO", True), *((method, False) for method in METHODS)])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, method: str, restore: bool) -> None:
    arguments = {
        "method": method,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "restore_callback_states_from_checkpoint": restore,
    }
    whole = make_trainer(tmp_path, **arguments)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = make_trainer(tmp_path, model=build("llama", seed=9), **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.last_loss == whole.last_loss
    assert (resumed.queries, resumed.forwards, resumed.backwards) == (whole.queries, whole.forwards, whole.backwards)
    assert (tmp_path / "checkpoint-3" / "model.safetensors").is_file()


@pytest.mark.parametrize("method", ["MeZO", "FOAdam"])
def test_divided_weights_are_for_first_order_methods(method, tmp_path, monkeypatch):
    """What `accelerate launch --use_fsdp` asks for reaches the library, which alone makes the steps of such a run."""
    trainer = make_trainer(tmp_path, method=method)
    trainer.is_fsdp_enabled = True
    wrapped = []
    monkeypatch.setattr(Trainer, "_wrap_model", lambda self, model, *more, **options: wrapped.append(model) or model)
    if method == "MeZO":
        with pytest.raises(ValueError, match="FSDP and DeepSpeed divide weights for backward passes"):
            trainer.create_optimizer()
        assert not wrapped
    else:
        trainer.create_optimizer()
        trainer._wrap_model(trainer.model)
        assert wrapped == [trainer.model]


def test_options_of_fsdp_reach_the_library(tmp_path):
    words = "fsdp only works in distributed training"  # the library's own; it also sets variables of the process
    with mock.patch.dict(os.environ), pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, method="FOAdam", fsdp=True, fsdp_config={"fsdp_version": 2})
