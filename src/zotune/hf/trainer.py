"""transformers.Trainer that makes its steps from forward passes."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from zotune import DataParallel, NonFiniteLossError, Staged, ZerothOrder
from zotune.evaluators import Closure
from zotune.interrupts import held
from zotune.pace import Pace
from zotune.probing import Curvature, curvature_now

from .groups import parameter_groups
from .ledger import Ledger, StepCost
from .lifecycle import Lifecycle
from .loss import (
    Metrics,
    class_cross_entropy,
    has_class_logits,
    wide_loss,
    with_exact_loss,
)
from .measuring import StepBatch, small_rows
from .past import TrajectoryKeeper
from .portions import Portions
from .randomness import lent
from .replicas import check_replicas
from .sampling import Batch, KeyedSampler, StepRows, count_rows, first_rows, rank_batches, share_step

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
LossFunction = Callable[..., torch.Tensor]


class ZOTrainer(Lifecycle):
    """The library's training loop for zeroth-order optimizers, and for first-order ones beside them.

    With a zotune optimizer the model stays in evaluation mode, nothing is wrapped, and every micro-batch is one
    ``optimizer.estimate`` weighted by its number of examples; the loop's own ``optimizer.step()`` applies the update.
    With any other torch optimizer the step is the library's, with backward pass, training mode and
    DistributedDataParallel.

    Several processes (``torchrun``): zeroth-order ranks take their share of each batch through
    `zotune.DataParallel`; examples that only fill up the last batch of an epoch have weight 0. A first-order
    run counts those examples, as the library does. One process drives one device.

    Args:
        model: model of transformers, already in the dtype in which it is to run.
        args: the library's arguments. ``max_grad_norm`` concerns first-order optimizers only; ``bf16`` and ``fp16``
            (autocast) are refused for zeroth-order ones. ``logging_nan_inf_filter`` is switched off.
        optimizer_factory: called once with a list of parameter groups, see `zotune.hf.groups.parameter_groups`.
        data_seed: key of the order of the training examples, 0 or larger.
        train_dataset: training examples.
        eval_dataset: evaluation examples.
        data_collator: makes a batch from examples.
        processing_class: tokenizer.
        compute_metrics: metrics of the evaluation.
        compute_loss_func: ``(outputs, labels, num_items_in_batch=None) -> scalar``, to be reduced in float32. Left
            out, sequence classifiers use cross entropy in float32 and other models their own loss.
        halve_when_out_of_memory: halve the rows of a forward pass when memory runs out, and go on; zeroth-order
            optimizers only.
        objective: function of (model, batch) that gives the loss in place of all that, as a number or a one-element
            tensor; zeroth-order optimizers only. It need have no gradient. What it draws from torch's global
            generators has a key: seed, step and micro-batch, so all queries of a step see the same draws.
        train_collator: makes a batch from training examples; ``data_collator`` when left out.
        callbacks: further callbacks; one that has a method ``attach`` is given the trainer, one that has ``close`` is
            closed when training ends in whatever way.

    Attributes:
        ledger: counts of the run, see `Ledger`.
        pace: multiplies the rate before each update, if it is set; see `zotune.hf.pacing`.

    Raises:
        ValueError: negative ``data_seed``, ``ignore_data_skip``, or accelerate is set to split or dispatch batches.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        optimizer_factory: OptimizerFactory,
        data_seed: int = 0,
        train_dataset: Dataset[Any] | None = None,
        eval_dataset: Dataset[Any] | None = None,
        data_collator: Callable[..., Batch] | None = None,
        processing_class: Any = None,
        compute_metrics: Metrics | None = None,
        compute_loss_func: LossFunction | None = None,
        halve_when_out_of_memory: bool = False,
        objective: Callable[[nn.Module, Batch], float | torch.Tensor] | None = None,
        train_collator: Callable[..., Batch] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if data_seed < 0:
            raise ValueError(f"data_seed must be 0 or larger, got {data_seed}.")
        if args.ignore_data_skip:
            raise ValueError("A resumed run goes on with the next batch; leave ignore_data_skip switched off.")
        # A batch has a stated size: the library would otherwise multiply it by the number of visible devices.
        args._n_gpu = min(1, args.n_gpu)
        # The filter replaces a nan loss by the mean of earlier ones.
        args.logging_nan_inf_filter = False
        if compute_loss_func is None and objective is None and has_class_logits(model):
            compute_loss_func = class_cross_entropy
            compute_metrics = with_exact_loss(compute_metrics)
        self._optimizer_factory, self._objective, self._train_collator = optimizer_factory, objective, train_collator
        self._portions = Portions(halve=halve_when_out_of_memory)
        self._portions.record = self._record_portions
        self._data_seed = data_seed
        self._sampler: KeyedSampler | None = None
        self._inner: torch.optim.Optimizer | None = None
        self._rows = StepRows(own=(), total=0)  # of the current step
        self._micro = 0  # micro-batches of the current step that are done
        self.pace: Pace | None = None
        self._queries_before = 0
        self._first_order_loss = 0.0
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=[Ledger(), *(callbacks or [])],
        )
        if self.accelerator.split_batches or self.accelerator.dispatch_batches:
            raise ValueError("ZOTrainer shares batches itself; leave split_batches and dispatch_batches switched off.")
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self._attach_callbacks()

    def get_train_dataloader(self) -> Any:
        """The library's, with the collator of the training rows."""
        if self._train_collator is None:
            return super().get_train_dataloader()
        kept, self.data_collator = self.data_collator, self._train_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = kept

    # Counters of the seam with the command line.

    @property
    def last_loss(self) -> float:
        """Mean training loss of the last step over all ranks; nan before the first step."""
        return self.ledger.loss

    @property
    def queries(self) -> int:
        """Forward passes over a batch so far; a first-order step counts 1."""
        return self.ledger.queries

    @property
    def forwards(self) -> int:
        """Forward passes of one example so far, all ranks together."""
        return self.ledger.forwards

    @property
    def backwards(self) -> int:
        """Backward passes over a batch so far; 0 for zeroth-order methods."""
        return self.ledger.backwards

    # Optimizer and model.

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer from the factory, with the library's choice of parameters without weight decay.

        Raises:
            ValueError: no trainable parameter, or autocast together with a zeroth-order optimizer.
        """
        if self.optimizer is not None:
            return self.optimizer
        opt_model = self._module if model is None else model
        groups = parameter_groups(
            opt_model,
            weight_decay=self.args.weight_decay,
            decayed=self.get_decay_parameter_names(opt_model),
        )
        self._inner = self.optimizer = self._optimizer_factory(groups)
        if isinstance(self._inner, ZerothOrder):
            self._prepare_zeroth_order(self._inner)
        return self.optimizer

    def _prepare_zeroth_order(self, optimizer: ZerothOrder) -> None:
        if self.args.bf16 or self.args.fp16:
            raise ValueError(
                "bf16 and fp16 of TrainingArguments switch on autocast, which zeroth-order training does not need; "
                "load the model in that dtype instead."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed divide weights for backward passes; zeroth-order ranks hold the whole model each, "
                "so switch them off, or take a first-order optimizer."
            )
        self.args.max_grad_norm = 0.0
        optimizer.register_tell_hook(self._keep_pace)
        if self.args.world_size > 1:
            optimizer.evaluator = DataParallel(inner=optimizer.evaluator)

    def _keep_pace(self, optimizer: ZerothOrder, losses: Sequence[float]) -> None:
        if self.pace is not None:
            self.pace(optimizer, losses)

    @property
    def zeroth_order(self) -> ZerothOrder | None:
        """The optimizer, if it is one of zeroth order."""
        return self._inner if isinstance(self._inner, ZerothOrder) else None

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if self.zeroth_order is None:
            return super()._wrap_model(model, training, dataloader)
        # accelerate's own mark of a model that it need not wrap again: there is no gradient to synchronise.
        model._is_accelerate_prepared = True  # type: ignore[assignment]
        return model

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # There is no gradient to measure; the name is absent from older versions of the library.
        return None if self.zeroth_order is not None else super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]

    def check_replicas(self) -> None:
        """Compare the weights of all ranks; nothing to do for one rank, or where the library keeps them alike.

        Raises:
            RuntimeError: a rank holds other weights than rank 0; the message names it.
        """
        if self.args.world_size > 1 and self.zeroth_order is not None:
            check_replicas(self._module, self.state.global_step)

    # Data.

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "__len__"):
            return None
        self._sampler = KeyedSampler(len(dataset), self._data_seed)
        return self._sampler

    def start_epoch(self) -> None:
        """Choose the permutation of the epoch that the next step belongs to."""
        if self._sampler is not None:
            self._sampler.set_epoch(self.state.global_step // self._steps_per_epoch())

    @property
    def _loader(self) -> Any:
        return self.callback_handler.train_dataloader

    def _steps_per_epoch(self) -> int:
        return max(1, math.ceil(len(self._loader) / self.args.gradient_accumulation_steps))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The micro-batches of one step, without the examples that only fill up the last batch of an epoch."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro = 0
        self._first_order_loss = 0.0
        counts, world = [count_rows(batch) for batch in batches], self.args.world_size
        self._rows = StepRows(own=counts, total=sum(counts) * world)
        if self.zeroth_order is not None:
            self._queries_before = self.zeroth_order.queries
            if world > 1 and self._sampler is not None:
                first = self.state.global_step % self._steps_per_epoch() * self.args.gradient_accumulation_steps
                micro = range(first, first + len(batches))
                size, rank = self._sampler.size, self.args.process_index
                self._rows = share_step(size, self._train_batch_size, micro, world, rank)
                # A rank without a real example still takes part, with one example of weight 0.
                counted = zip(batches, self._rows.own, strict=True)
                batches = [first_rows(batch, max(1, rows)) for batch, rows in counted]
        return batches, num_items

    # The step.

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One micro-batch: accumulate an estimate, or the gradient of a first-order optimizer.

        Returns:
            The micro-batch's share of the mean loss of the step, a scalar tensor.

        Raises:
            NonFiniteLossError: the loss is nan or infinite; the weights are those before the step.
            ValueError: a zeroth-order loss was reduced in half precision.
        """
        optimizer, micro = self.zeroth_order, self._micro
        self._micro += 1
        if optimizer is None:
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            self._first_order_loss += float(loss)
            if not math.isfinite(self._first_order_loss):
                raise NonFiniteLossError(self.state.global_step, self._first_order_loss)
            return loss
        model.eval()
        own = self._rows.own
        if micro == 0:
            step, device = self.state.global_step, self.args.device
            self._portions.begin(step, self.past.portions(step), ranks=self.args.world_size, device=device)
        recorded = self.past.losses(self.state.global_step)
        if recorded is not None:
            return torch.tensor(self._repeat(optimizer, recorded), device=self.args.device)
        if not getattr(optimizer, "needs_full", False):
            share = own[micro] / max(1, sum(own))
            value = self._estimate(optimizer, model, inputs, own[micro]) * share
        else:
            # Snapshot of MeZO-SVRG: the whole sample once, in place of the micro-batches of this step.
            value = self._estimate_on_all(optimizer, model) if micro == 0 else 0.0
        return torch.tensor(value, device=self.args.device)

    def _repeat(self, optimizer: ZerothOrder, losses: Sequence[float]) -> float:
        """Make a recorded step again: the loop's `optimizer.step()` applies the update."""
        if getattr(optimizer, "needs_full", False):
            self._rows = StepRows(own=self._rows.own, total=len(self._loader.dataset))
        optimizer.recall(losses)
        return 0.0  # the log takes the loss from the ledger

    def _estimate(self, optimizer: ZerothOrder, model: nn.Module, inputs: Batch, rows: int) -> float:
        inputs = self._prepare_inputs(inputs)
        portion = partial(self._estimate_portion, optimizer, model)
        return self._portions.estimate(optimizer, inputs, rows, portion)

    def _estimate_portion(self, optimizer: ZerothOrder, model: nn.Module, inputs: Batch, rows: int) -> float:
        return optimizer.estimate(self._loss_on(model, inputs), weight=rows)

    def step_batches(
        self, count: int, *, rows: int | None = None, last: bool = False, skip: int = 0
    ) -> list[StepBatch]:
        """The batches of the first ``count`` steps of the training order, or of the last ones of an epoch, which a rate
        can be measured on; where there are fewer, they come again.

        Args:
            count: of the batches.
            rows: examples of each, those of all ranks together; None: as many as a step has.
            last: whether they are those at the end of the epoch.
            skip: batches that are left out before them.
        """
        loader = self._loader if self._loader is not None else self.get_train_dataloader()
        data, collate, world, each = loader.dataset, loader.collate_fn, self.args.world_size, self._train_batch_size
        order = list(KeyedSampler(len(data), self._data_seed))
        rows = min(len(order), self._step_size if rows is None else rows)
        micro = math.ceil(rows / (each * world))
        width = math.ceil(rows / (micro * world))
        groups = [order[begin : begin + rows] for begin in range(0, len(order), rows)]
        wanted = itertools.cycle(groups[::-1] if last else groups)
        batches = []
        for group in itertools.islice(wanted, skip, skip + min(count, len(groups))):
            firsts = [(index * world + self.args.process_index) * width for index in range(micro)]
            own = [group[first : first + width] for first in firsts]
            share = StepRows(own=[len(part) for part in own], total=len(group))
            # A rank without a real example still takes part, with one example of weight 0.
            examples = [[data[i] for i in part] or [data[group[0]]] for part in own]
            inputs = [self._prepare_inputs(collate(some)) for some in examples]
            batches.append(StepBatch(inputs, share, partial(self._loss_on, self._module.eval()), self._portions))
        return list(itertools.islice(itertools.cycle(batches), count))

    @property
    def _step_size(self) -> int:
        """Examples of a step, those of all ranks together."""
        return int(self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps)

    @held
    @torch.no_grad()
    def curvature(self, length: float, count: int, skip: int) -> Curvature | None:
        """`zotune.probing.curvature_now` on small batches from the end of an epoch, after some that are left out; the
        trajectory keeps it."""
        assert self.zeroth_order is not None
        batches = self.step_batches(count, rows=small_rows(self._step_size), last=True, skip=skip)
        found = curvature_now(self.zeroth_order, batches, length)
        for callback in self.callback_handler.callbacks:
            if found is not None and isinstance(callback, TrajectoryKeeper):
                callback.curvature(found)
        return found

    def _loss_on(self, model: nn.Module, inputs: Batch) -> Closure:
        def alone() -> float | torch.Tensor:
            if self._objective is not None:
                # The same draws for every query of a micro-batch: what differs is due to the weights alone.
                key = ("objective", self._data_seed, self.state.global_step, self._micro, self.args.process_index)
                with lent(*key, device=self.args.device):
                    return self._objective(model, dict(inputs))
            return wide_loss(self.compute_loss(model, dict(inputs)))

        return self._staged(model, inputs) or alone

    def _record_portions(self, rows: int, begin: int) -> None:
        """Let the trajectory say how many rows a forward pass has from a step on."""
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "portions"):
                callback.portions(rows, begin)

    def _staged(self, model: nn.Module, inputs: Batch) -> Staged | None:
        """Where the loss is a function of outputs and labels: the model's forward, which queries may share, apart from
        the loss, which then may be any function."""
        loss = self.compute_loss_func if self._objective is None else None
        own_loss = type(self).compute_loss is not Trainer.compute_loss or self.label_smoother is not None
        if loss is None or own_loss or "labels" not in inputs:
            return None
        given = {name: value for name, value in inputs.items() if name != "labels"}
        return Staged(lambda: model(**given), lambda outputs: wide_loss(loss(outputs, inputs["labels"])))

    def _estimate_on_all(self, optimizer: ZerothOrder, model: nn.Module) -> float:
        """Accumulate the estimate on this rank's share of the training sample; returns the share's mean loss."""
        data, collate = self._loader.dataset, self._loader.collate_fn
        self._rows = StepRows(own=self._rows.own, total=len(data))
        total, seen = 0.0, 0
        shares = rank_batches(data, collate, self._train_batch_size, self.args.world_size, self.args.process_index)
        for batch, rows in shares:
            total += self._estimate(optimizer, model, batch, rows) * rows
            seen += rows
        return total / max(1, seen)

    def step_cost(self) -> StepCost:
        """Loss and cost of the step that the optimizer has just made."""
        assert self._inner is not None
        optimizer = self.zeroth_order
        if optimizer is None:
            lr = float(self._inner.param_groups[0]["lr"])
            mean = self._first_order_loss
            if self.args.world_size > 1:
                total = torch.tensor(mean, dtype=torch.float64, device=self.args.device)
                dist.all_reduce(total)
                mean = float(total) / self.args.world_size
            return StepCost(loss=mean, lr=lr, queries=1, rows=self._rows.total, backwards=1)
        queries = optimizer.queries - self._queries_before
        assert optimizer.last_loss is not None, "the optimizer has just made a step"
        lr = optimizer.last_rates[0]  # with its pace
        return StepCost(loss=optimizer.last_loss, lr=lr, queries=queries, rows=self._rows.total, backwards=0)
