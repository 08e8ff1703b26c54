"""Adapters of peft and the head alone: what is trained, what it begins with, what is kept, resumed and replayed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from command_runs import begun_and_resumed, losses_of, rows_of, shelf, train, workshop
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import zotune
from zotune.cli import main
from zotune.evaluators.stacked import Stacked
from zotune.hf.adapters import Adapter, add_adapter, merged, read_settings
from zotune.hf.answering import ended, written_answers
from zotune.hf.models import _quantised, load_classifier, load_language_model, load_tokenizer
from zotune.hf.options import OptionCollator, add_option_scores
from zotune.tasks import get_task
from zotune.tasks.asking import Asked

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
DECODERS = ("gpt2", "opt", "llama")
FORMS = {"classes": ["--objective", "classes"], "options": ["--objective", "options"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    found = {}
    for family in tiny_models.FAMILIES:
        tiny_models.save(place / family, family)
        found[family] = place / family
    return found


def adapted(folder: Path, kind: str, *, head: bool = False, seed: int = 3, **options: Any) -> Any:
    tokenizer = load_tokenizer(str(folder))
    if head:
        model = load_classifier(str(folder), get_task("sst2"), tokenizer=tokenizer, seed=1)
    else:
        model = load_language_model(str(folder), tokenizer=tokenizer)
    return add_adapter(model, Adapter(kind=kind, **options), tokenizer=tokenizer, seed=seed, name="m")


def ids_of(rows: int = 2, length: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(5, tiny_models.VOCABULARY, (rows, length), generator=generator)


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# ------------------------------------------------------------------------------------------------ beginnings


@pytest.mark.parametrize("family", DECODERS)
def test_a_prefix_begins_as_tokens_that_were_read(family: str, folders: dict[str, Path]) -> None:
    """The model with its prefix goes on after the drawn tokens as it does when it reads them."""
    model = adapted(folders[family], "prefix", tokens=5)
    drawn = torch.randint(tiny_models.VOCABULARY, (1, 5), generator=torch.Generator().manual_seed(3))
    ids = ids_of()
    plain = load_language_model(str(folders[family]), tokenizer=load_tokenizer(str(folders[family])))
    with torch.no_grad():
        whole = plain(input_ids=torch.cat((drawn.expand(2, -1), ids), 1)).logits[:, 5:]
        mine = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        bare = plain(input_ids=ids).logits
    torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-6)
    assert (mine - bare).abs().max() > 1e-4


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_lora_begins_as_the_model_itself(family: str, head: bool, folders: dict[str, Path]) -> None:
    if not head and family not in DECODERS:
        pytest.skip("Encoders are no causal language models.")
    model = adapted(folders[family], "lora", head=head, rank=4)
    ids = ids_of()
    with torch.no_grad(), model.disable_adapter():
        plain = model(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain)
    names = trained(model)
    assert all(("lora_" in name) or ("modules_to_save" in name) for name in names)
    assert any("modules_to_save" in name for name in names) == head
    assert all(p.shape[0 if "lora_A" in name else 1] == 4 for name, p in names.items() if "lora_" in name)


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state(kind: str, folders: dict[str, Path]) -> None:
    state = torch.random.get_rng_state()
    one = trained(adapted(folders["llama"], kind))
    torch.rand(7)
    two = trained(adapted(folders["llama"], kind))
    torch.random.set_rng_state(state)
    other = trained(adapted(folders["llama"], kind, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["distilbert", "opt", "roberta"])
def test_the_head_alone(family: str, folders: dict[str, Path]) -> None:
    names = trained(adapted(folders[family], "head", head=True))
    assert names
    assert all(name.startswith(("score", "classifier", "pre_classifier")) for name in names)


# ------------------------------------------------------------------------------------------------ queries


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", DECODERS)
def test_steps_change_the_adapter_alone_and_go_downhill(family: str, kind: str, folders: dict[str, Path]) -> None:
    model = adapted(folders[family], kind)
    ids = ids_of()

    def loss() -> torch.Tensor:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[..., 3].double().sum()

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = zotune.MeZO(model.named_parameters(), lr=1e-2, eps=1e-2, seed=9)
    with torch.no_grad():
        optimizer.estimate(loss)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with torch.no_grad():
        optimizer.step()
    moved = {name: p - before[name] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved.keys() == trained(model).keys()
    with torch.no_grad():  # the update is -lr * slope * z, so its direction goes downhill
        scale = max(float(change.abs().max()) for change in moved.values())
        directions = {name: change / scale for name, change in moved.items()}
        losses = []
        for sign in (1e-2, -1e-2):
            for name, p in model.named_parameters():
                p.copy_(before[name] + sign * directions[name] if name in moved else before[name])
            losses.append(float(loss()))
    assert losses[0] < losses[1]  # downhill


@pytest.mark.parametrize("kind", ["lora", "prefix"])
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_shared_forwards_give_the_losses_of_separate_ones(family: str, kind: str, folders: dict[str, Path]) -> None:
    ends, reasons = [], []
    for apart in (False, True):
        model = adapted(folders[family], kind)
        ids = ids_of()
        optimizer = zotune.LOZO(model.named_parameters(), lr=1e-2, eps=1e-2, seed=9, period=2)
        optimizer.evaluator = Stacked(limit=1) if apart else Stacked(tokens=1 << 20)

        def loss(model: Any = model, ids: torch.Tensor = ids) -> torch.Tensor:
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.double().square().mean()

        with torch.no_grad():
            ends.append([optimizer.step(loss) for _ in range(4)])
        reasons.append(optimizer.evaluator.reason)
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


def test_scores_of_options_behind_a_learned_prompt(folders: dict[str, Path]) -> None:
    """The same scores as from a model that reads the prompt's vectors in front of each option's tokens."""
    model = adapted(folders["llama"], "prompt", tokens=4)
    rows = [
        {"prompt": [7, 8, 9], "options": [[10, 11], [12]], "labels": 0},
        {"prompt": [20], "options": [[21], [22, 23, 24]], "labels": 1},
    ]
    batch = OptionCollator(0, 2)(rows)
    wanted = torch.empty(2, 2)
    base = model.get_base_model()
    prompt = next(iter(model.prompt_encoder.values())).embedding.weight
    with torch.no_grad():
        for i, row in enumerate(rows):
            for j, option in enumerate(row["options"]):
                whole = torch.tensor([[*row["prompt"], *option]])
                vectors = torch.cat((prompt[None], base.get_input_embeddings()(whole)), 1)
                said = base(inputs_embeds=vectors).logits[0].log_softmax(-1)
                first = 4 + len(row["prompt"]) - 1
                wanted[i, j] = sum(said[first + k, token] for k, token in enumerate(option))
        scored = add_option_scores(model, per_token=False)(**batch).logits
    torch.testing.assert_close(scored, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", DECODERS)
def test_written_answers_are_the_most_likely_tokens(family: str, kind: str, folders: dict[str, Path]) -> None:
    """Token by token from whole forward passes of one row, whatever is written beside it."""
    model, tokenizer = adapted(folders[family], kind), load_tokenizer(str(folders[family]))
    with torch.no_grad():
        for number, p in enumerate(trained(model).values()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    virtual = model.virtual_tokens
    asked = [Asked([7, 30, 31, 32, 40], []), Asked([50, 9], []), Asked([60, 8], []), Asked([11], [])]
    wanted = []
    with torch.no_grad():
        for one in asked:
            ids = list(one.prompt)
            for _ in range(5):
                given = torch.tensor([ids])
                logits = model(input_ids=given, attention_mask=torch.ones_like(given)).logits
                assert logits.shape[1] == len(ids) + virtual
                ids.append(int(logits[0, -1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
            wanted.append(ended(tokenizer.decode(ids[len(one.prompt) :], skip_special_tokens=True), ()))
    add_option_scores(model, per_token=True)
    written = written_answers(model, tokenizer, asked, max_new_tokens=5, stop=(), batchsize=3)
    assert written == wanted


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_a_run_is_kept_resumed_and_replayed(
    kind: str,
    form: str,
    workshop: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    words = ["--tuning", kind, *FORMS[form], "--algorithm", "LOZO", "--save_ckpt", "--momentum", "0.9"]
    run, _ = train(capsys, *words)
    assert run is not None
    kept = load_file(run / "last/adapter_model.safetensors")
    settings = json.loads((run / "last/adapter_config.json").read_text())
    assert settings["peft_type"] == {"lora": "LORA", "prefix": "PREFIX_TUNING"}[kind]
    assert not (run / "last/model.safetensors").exists()
    assert len(set(losses_of(run))) > 1

    half = begun_and_resumed(capsys, monkeypatch, *words)
    again = load_file(half / "last/adapter_model.safetensors")
    assert rows_of(half) == rows_of(run)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)

    assert main(["replay", "../model", str(run), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "the weights have the digest" in capsys.readouterr().err
    rebuilt = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(torch.equal(kept[name], rebuilt[name]) for name in kept)

    auto: Any = AutoModelForSequenceClassification if form == "classes" else AutoModelForCausalLM
    loaded = peft.PeftModel.from_pretrained(auto.from_pretrained("../model"), run / "last")
    values = dict(loaded.named_parameters())
    assert any(torch.equal(kept[name], p) for name in kept for p in values.values() if p.shape == kept[name].shape)
    if form == "options":
        words = ["evaluate", "../model", "--task", "sst2", "--data_dir", "../data", "--samplesize_validation", "8"]
        assert main([*words, "--max_seq_length", "24", "--device", "cpu", "--adapter", str(run / "last")]) == 0
        last = rows_of(run, "eval")[-1]
        out = capsys.readouterr().out
        assert f"{float(last['accuracy']):.4f}" in out
        assert f"{float(last['loss']):.4f}" in out


def test_a_merged_model_answers_as_the_adapted_one(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = train(capsys, "--tuning", "lora", "--lora_rank", "2", "--save_ckpt", "--merge", "--lr", "0.1")
    assert run is not None
    whole = AutoModelForSequenceClassification.from_pretrained(run / "merged").eval()
    base = AutoModelForSequenceClassification.from_pretrained("../model")
    adapter = peft.PeftModel.from_pretrained(base, run / "last").eval()
    ids = ids_of()
    mask = torch.ones_like(ids)
    with torch.no_grad():
        mine, theirs = (m(input_ids=ids, attention_mask=mask).logits for m in (whole, adapter))
        with adapter.disable_adapter():
            plain = adapter(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mine, plain, atol=1e-4)
    with pytest.raises(ValueError, match="Only adapters that change weights"):
        merged(base)


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
def test_training_on_what_is_written(kind: str, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"context": "the good", "question": "was", "answers": {"text": ["good"]}}] * 12
    Path("own").mkdir()
    for split in ("train", "validation"):
        Path(f"own/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--task", "squad", "--data_dir", "own", "--objective", "f1", "--max_new_tokens", "3", "--samplesize", "8"]
    run, _ = train(capsys, *words, "--tuning", kind, "--max_seq_length", "48", "--algorithm", "ZO")
    assert run is not None
    assert rows_of(run, "eval")[-1]["f1"]


def test_a_first_order_method_trains_an_adapter_too(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = train(capsys, "--tuning", "lora", "--algorithm", "FOAdam", "--save_ckpt", "--epochs", "4", "--lr", "1e-2")
    assert run is not None
    losses = losses_of(run)
    assert losses[-1] < losses[0]
    assert "lora_A" in "".join(load_file(run / "last/adapter_model.safetensors"))


# ------------------------------------------------------------------------------------------------ files, and sentences


def test_a_configuration_file_of_peft(workshop: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"], use_dora=True).save_pretrained("dora")
    run, _ = train(capsys, "--tuning", "dora", "--algorithm", "ZO", "--save_ckpt")
    assert run is not None
    names = load_file(run / "last/adapter_model.safetensors")
    assert any("up_proj" in name for name in names)
    assert any("magnitude" in name for name in names)
    (Path("dora") / "adapter_config.json").unlink()  # the run knows it by itself
    assert main(["replay", "../model", str(run), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0


@pytest.mark.usefixtures("workshop")
def test_a_masked_model_in_words_is_told_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_models.save(Path("masked"), "roberta")
    words = ["--model_name", "masked", "--soft_prompt", "--algorithm", "ZO", "--epochs", "1"]
    _, said = train(capsys, *words, "--tuning", "prompt", code=2)
    assert "label words are read without it at a mask; use --tuning prefix, lora or full." in said
    for possible in ("prefix", "lora", "full"):
        train(capsys, *words, "--tuning", possible)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tuning", "lorra"], "did you mean lora?"),
        (["--tuning", "lora", "--full_parameter"], "--full_parameter trains everything"),
        (["--tuning", "lora", "--lora_rank", "0"], "--lora_rank must be at least 1, not 0."),
        (["--tuning", "prefix", "--virtual_tokens", "10000000"], "--virtual_tokens must be at most"),
        (["--tuning", "lora", "--merge"], "--merge belongs to an adapter that is kept"),
        (["--tuning", "prefix", "--merge", "--save_ckpt"], "cannot be merged; leave --merge out."),
        (["--tuning", "nothing.json"], "--tuning knows full, partial, head, lora, prefix or prompt, or a"),
        (["--tuning", "../data"], "cannot be read (No such file or directory)"),
        (["--tuning", "../data/train.csv"], "is not JSON; give a configuration file of peft."),
        (["--tuning", "code.json"], "asks for trust_remote_code; take that out of it."),
        (["--tuning", "odd.json"], "cannot be trained with the tuning adapter of the file"),
        (["--tuning", "prompt"], "would read padding behind a prompt; use prefix, or --objective options."),
        (["--tuning", "prompt", "--soft_prompt"], "use prefix, or --objective options for --soft_prompt."),
        (["--tuning", "prefix", "--virtual_tokens", "200"], "leave no room for a text"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings(words: list[str], said: str, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("code.json").write_text('{"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": true}}')
    Path("odd.json").write_text('{"peft_type": "LORA", "target_modules": ["nothing"]}')
    _, err = train(capsys, *words, code=2)
    assert said in err
    assert err.strip().count("\n") == 0


def test_a_checkpoint_of_an_adapter_is_no_base(
    workshop: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, _ = train(capsys, "--tuning", "lora", "--algorithm", "ZO", "--save_ckpt")
    assert run is not None
    words = ["replay", str(run / "checkpoint-3"), str(run / "trajectory.zo"), "--out", str(tmp_path / "x")]
    assert main(words) == 2
    assert "is an adapter; give the model that it was trained on" in capsys.readouterr().err


def test_settings_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 5}')
    assert read_settings(tmp_path)["r"] == 5
    assert read_settings(tmp_path / "adapter_config.json")["r"] == 5


def test_quantised_bases_are_refused_without_a_gpu(
    workshop: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(folders["llama"], tmp_path / "quantised")
    path = tmp_path / "quantised/config.json"
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantised}))
    for words in (["--tuning", "lora"], [], ["--tuning", "full", "--objective", "options"]):
        _, said = train(capsys, *words, "--model_name", str(tmp_path / "quantised"), code=2)
        assert "the weights are quantised, which needs a GPU" in said
    with pytest.raises(
        ValueError, match="quantised weights would be trained, which they cannot be; give --tuning lora"
    ):
        _quantised(AutoConfig.from_pretrained(path.parent), "m", "cuda", full_parameter=True, adapted=False)
    kept = _quantised(AutoConfig.from_pretrained(path.parent), "m", "cuda", full_parameter=True, adapted=True)
    assert kept == {"device_map": {"": "cuda"}}


# ------------------------------------------------------------------------------------------------ what does not fit

KINDS_OF_FILES = {
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "PREFIX_TUNING": {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 8},
    "IA3": {"target_modules": ["k_proj", "v_proj"], "feedforward_modules": []},
    "LOHA": {"target_modules": ["q_proj"], "r": 2},
}


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
def test_options_are_scored_where_they_stand_with_any_kind_of_adapter(kind: str, folders: dict[str, Path]) -> None:
    """Whatever an adapter puts in front of the text: the scores are those of the plain log-softmax."""
    settings = {"peft_type": kind, **KINDS_OF_FILES[kind]}
    model = adapted(folders["llama"], "file", settings=settings)
    with torch.no_grad():
        for number, p in enumerate(trained(model).values()):
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
        whole = torch.tensor([[7, 8, 9, 10, 11]])
        said = model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, -5:].log_softmax(-1)
        wanted = float(said[2, 10] + said[3, 11])
    add_option_scores(model, per_token=False)
    batch = OptionCollator(0, 1)([{"prompt": [7, 8, 9], "options": [[10, 11]], "labels": 0}])
    with torch.no_grad():
        assert float(model(**batch).logits[0, 0]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "FOO"}, "'FOO' is missing, or peft does not know it."),
        ({"peft_type": "POLY", "target_modules": ["q_proj"], "r": 4}, "cannot be trained with the tuning adapter of"),
        (
            {"peft_type": "LORA", "target_modules": ["q_proj"], "lora_alfa": 3},
            "which peft does not know; did you mean lora_alpha",
        ),
        ({"peft_type": "LORA", "target_modules": ["q_proj"], "r": "8"}, "peft says"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": -3}, "cannot be trained with the tuning adapter of"),
    ],
    ids=str,
)
def test_files_that_no_run_can_use(
    settings: dict[str, Any], said: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.json").write_text(json.dumps(settings))
    _, err = train(capsys, "--tuning", "own.json", "--objective", "options", code=2)
    assert said in err
    assert not Path("results").exists()


@pytest.mark.parametrize("what", ["another model", "a tensor less", "NaN", "no weights"])
def test_adapters_that_do_not_fit_are_not_asked(
    what: str, folders: dict[str, Path], workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = train(capsys, "--tuning", "lora", "--objective", "options", "--save_ckpt", "--algorithm", "ZO")
    assert run is not None
    path, base = run / "last/adapter_model.safetensors", "../model"
    tensors = load_file(path)
    if what == "another model":
        base = str(folders["opt"])
    elif what == "a tensor less":
        tensors.pop(min(tensors))
    elif what == "NaN":
        tensors[min(tensors)][0, 0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    if what == "no weights":
        path.unlink()
    words = ["evaluate", base, "--task", "sst2", "--data_dir", "../data", "--samplesize_validation", "4"]
    assert main([*words, "--adapter", str(run / "last"), "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert any(word in err for word in ("does not fit this model", "cannot be read", "NaN or infinite"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise KeyError('labels2')", "The objective own.py:f raised KeyError ('labels2')"),
        ("raise SystemExit(7)", "The objective own.py:f raised SystemExit (7)"),
        ("pass", "The objective own.py:f returned NoneType; let it return a number or a one-element tensor"),
        ("return '3'", "returned str; let it"),
        ("return True", "returned bool; let it"),
        ("import torch; return torch.ones(2)", "returned a tensor of shape (2,); let it"),
    ],
)
def test_objectives_that_fail_are_named(
    code: str, said: str, workshop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(f"def f(model, batch):\n    {code}\n")
    _, err = train(capsys, "--algorithm", "ZO", "--objective", "own.py:f", code=1)
    assert said in err


def test_flags_without_effect_are_named(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = train(capsys, "--algorithm", "ZO", "--shots", "2", "--batchsize", "4", "--lora_rank", "4")
    assert "no effect with --shots: --samplesize" in said
    assert "no effect without --tuning lora: --lora_rank" in said
    _, said = train(capsys, "--algorithm", "ZO", "--tuning", "lora", "--lora_rank", "4", "--virtual_tokens", "4")
    assert "--lora_rank" not in said
    assert "no effect without --tuning prefix or prompt: --virtual_tokens" in said
