"""`zotune evaluate`: a model scored on the rows of a task."""

from collections.abc import Sequence

from zotune.cli.console import say, standard_error
from zotune.cli.flags import parse_flags
from zotune.config import EVALUATE_FLAGS, ConfigError, evaluate_from_text

_ABOUT = (
    "Score a model on the validation rows of a task, without training. A causal language model is asked in words: it"
    " chooses among options by their likelihood, or writes its answer, with --demonstrations behind solved training"
    " examples. A model that was trained with a new head answers with that. The scores are on standard output."
)


def main(argv: Sequence[str]) -> int:
    """Run `zotune evaluate` with the flags `argv` and return its exit code."""
    console = standard_error()
    try:
        given = parse_flags("zotune evaluate", _ABOUT, argv, flags=EVALUATE_FLAGS, bare="model_name")
        config = evaluate_from_text(given)
        config.validate()
    except ConfigError as error:
        say(console, str(error))
        return 2
    from zotune.run.evaluating import launch

    return launch(config, console)
