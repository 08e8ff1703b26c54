"""The command line: mistakes and their sentences, help, and the exit codes of what can end a run."""

import re

import pytest

import zotune
import zotune.cli
from zotune.cli import main
from zotune.cli.flags import parse_flags
from zotune.config import (
    EVALUATE_FLAGS,
    FLAGS,
    METHOD_FLAGS,
    CompareConfig,
    SweepConfig,
    config_from_text,
    notices,
)
from zotune.config.flags import flags_of

README_COMMAND = """python main.py\\
    --epochs $epochs \\
    --model_name $model \\
    --task $task \\
    --algorithm $algorithm \\
    --lr $lr \\
    --weight_decay 0.0 \\
    --num_queries $num_queries \\                    # Default: 2 (MeZO, LOZO, MeZO-Adam), 3 (MeZO-SVRG, HiZOO)
    --perturbation_scale 1e-3  \\
    --lr_mezosvrg_mb 1e-6 --q 2 --anneal 5 \\        # MeZO-SVRG
    --eps 1e-8 \\                                    # MeZO-Adam
    --rank 2 --step_interval 50 \\                   # LOZO
    --hessian_smooth_type constant1e-8 \\            # HiZOO
    --lr_cov 1e-3 --damping 0.1 \\                   # LOREN
    --samplesize 512 --samplesize_validation 256 \\
    --batchsize $bsz \\
    --batchsize_limit $bsz_lim \\
    --full_parameter \\
    --max_seq_length 128 \\
    --device 0 --save_every 10000000 --logging csv \\
    --init_seed 42 --trial $trial \\
    --early_stopping --patience 1000"""
"""The command of the LOREN repository's README."""


def readme_words(**values):
    """The words of the README's command after `main.py`, its comments taken out and its variables filled in."""
    text = re.sub(r"\\\s*(#.*)?\n", " ", README_COMMAND)
    for name, value in sorted(values.items(), key=lambda item: -len(item[0])):
        text = text.replace(f"${name}", str(value))
    assert "$" not in text
    assert "#" not in text
    return text.split()[2:]


WRONG = {
    "misspelt flag": ("--bachsize 4", "There is no flag --bachsize; did you mean --batchsize?"),
    "flag with dashes": ("--weight-decay 0", "did you mean --weight_decay?"),
    "flag of the library's trainer": ("--per-device-train-batch-size 8", "did you mean --batchsize?"),
    "flag of MeZO's script": ("--zo_eps 1e-3", "There is no flag --zo_eps; did you mean --perturbation_scale?"),
    "name of a paper": ("--algorithm MeZO", "did you mean ZO?"),
    "shortened flag": ("--epoch 1", "did you mean --epochs?"),
    "misspelt flag with a value": ("--algoritm=LOZO", "did you mean --algorithm?"),
    "unlike any flag": ("--xyzzy", "There is no flag --xyzzy."),
    "single dash": ("-lr 1", "There is no flag -lr; did you mean --lr?"),
    "value without a flag": ("sst2", "'sst2' belongs to no flag"),
    "flag without a value": ("--task", "--task needs a value."),
    "flag without a value in between": ("--task --lr 1", "--task needs a value."),
    "switch with a value": ("--full_parameter=no", "--full_parameter is a switch, so it takes no value"),
    "rate in words": ("--lr tiny", "--lr takes a number or auto, not 'tiny'."),
    "negative rate": ("--lr -1e-3", "--lr must not be negative, but is -0.001."),
    "negative rate with a sign of equality": ("--lr=-1", "--lr must not be negative"),
    "rate that is no number": ("--lr nan", "--lr must be a finite number"),
    "empty batch": ("--batchsize 0", "--batchsize must be at least 1, not 0."),
    "fraction of a batch": ("--batchsize 1.5", "--batchsize takes a whole number, not '1.5'."),
    "unknown task": ("--task sst_2", "There is no task 'sst_2'. Did you mean 'sst2'?"),
    "unknown algorithm": ("--algorithm LORAN", "did you mean LOREN?"),
    "unknown device": ("--device tpu", "--device must be cpu"),
    "one query": ("--num_queries 1", "--num_queries with LOREN must be at least 2"),
    "five queries of ZOSVRG": ("--algorithm ZOSVRG --num_queries 5", "must be a multiple of 3"),
    "even queries of HiZOO": ("--algorithm HiZOO --num_queries 2", "must be an odd number from 3"),
    "no steps between snapshots": ("--algorithm ZOSVRG --q 0", "--q must be at least 1"),
    "no patience": ("--early_stopping --patience 0", "--patience must be at least 1"),
    "two half precisions": ("--bf16 --fp16", "--bf16 and --fp16 exclude each other"),
    "missing data folder": ("--data_dir nowhere", "There is no data folder nowhere"),
    "missing model folder": ("--model_name ./nowhere", "There is no folder ./nowhere"),
    "task without text": ("--task copa", "No text is generated for the task copa"),
    "unknown smoothing": ("--algorithm HiZOO --hessian_smooth_type constant", "--hessian_smooth_type"),
    "unknown logging": ("--logging wandb", "--logging knows csv or tensorboard, not 'wandb'"),
    "resume of nothing": ("--resume nowhere", "nowhere is no run folder"),
    "resume with another rate": ("--resume nowhere --lr 1", "--lr cannot be given with it"),
    "half precision of a first-order method": ("--algorithm FOSGD --fp16 --device cpu", "needs a GPU"),
}


@pytest.mark.parametrize(("words", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_command_lines_end_with_2_and_a_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = main(["train", *words.split()])
    out, err = capsys.readouterr()
    assert code == 2
    assert sentence in err
    assert err.rstrip().splitlines()[-1].endswith((".", "?"))
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_commands_are_named(capsys):
    assert main([]) == 2
    assert "zotune COMMAND" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"zotune {zotune.__version__}\n"


def test_an_unknown_command_gives_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "There is no command 'trian'; did you mean train?\n"


def test_help_names_every_flag_in_its_section(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in FLAGS:
        assert f"  --{flag}" in text
    sections = re.split(r"\n(?=\S.*:\n)", text)
    lozo = next(section for section in sections if section.startswith("only with LOZO:"))
    assert re.findall(r"^  --(\w+)", lozo, re.M) == ["rank", "step_interval"]
    assert "multiple of 3" in text


def test_the_readme_command_is_read_as_it_stands():
    words = readme_words(
        epochs=2, model="embedded", task="sst2", algorithm="LOREN", lr=1e-3, num_queries=6, bsz=16, bsz_lim=8, trial=0
    )
    given = parse_flags("zotune train", "", words)
    config = config_from_text(given).resolved()
    config.validate()
    assert (config.batchsize_limit, config.full_parameter, config.patience, config.init_seed) == (8, True, 1000, 42)
    others = "--lr_mezosvrg_mb --q --anneal --eps --rank --step_interval --hessian_smooth_type"
    assert notices(config, given.keys()) == [
        f"no effect with LOREN: {others}",
        "no effect without --save_ckpt: --save_every",
    ]


def test_both_ways_of_writing_a_value_and_the_last_one_counts():
    assert parse_flags("x", "", ["--lr=2", "--task", "cb", "--lr", "-3"]) == {"lr": "-3", "task": "cb"}


def test_the_table_of_the_documentation_is_complete():
    from pathlib import Path

    text = (Path(__file__).resolve().parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    begin, end = (text.index(f"## `zotune {name}`") for name in ("evaluate", "replay"))
    asked = dict(re.findall(r"^\| `--(\w+)` \|(.*)\|$", text[begin:end], re.M))
    assert set(asked) == set(EVALUATE_FLAGS)
    assert all(EVALUATE_FLAGS[flag].default_text in row for flag, row in asked.items())
    page = (Path(__file__).resolve().parents[1] / "docs" / "compare.md").read_text(encoding="utf-8")
    parts = page.split("## Tune at a budget")
    for part, config in zip(parts, (CompareConfig, SweepConfig), strict=True):
        own = flags_of(config)
        written = dict(re.findall(r"^\| `--(\w+)` \|(.*)\|$", part, re.M))
        assert set(written) == set(own)
        assert all(own[flag].default_text in row for flag, row in written.items())
    text = text[:begin]  # the flags of the others have tests of their own
    rows = dict(re.findall(r"^\| `--(\w+)` \|(.*)\|$", text, re.M))
    assert set(rows) == set(FLAGS)
    for flag, row in rows.items():
        methods = row.split("|")[-1].strip()
        assert (methods == "all") == (flag not in METHOD_FLAGS), flag
        default = FLAGS[flag].default
        if default is not None and FLAGS[flag].kind != "switch":
            assert FLAGS[flag].default_text in row, flag
