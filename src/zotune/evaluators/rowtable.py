"""The rule of every torch function that may run once for all groups, see `zotune.evaluators.rowwise`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zotune.evaluators import rowproducts as products
from zotune.evaluators import rowwise as rules
from zotune.evaluators.rowwise import Rule, along


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


_ELEMENTWISE = """
abs absolute acos acosh add addcdiv addcmul angle arccos arcsin arctan arctan2 asin asinh atan atan2 atanh bitwise_and
bitwise_not bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift ceil clamp clamp_max clamp_min clip conj
copysign cos cosh deg2rad digamma div divide eq erf erfc erfinv exp exp2 expm1 fix float_power floor floor_divide fmax
fmin fmod frac ge greater greater_equal gt heaviside hypot i0 isclose isfinite isinf isnan isneginf isposinf isreal
ldexp le lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or
logical_xor logit lt masked_fill maximum minimum mul multiply nan_to_num ne neg negative nextafter not_equal polar
positive pow real imag reciprocal relu remainder round rsqrt rsub sgn sigmoid sign signbit sin sinc sinh sqrt square sub
subtract tan tanh threshold true_divide trunc view_as_real xlogy complex
copy
celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu6 rrelu selu silu softplus
softshrink softsign tanhshrink dropout alpha_dropout feature_alpha_dropout expit
clone contiguous detach data resolve_conj resolve_neg conj_physical bernoulli
"""

_OF_FIRST = """
to type type_as float double half bfloat16 int long short char byte bool cpu cuda zeros_like ones_like full_like
empty_like rand_like randn_like zero fill requires_grad
"""

_NEW = "new_zeros new_ones new_full new_empty new_tensor result_type"

_VIEWS = "view reshape flatten unflatten view_as reshape_as ravel"

_LOSSES = """
mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits
soft_margin_loss poisson_nll_loss
"""

_ALONG = """
softmax log_softmax softmin sum nansum mean nanmean prod amax amin aminmax argmax argmin all any cumsum cumprod cummax
cummin logcumsumexp logsumexp std var std_mean var_mean median nanmedian mode count_nonzero select narrow unfold
index_fill
"""

_FRESH = """
add sub mul div matmul bmm baddbmm addmm linear embedding layer_norm rms_norm softmax einsum
scaled_dot_product_attention gelu relu silu tanh sigmoid cat stack
"""

_RULES: dict[str, Rule] = {
    **_all(_ELEMENTWISE, rules.elementwise),
    **_all(_OF_FIRST, rules.like_first),
    **_all(_NEW, rules.no_values),
    **_all(_VIEWS, rules.keeps_order),
    **_all(_LOSSES, rules.pointwise_loss),
    **_all("cross_entropy nll_loss", rules.class_loss),
    "where": rules.choice,
    **_all("max min", rules.extremum),
    **_all(_ALONG, along()),
    **_all("norm vector_norm", along(2)),
    **_all("topk kthvalue", along(2, -1)),
    **_all("sort argsort", along(1, -1)),
    **_all("split chunk tensor_split split_with_sizes", along(2, 0)),
    "unbind": along(1, 0),
    "unsqueeze": along(grow=1),
    "glu": along(1, -1),
    "normalize": along(2, 1),
    "roll": along(2, None, "dims"),
    **_all("transpose swapaxes swapdims movedim moveaxis flip", rules.along_all),
    "permute": rules.permuted,
    "diagonal": rules.diagonal,
    **_all("tril triu mT mH adjoint", rules.matrices),
    "squeeze": rules.squeezed,
    "expand": rules.expanded,
    "expand_as": rules.expanded_as,
    "repeat": rules.repeated,
    "repeat_interleave": rules.interleaved,
    "pad": rules.padded,
    **_all("cat concat concatenate", rules.joined()),
    "stack": rules.joined(1),
    **_all("gather scatter scatter_add", rules.gathered),
    "index_select": rules.selected,
    **_all("matmul mm mv", products.matmul),
    **_all("bmm baddbmm", products.batch_matmul),
    "addmm": products.addmm,
    "linear": products.of_rows(2),
    "einsum": products.einsum,
    "scaled_dot_product_attention": products.attention,
    "embedding": products.embedding,
    "one_hot": products.classes,
    **_all("layer_norm rms_norm", products.trailing_norm),
    **_all("group_norm instance_norm view_as_complex", products.of_rows(2)),
    "batch_norm": products.batch_norm,
    **{f"{name}{n}d": products.of_rows(n + 2) for n in (1, 2, 3) for name in ("conv", "conv_transpose", "avg_pool")},
    **{f"{name}{n}d": products.of_rows(n + 2) for n in (1, 2, 3) for name in ("max_pool", "adaptive_avg_pool")},
}

_OPERATORS = """
add radd iadd sub rsub isub mul rmul imul div rdiv idiv truediv rtruediv itruediv floordiv rfloordiv ifloordiv mod rmod
imod pow rpow ipow and rand iand or ror ior xor rxor ixor lshift rlshift ilshift rshift rrshift irshift invert neg pos
abs eq ne lt le gt ge
"""

_OTHERS = (torch.embedding, functional.unfold)
"""Namesakes whose arguments mean something else."""


def _functions(name: str) -> Iterable[Any]:
    """All torch functions of that name: free, method, in place, getter of an attribute."""
    for home in (torch, torch.special, torch.linalg, functional, Tensor):
        for spelling in (name, f"{name}_"):
            found = getattr(home, spelling, None)
            yield found if callable(found) else getattr(found, "__get__", None)


def _table() -> dict[Any, Rule]:
    table: dict[Any, Rule] = {}
    for name, rule in _RULES.items():
        table.update((found, rule) for found in _functions(name) if found not in (None, *_OTHERS))
    table.update(
        (found, rules.elementwise) for name in _OPERATORS.split() if (found := getattr(Tensor, f"__{name}__", None))
    )
    table[Tensor.__matmul__] = products.matmul
    table[Tensor.__getitem__], table[Tensor.__setitem__] = products.getitem, products.setitem
    return table


TABLE = _table()
"""Rules by function; a function that is not here runs group by group."""

FRESH = frozenset(
    function
    for name in _FRESH.split()
    for function in _functions(name)
    if function in TABLE and not str(getattr(function, "__name__", "")).endswith("_")
) | {Tensor.__rsub__, Tensor.__matmul__}
"""Functions that only read their arguments, and whose results are no views of them: worth running once for tensors
that have to be put together first."""
