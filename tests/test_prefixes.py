"""A prefix before models whose heads take none by themselves: encoders, and models that answer with label words."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from command_runs import begun_and_resumed, losses_of, rows_of, shelf, train, workshop
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

import zotune
from zotune.cli import main
from zotune.evaluators.stacked import Stacked
from zotune.hf.adapters import Adapter, add_adapter, load_adapter
from zotune.hf.models import load_classifier, load_language_model, load_tokenizer
from zotune.hf.prefixes import take_prefix
from zotune.tasks import get_task

__all__ = ["shelf", "workshop"]  # fixtures, for pytest to find in this module
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for an old name
TOKENS, SEED = 5, 3
ENCODERS = ("roberta", "bert")
FORMS = [(family, False) for family in ENCODERS] + [(family, True) for family in (*ENCODERS, *tiny_models.DECODERS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    for family in tiny_models.FAMILIES:
        tiny_models.save(place / family, family)
    return {family: place / family for family in tiny_models.FAMILIES}


def plain(folder: Path, prompted: bool) -> Any:
    return load_classifier(
        str(folder), get_task("sst2"), tokenizer=load_tokenizer(str(folder)), seed=1, prompted=prompted
    )


def adapted(folder: Path, prompted: bool) -> Any:
    adapter = Adapter(kind="prefix", tokens=TOKENS)
    return add_adapter(plain(folder, prompted), adapter, tokenizer=load_tokenizer(str(folder)), seed=SEED, name="m")


def batch(masked: bool) -> dict[str, torch.Tensor]:
    """Two rows of nine and six tokens; with a mask token in each."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, tiny_models.VOCABULARY, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    ids[1, 6:] = tiny_models.PAD
    if masked:
        ids[0, 7] = ids[1, 4] = tiny_models.MASK
    return {"input_ids": ids, "attention_mask": mask}


def drawn() -> torch.Tensor:
    """The tokens whose keys and values the prefix begins with."""
    tokens = torch.randint(tiny_models.VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(SEED))
    assert not bool((tokens == tiny_models.PAD).any())  # whose position in RoBERTa is another
    return tokens


# ------------------------------------------------------------------------------------------------ what is computed


@pytest.mark.parametrize(("family", "prompted"), FORMS)
def test_a_prefix_begins_as_tokens_that_were_read(family: str, prompted: bool, folders: dict[str, Path]) -> None:
    """The body reads drawn tokens and text together, the drawn ones seeing nothing but themselves."""
    model = adapted(folders[family], prompted)
    given = batch(masked=prompted and family in ENCODERS)
    ids, mask = given["input_ids"], given["attention_mask"]
    there = torch.cat((torch.ones(2, TOKENS, dtype=torch.long), mask), 1)
    if family in ENCODERS:
        sees = torch.ones(there.shape[1], there.shape[1], dtype=torch.bool)
        sees[:TOKENS, TOKENS:] = False
        there = (sees[None] & there.bool()[:, None, :])[:, None]
    other = plain(folders[family], prompted)
    hidden: list[torch.Tensor] = []

    def whole(_: Any, __: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (), {**kwargs, "input_ids": torch.cat((drawn().expand(2, -1), ids), 1), "attention_mask": there}

    def text_alone(body: Any, _: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, TOKENS:]
        if getattr(body, "pooler", None) is not None:
            output.pooler_output = body.pooler(output.last_hidden_state)
        hidden.append(output.last_hidden_state)
        return output

    body = other.model.decoder if family == "opt" else other.base_model  # where the head of OPT calls it
    with torch.no_grad():
        bare = other(**given).logits
        body.register_forward_pre_hook(whole, with_kwargs=True)
        body.register_forward_hook(text_alone)
        wanted = other(**given).logits
        found = model(**given).logits
    assert hidden[0].shape[1] == ids.shape[1]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert (found - bare).abs().max() > 1e-5


@pytest.mark.parametrize(("family", "prompted"), FORMS)
def test_steps_change_prefix_and_head_alone(family: str, prompted: bool, folders: dict[str, Path]) -> None:
    model = adapted(folders[family], prompted)
    given = batch(masked=prompted and family in ENCODERS)
    ends = []
    for evaluator in (Stacked(limit=1), Stacked(tokens=1 << 20)):
        model = adapted(folders[family], prompted)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = zotune.LOZO(model.named_parameters(), lr=1e-2, eps=1e-2, seed=9, period=2)
        optimizer.evaluator = evaluator

        def loss(model: Any = model) -> torch.Tensor:
            return model(**given).logits.double().square().mean()

        with torch.no_grad():
            ends.append([optimizer.step(loss) for _ in range(4)])
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
        assert all("prompt_encoder" in name or ("modules_to_save" in name and not prompted) for name in moved)
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


@pytest.mark.parametrize("prompted", [False, True])
def test_what_takes_no_keys_and_values_is_refused(prompted: bool, folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="its attention takes no keys and values from outside"):
        adapted(folders["distilbert"], prompted)


# ------------------------------------------------------------------------------------------------ the class


def test_the_class_says_what_it_takes_and_keeps_its_name(folders: dict[str, Path], tmp_path: Path) -> None:
    model = plain(folders["bert"], False)
    own, kind = inspect.signature(model.forward).parameters, type(model)
    names = [name for name, _ in model.named_parameters()]
    assert take_prefix(model) is model
    assert inspect.signature(model.forward).parameters.keys() == own.keys() | {"past_key_values"}
    assert [name for name, _ in model.named_parameters()] == names
    assert type(take_prefix(plain(folders["bert"], False))) is type(model)
    assert type(take_prefix(model)).__mro__[1] is kind
    model.save_pretrained(tmp_path / "kept")
    assert json.loads((tmp_path / "kept/config.json").read_text())["architectures"] == [kind.__name__]
    with torch.no_grad():
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept").eval()
        assert torch.equal(again(**batch(False)).logits, model(**batch(False)).logits)
    llama = plain(folders["llama"], False)
    assert type(take_prefix(llama)) is type(plain(folders["llama"], False))  # takes it by itself


def test_nothing_is_left_on_the_body_after_an_error(folders: dict[str, Path]) -> None:
    model = adapted(folders["roberta"], False)
    with pytest.raises(IndexError), torch.no_grad():
        model(input_ids=torch.tensor([[tiny_models.VOCABULARY]]), attention_mask=torch.ones(1, 1))
    assert not model.get_base_model().base_model._forward_pre_hooks


def test_label_words_refuse_what_they_would_ignore(folders: dict[str, Path]) -> None:
    model = plain(folders["roberta"], True)
    with pytest.raises(TypeError, match="reads input_ids, and returns logits alone"):
        model(**batch(True), inputs_embeds=torch.zeros(2, 9, 16))


@pytest.mark.parametrize("family", tiny_models.DECODERS)
def test_what_was_trained_on_label_words_opens_as_a_language_model_that_writes(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    mine, given = adapted(folders[family], True), batch(False)
    mine.save_pretrained(tmp_path / "kept")
    tokenizer = load_tokenizer(str(folders[family]))
    language_model = load_language_model(str(folders[family]), tokenizer=tokenizer, adapted=True)
    limit = tokenizer.model_max_length
    opened = load_adapter(language_model, tmp_path / "kept", tokenizer=tokenizer)
    assert tokenizer.model_max_length == limit - opened.active_peft_config.num_virtual_tokens < limit
    ids = given["input_ids"][:1]
    with torch.no_grad():
        words = mine(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        logits = opened(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        written = opened.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            output_scores=True,
            return_dict_in_generate=True,
            do_sample=False,
        ).scores[0][0]
    torch.testing.assert_close(logits[mine.get_base_model().label_word_ids], words, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(written, logits, rtol=1e-5, atol=1e-6)


def test_what_was_trained_at_a_mask_opens_with_a_class_that_takes_it(folders: dict[str, Path], tmp_path: Path) -> None:
    mine, given = adapted(folders["roberta"], True), batch(True)
    mine.save_pretrained(tmp_path / "kept")
    assert json.loads((tmp_path / "kept/adapter_config.json").read_text())["modules_to_save"] is None
    masked: Any = AutoModelForMaskedLM.from_pretrained(folders["roberta"]).eval()
    opened = peft.PeftModel.from_pretrained(take_prefix(masked), tmp_path / "kept").eval()
    base = mine.get_base_model()
    with torch.no_grad():
        logits = opened(**given).logits[[0, 1], [7, 4]][:, base.label_word_ids]
        torch.testing.assert_close(logits, mine(**given).logits, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("prompted", [False, True])
def test_a_run_is_kept_resumed_and_replayed(
    prompted: bool,
    workshop: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    tiny_models.save(Path("encoder"), "roberta")
    words = ["--model_name", "encoder", "--tuning", "prefix", "--algorithm", "ZO", "--save_ckpt", "--lr", "1e-2"]
    words += ["--soft_prompt"] * prompted
    run, _ = train(capsys, *words)
    assert run is not None
    kept = load_file(run / "last/adapter_model.safetensors")
    assert [name for name in kept if "classifier" not in name] == ["prompt_embeddings"]
    assert any("classifier" in name for name in kept) == (not prompted)
    losses = losses_of(run)
    assert len(set(losses)) == len(losses)

    half = begun_and_resumed(capsys, monkeypatch, *words)
    again = load_file(half / "last/adapter_model.safetensors")
    assert rows_of(half) == rows_of(run)
    assert all(torch.equal(kept[name], again[name]) for name in kept)

    assert main(["replay", "encoder", str(run), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "the weights have the digest" in capsys.readouterr().err
    rebuilt = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(torch.equal(kept[name], rebuilt[name]) for name in kept)
    if not prompted:
        base = AutoModelForSequenceClassification.from_pretrained("encoder").eval()
        loaded = peft.PeftModel.from_pretrained(take_prefix(base), run / "last").eval()
        mine = adapted(Path("encoder"), False)
        peft.set_peft_model_state_dict(mine, kept)
        with torch.no_grad():
            assert torch.equal(loaded(**batch(False)).logits, mine(**batch(False)).logits)
