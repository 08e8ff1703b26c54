"""Settings: defaults, checks with their sentences, notices, and the way to JSON and back."""

import json

import pytest
import tiny_models

from zotune.config import (
    ALGORITHMS,
    FLAGS,
    METHOD_FLAGS,
    ConfigError,
    TrainConfig,
    config_from_text,
    dump_settings,
    load_settings,
    methods_of,
    notices,
)
from zotune.config.compare import COMPARE_FLAGS, DERIVED
from zotune.config.errors import SYNONYMS
from zotune.config.resume import with_checksum
from zotune.run.seeds import derive_seed

SEED_FLAGS = """epochs model_name task algorithm lr weight_decay num_queries perturbation_scale lr_mezosvrg_mb q anneal
anchor eps low_bit_adam rank step_interval hessian_smooth_type lr_cov damping momentum_bits direction_rank samplesize
samplesize_validation batchsize batchsize_limit full_parameter max_seq_length device results save_ckpt save_every
eval_every logging init_seed trial
early_stopping patience bf16 fp16 clipping soft_prompt momentum noise data_dir resume trust_remote_code backend
on_out_of_memory objective max_new_tokens train_file validation_file template options shots tuning lora_rank lora_alpha
virtual_tokens merge budget_queries evaluations trainer_options samplesize_dev score lr_scheduler_type"""

WRONG = {
    "algorithm of another name": ({"algorithm": "LORENZ"}, "did you mean LOREN?"),
    "algorithm in small letters": ({"algorithm": "hizoo"}, "did you mean HiZOO?"),
    "unknown task": ({"task": "boolk"}, "no task 'boolk'. Did you mean 'boolq'?"),
    "task that is not generated": ({"task": "wsc"}, "No text is generated for the task wsc; give --data_dir"),
    "empty model name": ({"model_name": " "}, "--model_name must not be empty"),
    "missing model folder": ({"model_name": "./no/such"}, "There is no folder ./no/such"),
    "missing data folder": ({"data_dir": "no-such-folder"}, "There is no data folder no-such-folder"),
    "no epochs": ({"epochs": "0"}, "--epochs must be above 0"),
    "negative epochs": ({"epochs": "-1"}, "--epochs must be above 0"),
    "endless epochs": ({"epochs": "inf"}, "--epochs must be a finite number"),
    "empty batch": ({"batchsize": "0"}, "--batchsize must be at least 1"),
    "half an example": ({"batchsize": "0.5"}, "--batchsize takes a whole number, not '0.5'"),
    "empty micro-batch": ({"batchsize_limit": "0"}, "--batchsize_limit must be at least 1"),
    "no examples": ({"samplesize": "0"}, "--samplesize must be at least 1"),
    "no validation": ({"samplesize_validation": "0"}, "--samplesize_validation must be at least 1"),
    "no tokens": ({"max_seq_length": "1"}, "--max_seq_length must be at least 2"),
    "negative rate": ({"lr": "-1e-3"}, "--lr must not be negative"),
    "rate that is no number": ({"lr": "nan"}, "--lr must be a finite number"),
    "rate in words": ({"lr": "small"}, "--lr takes a number or auto, not 'small'"),
    "negative decay": ({"weight_decay": "-0.1"}, "--weight_decay must not be negative"),
    "one query of LOREN": ({"num_queries": "1"}, "--num_queries with LOREN must be at least 2"),
    "odd queries of ZO": ({"num_queries": "3", "algorithm": "ZO"}, "must be an even number"),
    "odd queries of ZOAdam": ({"num_queries": "1", "algorithm": "ZOAdam"}, "must be an even number"),
    "odd queries of LOZO": ({"num_queries": "5", "algorithm": "LOZO"}, "must be an even number"),
    "even queries of HiZOO": ({"num_queries": "4", "algorithm": "HiZOO"}, "must be an odd number from 3"),
    "five queries of ZOSVRG": ({"num_queries": "5", "algorithm": "ZOSVRG"}, "must be a multiple of 3"),
    "two queries of FZOO": ({"num_queries": "2", "algorithm": "FZOO"}, "at least 3"),
    "no perturbation": ({"perturbation_scale": "0"}, "--perturbation_scale must be above 0"),
    "no steps between snapshots": ({"q": "0", "algorithm": "ZOSVRG"}, "--q must be at least 1"),
    "annealing upwards": ({"anneal": "0.5"}, "--anneal divides the learning rates"),
    "negative minibatch rate": ({"lr_mezosvrg_mb": "-1"}, "--lr_mezosvrg_mb must not be negative"),
    "epsilon of zero": ({"eps": "0"}, "--eps must be above 0"),
    "four bits": ({"low_bit_adam": "4"}, "--low_bit_adam knows 0 or 8, not '4'"),
    "four bits of momentum": ({"momentum_bits": "4"}, "--momentum_bits knows 8, 16 or 32, not '4'"),
    "unknown anchor": ({"anchor": "coppy"}, "did you mean copy?"),
    "rank of zero": ({"rank": "0"}, "--rank must be at least 1"),
    "directions of rank zero": ({"direction_rank": "0"}, "--direction_rank must be at least 1"),
    "no step interval": ({"step_interval": "0"}, "--step_interval must be at least 1"),
    "unknown smoothing": ({"hessian_smooth_type": "constant1e-80"}, "did you mean constant1e-8"),
    "negative curvature rate": ({"lr_cov": "-1"}, "--lr_cov must not be negative"),
    "no damping": ({"damping": "0"}, "--damping must be above 0"),
    "momentum of one": ({"momentum": "1"}, "--momentum must be below 1"),
    "unknown noise": ({"noise": "gausian"}, "did you mean gaussian?"),
    "unknown backend": ({"backend": "nunba"}, "did you mean numba?"),
    "unknown logging": ({"logging": "cvs"}, "did you mean csv?"),
    "no patience": ({"patience": "0"}, "--patience must be at least 1"),
    "negative seed": ({"init_seed": "-1"}, "--init_seed must not be negative"),
    "negative trial": ({"trial": "-1"}, "--trial must not be negative"),
    "no evaluations": ({"eval_every": "0"}, "--eval_every must be above 0"),
    "no checkpoints": ({"save_every": "0"}, "--save_every must be above 0"),
    "unknown device": ({"device": "gpu"}, "--device must be cpu, the number of a GPU or cuda:NUMBER"),
    "two half precisions": ({"bf16": True, "fp16": True}, "--bf16 and --fp16 exclude each other"),
    "fewer rows than none": ({"samplesize_dev": "-1"}, "--samplesize_dev must not be negative"),
    "rows held back twice": (
        {"samplesize_dev": "4", "shots": "2"},
        "--shots holds its own examples back, so --samplesize_dev cannot be given with it",
    ),
    "results in no folder": ({"results": ""}, "--results must name a folder"),
}


@pytest.mark.parametrize(("given", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_settings_are_refused_in_one_sentence(given, sentence):
    with pytest.raises(ConfigError) as caught:
        config_from_text(given).validate()
    said = str(caught.value)
    assert sentence in said
    assert "\n" not in said
    assert said.endswith((".", "?"))


def test_results_inside_a_file_are_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        TrainConfig(results=tmp_path / "taken" / "runs").validate()


def test_the_flags_are_those_of_the_seed_and_ours():
    assert set(FLAGS) == set(SEED_FLAGS.split())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_defaults_of_every_algorithm_are_valid_and_complete(algorithm):
    resolved = TrainConfig(algorithm=algorithm).resolved()
    resolved.validate()
    assert None not in (resolved.lr, resolved.num_queries, resolved.momentum, resolved.lr_scheduler_type)
    assert (resolved.lr == "auto") == (resolved.lr_scheduler_type == "adaptive") == resolved.zeroth_order


def test_the_minibatch_rate_of_svrg_is_the_other_one_unless_it_is_given():
    assert TrainConfig(algorithm="ZOSVRG", lr=1e-3).resolved().lr_mezosvrg_mb == 1e-3
    assert TrainConfig(algorithm="ZOSVRG", lr=1e-3, lr_mezosvrg_mb=1e-6).resolved().lr_mezosvrg_mb == 1e-6
    assert TrainConfig(algorithm="ZOSVRG").resolved().lr_mezosvrg_mb is None  # measured with it


def test_queries_left_out_follow_the_method():
    queries = {name: TrainConfig(algorithm=name).resolved().num_queries for name in ALGORITHMS}
    assert queries == {
        "ZO": 2, "ZOAdam": 2, "ZOSVRG": 3, "LOZO": 2, "HiZOO": 3, "LOREN": 6, "FZOO": 8, "FOSGD": 0, "FOAdam": 0,
    }  # fmt: skip


def test_momentum_left_out_is_off_for_every_method():
    for algorithm in ALGORITHMS:
        assert TrainConfig(algorithm=algorithm).resolved().momentum == 0.0
    assert TrainConfig(algorithm="LOREN", momentum=0.5).resolved().momentum == 0.5


def test_eight_bit_adam_without_its_package_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"--low_bit_adam 8 needs the package bitsandbytes: pip install -e '\.\[low-bit\]'"
    ):
        TrainConfig(algorithm="ZOAdam", low_bit_adam=8).validate()
    TrainConfig(algorithm="LOREN", low_bit_adam=8).validate()


def test_a_rate_of_zero_is_a_rate():
    assert TrainConfig(lr=0.0).resolved().lr == 0.0
    TrainConfig(lr=0.0).validate()


def test_settings_survive_json(tmp_path):
    config = TrainConfig(data_dir=tmp_path, lr=1e-7, algorithm="LOZO", full_parameter=True).resolved()
    assert load_settings(json.loads(json.dumps(dump_settings(config)))) == config


def test_saved_settings_of_another_name_are_refused():
    with pytest.raises(ConfigError, match="learning_rate, which this version"):
        load_settings({"learning_rate": 1.0})


def test_flags_of_other_methods_are_named_in_one_line():
    given = {"rank": "2", "step_interval": "50", "lr_cov": "1e-3", "epochs": "1"}
    assert notices(config_from_text(given), given.keys()) == ["no effect with LOREN: --rank --step_interval"]


def test_flags_that_need_another_one_are_named():
    given = {"patience": "3", "save_every": "2"}
    assert notices(config_from_text(given), given.keys()) == [
        "no effect without --early_stopping: --patience",
        "no effect without --save_ckpt: --save_every",
    ]
    bits = {"momentum_bits": "8"}
    assert notices(config_from_text(bits), bits.keys()) == ["no effect without --momentum: --momentum_bits"]
    bits |= {"algorithm": "ZO"}
    assert notices(config_from_text(bits), bits.keys()) == ["no effect with ZO: --momentum_bits"]
    both = given | {"early_stopping": True, "save_ckpt": True}
    assert notices(config_from_text(both), both.keys()) == []


def test_every_method_flag_concerns_some_methods_and_not_all():
    for flag in METHOD_FLAGS:
        assert 0 < len(methods_of(flag)) < len(ALGORITHMS), flag
    assert methods_of("epochs") == list(ALGORITHMS)


def test_a_resumed_run_has_the_settings_it_began_with(tmp_path):
    began = TrainConfig(algorithm="HiZOO", lr=0.5, save_ckpt=True).resolved()
    (tmp_path / "config.json").write_text(json.dumps(with_checksum({**dump_settings(began), "versions": {}})))
    resumed = config_from_text({"resume": str(tmp_path), "device": "cpu"})
    assert (resumed.algorithm, resumed.lr, resumed.resume, resumed.device) == ("HiZOO", 0.5, tmp_path, "cpu")


DAMAGED = [
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"no_such_setting_at_all": 1}',
    b'{"algorithm": null}',
    b'{"algorithm": "ZO", "epochs": "6"}',
    b'{"algorithm": "ZO", "epochs": null}',
    b'{"algorithm": "ZO", "batchsize": true}',
    b'{"algorithm": "ZO", "batchsize": 1.5}',
    b'{"algorithm": "ZO", "clipping": 1}',
    b'{"algorithm": "ZO", "results": ["results"]}',
]


@pytest.mark.parametrize("content", [None, *DAMAGED], ids=lambda content: str(content)[:40])
def test_a_resume_without_readable_settings_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        config_from_text({"resume": str(tmp_path)})


def test_a_resume_cannot_change_the_results(tmp_path):
    with pytest.raises(ConfigError, match="--lr cannot be given with it"):
        config_from_text({"resume": str(tmp_path), "lr": "1"})


def test_seeds_are_a_pure_function_and_rows_do_not_know_the_trial():
    purposes = ("rows", "head", "order", "directions", "dropout")
    first = [derive_seed(42, 0, purpose) for purpose in purposes]
    assert first == [derive_seed(42, 0, purpose) for purpose in purposes]
    assert len(set(first)) == len(purposes)
    other = [derive_seed(42, 1, purpose) for purpose in purposes]
    assert [a == b for a, b in zip(first, other, strict=True)] == [True, False, False, False, False]
    assert derive_seed(43, 0, "rows") != first[0]


def test_the_name_of_a_tuning_is_no_path_when_a_run_goes_on_elsewhere(tmp_path, monkeypatch):
    """Whatever folders there are where it began."""
    began = TrainConfig(tuning="lora", algorithm="ZO").resolved()
    (tmp_path / "begin/lora").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    saved = {**dump_settings(began), "working_directory": str(tmp_path / "begin")}
    (tmp_path / "config.json").write_text(json.dumps(with_checksum(saved)))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert config_from_text({"resume": str(tmp_path)}).tuning == "lora"


def test_every_synonym_means_something_that_can_be_chosen_and_is_no_name_itself() -> None:
    names = {*COMPARE_FLAGS, *FLAGS, *ALGORITHMS, *DERIVED}
    assert {meant for several in SYNONYMS.values() for meant in several} <= names
    assert not SYNONYMS.keys() & {name.lower() for name in names}


@pytest.mark.parametrize(
    ("algorithm", "trained", "width", "rate"),
    [
        ("FOAdam", "full", 1024, 1e-5),
        ("FOAdam", "full", 4096, 1e-5),
        ("FOAdam", "full", None, 1e-5),  # a model whose configuration names no width
        ("FOAdam", "full", 512, 4e-5),
        ("FOAdam", "full", 64, 3e-4),
        ("FOAdam", "lora", 64, 3e-3),
        ("FOAdam", "prefix", 64, 1e-2),
        ("FOSGD", "full", 64, 3e-2),
    ],
)
def test_first_order_rates_are_higher_for_narrow_models(algorithm, trained, width, rate):
    assert ALGORITHMS[algorithm].first_order_rate("some/model", trained, width) == pytest.approx(rate)


def test_the_width_is_that_of_the_configuration(tmp_path):
    tiny_models.save(tmp_path / "tiny", "llama")
    width = json.loads((tmp_path / "tiny/config.json").read_text())["hidden_size"]
    config = TrainConfig(model_name=str(tmp_path / "tiny"), algorithm="FOAdam", full_parameter=True)
    assert config.resolved().lr == pytest.approx(1e-5 * min(30.0, (1024 / width) ** 2))
    assert TrainConfig(algorithm="FOAdam", model_name="embedded").resolved().lr == 1e-3
    assert TrainConfig(algorithm="FOAdam", model_name=str(tmp_path / "none")).resolved().lr == 1e-5
