"""Loading through the Auto classes: families, keyed heads, partial selection, dtypes, prompts, and errors."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import tiny_models
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from zotune.hf.heads import initialise
from zotune.hf.models import load_classifier, load_tokenizer, position_limit, prompt_style, select_trainable
from zotune.hf.partial import anatomy
from zotune.hf.prompted import label_word_ids
from zotune.tasks import Task, get_task
from zotune.tasks.sources import load_rows
from zotune.tasks.tokens import tokenise

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"
DATA = MODELS.parent / "data"
SST2, CB, MNLI = get_task("sst2"), get_task("cb"), get_task("mnli")
# Single tokens of the tiny vocabulary.
WORDS = {"sst2": ("terrible", "great"), "cb": ("Yes", "No", "Maybe"), "mnli": ("Yes", "Maybe", "No")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a tiny language model by family; decoders come without a padding token, as published."""
    root = tmp_path_factory.mktemp("models")

    def make(family: str) -> str:
        path = root / family
        if not path.exists():
            tiny_models.save(path, family, pad=family in tiny_models.ENCODERS)
        return str(path)

    return make


def load(name: str, task: Task = SST2, **options: object) -> PreTrainedModel:
    return load_classifier(name, task, tokenizer=load_tokenizer(name), **options)  # type: ignore[arg-type]


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("task", [SST2, CB], ids=lambda task: task.name)
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_six_families_classify(folder: Callable[[str], str], family: str, task: Task) -> None:
    model = load(folder(family), task)
    batch = tiny_models.batch(num_labels=task.num_labels)
    with torch.no_grad():
        output = model(**batch)
    assert output.logits.shape == (4, task.num_labels)
    assert torch.isfinite(output.loss)
    assert not model.training
    assert list(model.config.id2label.values()) == list(task.labels)
    assert prompt_style(model) is None
    # The pretrained body is what the folder holds.
    saved = tiny_models.build(family, head="lm").state_dict()
    shared = saved.keys() & model.state_dict().keys()
    assert len(shared) > 20
    assert all(torch.equal(saved[name], model.state_dict()[name]) for name in shared)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_padding_does_not_change_the_logits(folder: Callable[[str], str], family: str) -> None:
    name = folder(family)
    tokenizer = load_tokenizer(name)
    model = load_classifier(name, SST2, tokenizer=tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.padding_side == "right"
    encoded = [tokenizer(text)["input_ids"] for text in ("a great film", "bad, and it was terrible in the end")]
    together = tokenizer.pad({"input_ids": encoded}, return_tensors="pt")
    with torch.no_grad():
        both = model(**together).logits
        for row, ids in enumerate(encoded):
            alone = model(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
            ).logits
            torch.testing.assert_close(both[row], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_new_heads_are_keyed(folder: Callable[[str], str], family: str) -> None:
    name = folder(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = bits(load(name, seed=3))
        torch.manual_seed(2)
        again, other = bits(load(name, seed=3)), bits(load(name, seed=4))
    assert same(first, again)
    changed = {key for key in first if not torch.equal(first[key], other[key])}
    body = tiny_models.build(family, head="lm").base_model_prefix
    assert changed
    assert all(key.endswith("weight") for key in changed), "biases of a new head are zero whatever the seed"
    assert not any(key.startswith(f"{body}.") and "pooler" not in key for key in changed)
    for key in changed:
        assert 0.01 < float(first[key].std()) < 0.03, "N(0, initializer_range = 0.02)"


def test_initialise_gives_vectors_their_neutral_values_and_padding_zero() -> None:
    model = tiny_models.build("bert", 3)
    names = {name for name, _ in model.named_parameters()}
    initialise(model, names | {"no.such.parameter"}, seed=0)
    embeddings = model.bert.embeddings
    assert torch.equal(embeddings.LayerNorm.weight, torch.ones(16))
    assert torch.equal(embeddings.LayerNorm.bias, torch.zeros(16))
    assert torch.equal(embeddings.word_embeddings.weight[tiny_models.PAD], torch.zeros(16))
    words = embeddings.word_embeddings.weight[1:].detach()
    assert float(words.mean()) == pytest.approx(0.0, abs=4 * 0.02 / words.numel() ** 0.5)
    assert float(words.std()) == pytest.approx(0.02, rel=0.1)
    one = tiny_models.build("bert", 3, seed=5)
    initialise(one, {"classifier.weight"}, seed=0)
    assert torch.equal(one.classifier.weight, model.classifier.weight), "a stream does not depend on what else is new"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_half_precision(folder: Callable[[str], str], family: str, dtype: torch.dtype) -> None:
    model, exact = load(folder(family), dtype=dtype, seed=3), load(folder(family), seed=3)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    wide = dict(exact.named_parameters())
    assert all(torch.equal(parameter, wide[name].to(dtype)) for name, parameter in model.named_parameters())
    batch = tiny_models.batch()
    with torch.no_grad():
        difference = (model(**batch).logits.float() - exact(**batch).logits).abs().max()
    assert float(difference) < 0.05


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_partial_fine_tuning_trains_the_end_of_the_model(folder: Callable[[str], str], family: str) -> None:
    model = load(folder(family), full_parameter=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = anatomy(model)
    assert len(parts.blocks) == 3
    assert parts.blocks[2] <= trained
    assert not trained & (parts.blocks[0] | parts.blocks[1] | parts.embeddings)
    assert any("embed" in name or "wte" in name for name in parts.embeddings)
    heads = {name for name in trained if any(part in name for part in ("score", "classifier", "pooler"))}
    assert heads, "the classification head is trained"
    rest = trained - parts.blocks[2] - heads
    assert all("norm" in name or "ln_f" in name for name in rest)
    assert bool(rest) == (family in tiny_models.DECODERS), "decoders have a final norm behind their blocks"
    assert all(parameter.requires_grad for parameter in load(folder(family)).parameters())


def test_the_last_sixth_of_the_blocks_is_kept() -> None:
    for blocks, kept in ((1, 1), (4, 1), (12, 2), (14, 2), (24, 4)):
        model = tiny_models.build("gpt2", n_layer=blocks)
        names = select_trainable(model, full_parameter=False)
        numbers = {int(name.split(".")[2]) for name in names if name.startswith("transformer.h.")}
        assert numbers == set(range(blocks - kept, blocks))


def test_a_head_tied_to_the_embedding_is_frozen_with_it() -> None:
    tied = tiny_models.build("llama", head="lm", tie_word_embeddings=True)
    select_trainable(tied, full_parameter=False)
    assert not tied.lm_head.weight.requires_grad
    untied = tiny_models.build("llama", head="lm", tie_word_embeddings=False)
    select_trainable(untied, full_parameter=False)
    assert untied.lm_head.weight.requires_grad


def test_a_model_without_blocks_cannot_be_trained_in_part() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    assert select_trainable(model, full_parameter=True) == ["0.weight", "1.weight", "1.bias"]
    with pytest.raises(ValueError, match="give --full_parameter"):
        select_trainable(model, full_parameter=False)


# The prompted form


@pytest.mark.parametrize("task", [SST2, CB, MNLI], ids=lambda task: task.name)
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_prompted_form_gives_the_language_models_own_logits(
    folder: Callable[[str], str], family: str, task: Task
) -> None:
    name = folder(family)
    tokenizer = load_tokenizer(name)
    model = load_classifier(name, task, tokenizer=tokenizer, prompted=True)
    style = prompt_style(model)
    assert style == ("mask" if family in tiny_models.ENCODERS else "last")
    rows = load_rows(task, "train", source="embedded", limit=5, seed=0)
    encoded = tokenise(rows, task, tokenizer, 60, prompt=style)
    columns = {column: encoded[column][:] for column in ("input_ids", "attention_mask")}
    batch = tokenizer.pad(columns, return_tensors="pt")
    labels = torch.tensor(encoded["labels"][:])
    with torch.no_grad():
        output = model(**batch, labels=labels)
        plain = tiny_models.build(family, head="lm")(**batch).logits
    ids = tokenizer.convert_tokens_to_ids(list(WORDS[task.name]))
    expected = []
    for row, tokens in enumerate(columns["input_ids"]):
        place = tokens.index(tokenizer.mask_token_id) if style == "mask" else len(tokens) - 1
        expected.append(plain[row, place, ids])
    torch.testing.assert_close(output.logits, torch.stack(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    assert same(bits(model), bits(tiny_models.build(family, head="lm"))), "the prompted form has no new weight"


def test_a_prompted_model_is_saved_as_the_language_model(folder: Callable[[str], str], tmp_path: Path) -> None:
    model = load(folder("gpt2"), prompted=True)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert same(bits(AutoModelForCausalLM.from_pretrained(tmp_path)), bits(model))
    twin = copy.deepcopy(model)
    batch = tiny_models.batch()
    assert torch.equal(twin(**batch).logits, model(**batch).logits)


def test_a_mask_token_in_a_users_text_is_not_the_place_of_the_answer(folder: Callable[[str], str]) -> None:
    model = load(folder("bert"), prompted=True)
    mask = tiny_models.MASK
    ids = torch.tensor([[1, mask, 20, mask, 30, 2]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        plain = tiny_models.build("bert", head="lm")(input_ids=ids).logits
    torch.testing.assert_close(logits, plain[:, 3, model.label_word_ids])
    with pytest.raises(ValueError, match="tokenise the rows with prompt='mask'"):
        model(input_ids=ids[:, 4:])


def test_label_words_of_several_tokens_warn_and_equal_ones_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_models.tokenizer("bert")
    with caplog.at_level(logging.WARNING, "zotune"):
        ids = label_word_ids(get_task("cola"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == ["w", "c"]
    assert caplog.messages == [
        "The label word 'wrong' is 5 tokens; its first one, 'w', stands for it.",
        "The label word 'correct' is 7 tokens; its first one, 'c', stands for it.",
    ]
    clash = Task(
        name="clash",
        hub=("a/b", "c"),
        columns=("sentence",),
        labels=("x", "y"),
        template="{sentence} It was {label}.",
        words=("wrong", "weak"),
    )
    with pytest.raises(ValueError, match="'wrong' and 'weak' of task clash begin with the same token"):
        label_word_ids(clash, tokenizer)


def test_a_classification_checkpoint_has_no_language_model_head(tmp_path: Path) -> None:
    tiny_models.save(tmp_path, "gpt2", head="classifier")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ValueError, match=r"no pretrained language-model head \(lm_head.weight is missing\)"):
        load(str(tmp_path), prompted=True)


# Checkpoints and errors


def test_a_saved_classifier_opens_with_its_head(folder: Callable[[str], str], tmp_path: Path) -> None:
    first = load(folder("opt"), seed=1)
    first.save_pretrained(tmp_path)
    load_tokenizer(folder("opt")).save_pretrained(tmp_path)
    assert same(bits(load(str(tmp_path), seed=2)), bits(first))
    other_task = load(str(tmp_path), CB, seed=2)
    assert other_task.score.weight.shape == (3, 16)
    assert torch.equal(other_task.score.weight, load(folder("opt"), CB, seed=2).score.weight)


def test_an_incomplete_body_is_refused(folder: Callable[[str], str], tmp_path: Path) -> None:
    tiny_models.save(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors of Llama.*\(model.layers.1.mlp.up_proj.weight is one\)"):
        load(str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused(folder: Callable[[str], str]) -> None:
    tokenizer = load_tokenizer(folder("gpt2"))
    tokenizer.add_tokens([f"word{number}" for number in range(50)])
    with pytest.raises(ValueError, match="use the tokenizer that belongs to the model"):
        load_classifier(folder("gpt2"), SST2, tokenizer=tokenizer)


def test_positions_are_those_the_model_can_use(folder: Callable[[str], str]) -> None:
    for family in tiny_models.FAMILIES:
        tokenizer = load_tokenizer(folder(family))
        model = load_classifier(folder(family), SST2, tokenizer=tokenizer)
        longest = position_limit(model)
        assert tokenizer.model_max_length == longest == 64
        ids = torch.full((1, longest), 20)
        assert torch.isfinite(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits).all()


def broken(tmp_path: Path, what: str) -> str:
    path = tiny_models.save(tmp_path / what.replace(" ", "_"), "gpt2")
    if what == "no config":
        (path / "config.json").unlink()
    elif what == "config not JSON":
        (path / "config.json").write_text("{")
    elif what == "unknown architecture":
        (path / "config.json").write_text('{"model_type": "gtp2"}')
    elif what == "no weights":
        (path / "model.safetensors").unlink()
    elif what == "weights cut short":
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif what == "no tokenizer":
        for file in path.glob("tokenizer*"):
            file.unlink()
    elif what == "config null":
        (path / "config.json").write_text("null")
    elif what == "size in words":
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "n_embd": "x"}))
    elif what == "junk weights":
        (path / "model.safetensors").unlink()
        (path / "pytorch_model.bin").write_bytes(b"junk" * 100)
    elif what == "tokenizer settings a list":
        (path / "tokenizer_config.json").write_text("[]")
    elif what == "tokenizer length in words":
        config = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": "x"}))
    elif what == "no classification class":
        AutoConfig.for_model("vit").save_pretrained(path)
    return str(path)


SENTENCES = {
    "no config": "is not a model folder: it has no config.json",
    "config not JSON": "not .*JSON",
    "unknown architecture": "gtp2|model type",
    "no weights": "safetensors",
    "weights cut short": "weights of .* are damaged or cut short",
    "no tokenizer": "holds no tokenizer; put the tokenizer.json",
    "config null": "Cannot load a model from",
    "size in words": "Cannot load a model from",
    "junk weights": "Cannot load a model from",
    "tokenizer settings a list": "Cannot load a tokenizer from",
    "tokenizer length in words": "has the model_max_length 'x'; make it a whole number",
    "no classification class": "ViTConfig",
}


@pytest.mark.parametrize("what", SENTENCES)
def test_a_broken_folder_gets_one_sentence(folder: Callable[[str], str], tmp_path: Path, what: str) -> None:
    name = broken(tmp_path, what)
    tokenizer = load_tokenizer(folder("gpt2"))
    with pytest.raises(ValueError, match=SENTENCES[what]) as caught:
        load_tokenizer(name) if "tokenizer" in what else load_classifier(name, SST2, tokenizer=tokenizer)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert name in str(caught.value)


def test_names_that_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the tests are run there may be results of a demo
    for name in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere", "a/b/c", "results/"):
        with pytest.raises(ValueError, match=r"There is no folder .*; give --model_name a model folder or a name"):
            load_tokenizer(name)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; give --model_name the folder"):
        load_tokenizer(str(tmp_path / "file"))


def hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "many\nlines")
    return error


@pytest.mark.parametrize(
    ("kind", "token", "sentence"),
    [
        (
            GatedRepoError,
            None,
            "is a gated model; ask for access on its page and set the environment variable HF_TOKEN",
        ),
        (GatedRepoError, "t", "is a gated model and your HF_TOKEN has no access to it"),
        (RepositoryNotFoundError, None, "There is no model owner/name on the Hugging Face hub"),
        (LocalEntryNotFoundError, None, "is not a folder here and the Hugging Face hub cannot be reached"),
    ],
)
def test_errors_of_the_hub_get_one_sentence(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], token: str | None, sentence: str
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    seen = {}

    def refuse(name: str, **options: object) -> None:
        seen.update(options, name=name)
        raise OSError("You are trying\nto access") from hub_error(kind)

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_tokenizer("owner/name")
    assert "\n" not in str(caught.value)
    assert seen["token"] == token
    assert seen["trust_remote_code"] is False


def test_offline_a_hub_name_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="the Hugging Face hub cannot be reached; connect to the network or give"):
        load_tokenizer("zotune-test/no-such-model")


# Real models


@pytest.mark.parametrize("name", ["llama-stories260K", "opt-mini"])
def test_real_models_load_in_both_forms(name: str) -> None:
    if not MODELS.exists():
        pytest.skip("The reference models are not beside this checkout.")
    place = str(MODELS / name)
    tokenizer = load_tokenizer(place)
    rows = load_rows(SST2, "validation", source=DATA, limit=4, seed=0)
    for prompted in (False, True):
        model = load_classifier(place, SST2, tokenizer=tokenizer, prompted=prompted)
        encoded = tokenise(rows, SST2, tokenizer, 64, prompt=prompt_style(model))
        batch = tokenizer.pad({key: encoded[key][:] for key in ("input_ids", "attention_mask")}, return_tensors="pt")
        assert model(**batch).logits.shape == (4, 2)


def test_the_embedded_model_is_a_name(folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zotune.embedded.MODEL_DIR", Path(folder("llama")))
    assert same(bits(load("embedded")), bits(load(folder("llama"))))
    plain = AutoModelForSequenceClassification.from_pretrained(folder("llama"))
    assert type(load("embedded")) is type(plain)
