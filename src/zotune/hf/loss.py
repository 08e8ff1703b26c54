"""Classification loss reduced in float32, and its exact mean over an evaluation set."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import EvalPrediction

from .adapters import own_model

Metrics = Callable[[EvalPrediction], dict[str, float]]


def class_cross_entropy(
    outputs: Any, labels: torch.Tensor | None, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy of class logits, computed in float32 whatever the dtype of the model.

    A loss in half precision comes in steps of 2**-8 (bf16) or 2**-11 (fp16) of itself, which at a perturbation scale
    of 1e-3 quantises the projected gradient to steps of order 1.

    Args:
        outputs: model output with ``logits`` of shape [batch, classes].
        labels: class numbers, shape [batch].
        num_items_in_batch: divide the sum of the losses by this number in place of the number of labels (the
            library's convention for gradient accumulation).

    Returns:
        Scalar tensor, float32.

    Raises:
        ValueError: there are no labels.
    """
    if labels is None:
        raise ValueError("The batch has no 'labels'; keep the label column of the data set under that name.")
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    logits = logits.float()
    total = functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def wide_loss(loss: Any) -> torch.Tensor:
    """The loss itself, if it was reduced in float32 or float64.

    Raises:
        ValueError: it was reduced in half precision.
    """
    assert isinstance(loss, torch.Tensor), "compute_loss returns the loss alone unless asked for the outputs"
    if loss.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"The model reduces its loss in {loss.dtype}, too coarse for differences of losses; give the trainer a "
            "compute_loss_func that works on logits.float()."
        )
    return loss


def has_class_logits(model: nn.Module) -> bool:
    """Whether ``model`` is a single-label sequence classifier of transformers (also inside a PEFT wrapper)."""
    base: Any = own_model(model)
    config = getattr(base, "config", None)
    return (
        getattr(base, "loss_type", None) == "ForSequenceClassification"
        and getattr(config, "num_labels", 0) > 1
        and getattr(config, "problem_type", None) in (None, "single_label_classification")
    )


def with_exact_loss(compute_metrics: Metrics | None) -> Metrics:
    """Add ``loss``, the mean cross entropy over all evaluated examples, to what ``compute_metrics`` returns.

    The library averages the means of batches, which on several ranks counts the examples that fill the last batch
    twice; gathered logits are free of them. Float64, so the mean does not depend on the batch size.
    """

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        logits = np.asarray(scores, dtype=np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        chosen = np.take_along_axis(logits, np.asarray(prediction.label_ids, dtype=np.int64)[:, None], axis=1)[:, 0]
        result = {} if compute_metrics is None else dict(compute_metrics(prediction))
        return {"loss": float((log_sum - chosen).mean()), **result}

    return metrics
