"""CommitmentBank (de Marneffe et al., 2019): does the speaker commit to the hypothesis?  Three uneven classes."""

from zotune.tasks.base import Task

CB = Task(
    name="cb",
    hub=("aps/super_glue", "cb"),
    columns=("premise", "hypothesis"),
    labels=("entailment", "contradiction", "neutral"),
    template='Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n{label}',
    words=("Yes", "No", "Maybe"),
    metrics=("accuracy", "macro_f1"),
    version=2,
)
