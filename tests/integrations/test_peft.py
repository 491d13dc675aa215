"""Adapters of peft: the same outputs here as there, both ways, and what is no (d, U) pair refused."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import subspace
from subspace import Deltas, subspaces, tune
from subspace.embeddings import ColumnScale, FourierFT, LowRank, RowScale, Sparse
from subspace.integrations.peft import read, write
from subspace.offsets import Pretrained
from tests.core import test_transformers as zoo
from tests.core.test_tune import plain

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
BERT, GPT2 = "BertForSequenceClassification", "GPT2LMHeadModel"
X = torch.linspace(-1, 1, 2 * 3 * 256).sin().reshape(2, 3, 16, 16)
ATTENTION = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
IA3 = {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}
A, B = {"fixed": "A"}, {"fixed": "B"}
Case = tuple[str, Callable[[], "peft.PeftConfig"], dict[str, str], type]
ADAPTERS: dict[str, Case] = {
    "fourier-ft": (BERT, lambda: peft.FourierFTConfig(n_frequency=200, scaling=30.0, **ATTENTION), {}, FourierFT),
    "fourier-ft-all": (
        BERT,
        lambda: peft.FourierFTConfig(n_frequency=1024, scaling=900.0, target_modules=["value"]),
        {},
        FourierFT,
    ),
    "fourier-ft-seed": (
        BERT,
        lambda: peft.FourierFTConfig(n_frequency=9, scaling=900.0, random_loc_seed=3, target_modules=["value"]),
        {},
        FourierFT,
    ),
    "fourier-ft-conv1d": (GPT2, lambda: peft.FourierFTConfig(n_frequency=90, target_modules=["c_attn"]), {}, FourierFT),
    "shira": (BERT, lambda: peft.ShiraConfig(r=2, **ATTENTION), {}, Sparse),
    "ia3": (BERT, lambda: peft.IA3Config(**IA3, modules_to_save=["classifier"]), {}, RowScale),
    "ia3-conv1d": (
        GPT2,
        lambda: peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]),
        {},
        RowScale,
    ),
    "ia3-conv": ("plain", lambda: peft.IA3Config(target_modules=["0", "5"], feedforward_modules=[]), {}, RowScale),
    "ia3-conv-in": ("plain", lambda: peft.IA3Config(target_modules=["0"], feedforward_modules=["0"]), {}, ColumnScale),
    "lora-fa": (BERT, lambda: peft.LoraConfig(r=4, lora_alpha=7, bias="all", **ATTENTION), A, LowRank),
    "lora-b": (BERT, lambda: peft.LoraConfig(r=4, use_rslora=True, **ATTENTION), B, LowRank),
    "lora-conv1d": (GPT2, lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.1), A, LowRank),
    "lora-ranks": (
        BERT,
        lambda: peft.LoraConfig(r=4, rank_pattern={"value": 2}, alpha_pattern={"query": 3}, **ATTENTION),
        A,
        LowRank,
    ),
}
each_adapter = pytest.mark.parametrize("case", ADAPTERS)


def base(name: str) -> nn.Module:
    net = plain() if name == "plain" else zoo.model(name)
    with torch.no_grad():
        for each, parameter in net.named_parameters():
            if each.endswith("bias"):  # which those of transformers have at 0
                parameter.copy_(torch.linspace(-1, 1, len(parameter)) / 3)
    return net.eval()


def output(net: nn.Module, name: str) -> Tensor:
    return net(X) if name == "plain" else zoo.logits(net, name)


def made_by_peft(case: str, folder: Path) -> Tensor:
    """What a model with random numbers for its adapter computes, once it is in the folder."""
    name, config, *_ = ADAPTERS[case]
    torch.manual_seed(1)
    net = peft.get_peft_model(base(name), config())
    for each, parameter in net.named_parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * (0.02 if "lora" in each else 0.3)
    net.eval().save_pretrained(str(folder))
    with torch.no_grad():
        return output(net, name)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


@each_adapter
def test_an_adapter_computes_here_what_it_does_there(case, tmp_path):
    name, _, options, kind = ADAPTERS[case]
    expected = made_by_peft(case, tmp_path)
    before = output(base(name), name)
    assert (expected - before).abs().max() > 1e-3
    net = read(base(name), tmp_path, **options)
    close(output(net, name), expected)
    spaces = dict(subspaces(net))
    assert all(isinstance(space.offset, Pretrained) for space in spaces.values())
    assert kind in {type(space.embedding) for space in spaces.values()}
    others = {each for each, p in net.named_parameters() if p.requires_grad and "parametrizations" not in each}
    held = load_file(tmp_path / "adapter_model.safetensors")
    held = {each.removeprefix("base_model.model.").replace(".base_layer.", ".") for each in held}
    assert others == held & set(base(name).state_dict())
    close(output(subspace.structured(net), name), expected)


@each_adapter
def test_what_was_read_goes_back_and_trains_on(case, tmp_path):
    name, _, options, _ = ADAPTERS[case]
    made_by_peft(case, tmp_path / "theirs")
    net = read(base(name), tmp_path / "theirs", **options)
    adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):
        adam.zero_grad()
        output(net, name).square().mean().backward()
        adam.step()
    expected = output(net, name)
    if case == "lora-fa":  # of biases in tuned layers, which peft has no modules for
        with pytest.raises(ValueError, match="must be as in the base, as peft's file has no place for it"):
            write(net, tmp_path / "ours")
        assert not (tmp_path / "ours").exists()
        return
    write(net, tmp_path / "ours", seed=3 if case == "fourier-ft-seed" else 777)
    close(output(peft.PeftModel.from_pretrained(base(name), str(tmp_path / "ours")).eval(), name), expected)
    close(output(read(base(name), tmp_path / "ours", **options), name), expected)


@each_adapter
def test_a_file_and_deltas_hold_it_too(case, tmp_path):
    name, _, options, _ = ADAPTERS[case]
    expected = made_by_peft(case, tmp_path)
    net = read(base(name), tmp_path, **options)
    subspace.save(net, tmp_path / "delta")
    assert torch.equal(output(subspace.load(base(name), tmp_path / "delta"), name), output(net, name))
    one = base(name)
    deltas = Deltas(one)
    deltas.add("one", tmp_path / "delta")
    deltas.use("one")
    close(output(one, name), expected)


RECIPES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "sparse": partial(tune.sparse, density=0.05),
    "sparse-gradient": partial(tune.sparse, dim=99, objective=lambda net: output(net, BERT).square().sum()),
    "lora-fa": partial(tune.lora_fa, rank=2),
    "lora-xs": partial(tune.lora_xs, rank=3),
    "ia3": partial(tune.ia3, biases=True),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_an_adapter_of_peft(recipe, tmp_path):
    net = RECIPES[recipe](base(BERT), also_train=["classifier", "LayerNorm"])
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    write(net, tmp_path, base="a base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "a base"
    assert (output(net, BERT) - output(base(BERT), BERT)).abs().max() > 1e-3
    close(output(peft.PeftModel.from_pretrained(base(BERT), str(tmp_path)).eval(), BERT), output(net, BERT))


def test_what_was_trained_is_written_when_it_is_frozen_by_then(tmp_path):
    net = tune.sparse(base(BERT), density=0.05, also_train=["classifier"])
    net.classifier.weight.data += 1
    write(net.requires_grad_(False), tmp_path)
    close(output(peft.PeftModel.from_pretrained(base(BERT), str(tmp_path)).eval(), BERT), output(net, BERT))


def test_two_frequencies_of_one_wave_are_one_number(tmp_path):
    made_by_peft("fourier-ft-all", tmp_path)
    ((_, space),) = subspaces(read(base(BERT), tmp_path))
    assert space.embedding.dim == (1024 + 4) // 2


NO_PAIRS = {
    "lora": (
        lambda: peft.LoraConfig(r=2, target_modules=["query"]),
        "LORA trains both factors, which .*",
    ),
    "dora": (
        lambda: peft.LoraConfig(r=2, use_dora=True, target_modules=["query"]),
        "LORA must come without use_dora, got use_dora=True",
    ),
    "pissa": (
        lambda: peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["query"]),
        "LORA must start from the base as it is, got init_lora_weights='pissa'",
    ),
    "vera": (lambda: peft.VeraConfig(r=2, target_modules=["query"]), "peft_type must be of a tuner that .* got VERA"),
    "loha": (lambda: peft.LoHaConfig(r=2, target_modules=["query"]), "peft_type must be of a tuner .* got LOHA"),
    "prompt": (
        lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
        "peft_type must be of a tuner that is a .* got PROMPT_TUNING",
    ),
}


@pytest.mark.parametrize("case", NO_PAIRS)
def test_what_is_no_pair_is_refused_and_the_model_as_it_was(case, tmp_path):
    config, message = NO_PAIRS[case]
    peft.get_peft_model(base(BERT), config()).save_pretrained(str(tmp_path))
    refuses(partial(read, folder=tmp_path, **({"fixed": "A"} if case in ("dora", "pissa") else {})), message)


def refuses(call: Callable[[nn.Module], object], message: str, kind: type[Exception] = ValueError) -> None:
    net = base(BERT)
    before, flags = copy.deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    with pytest.raises(kind, match=f"^{message}$"):
        call(net)
    assert not list(subspaces(net))
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(map(torch.equal, net.state_dict().values(), before.values()))


def spoilt(change: Callable[[dict, dict], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        change(config, tensors)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")

    return spoil


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query."
HEAD = "base_model.model.classifier.weight"
SPOILT = {
    "another model": (
        spoilt(lambda config, held: held.update({f"{QUERY}nowhere.shira_weight": torch.ones(2)})),
        r"\S+query.nowhere must fit the adapter, got: the adapter must have its shira_indices, got none",
    ),
    "no such layer": (
        spoilt(lambda c, h: h.update({name.replace("query", "q"): h.pop(name) for name in [*h] if "query" in name})),
        r"\S+self.q must fit the adapter, got: .*has no attribute `q`",
    ),
    "out of range": (
        spoilt(lambda config, held: held[f"{QUERY}shira_indices"].add_(1)),
        r"\S+query must fit the adapter, got: index must be .*",
    ),
    "another length": (
        spoilt(lambda config, held: held.update({f"{QUERY}shira_weight": torch.ones(3)})),
        r"\S+query must fit the adapter, got: theta must have 128 numbers, got 3",
    ),
    "another head": (
        spoilt(lambda config, held: held.update({HEAD: torch.ones(5, 32)})),
        r"the model must have the adapter's classifier.weight, of shape \(5, 32\), got one of shape \(2, 32\)",
    ),
    "an unknown tensor": (
        spoilt(lambda config, held: held.update({"base_model.model.new.weight": torch.ones(5)})),
        r"the model must have the adapter's new.weight, of shape \(5,\), got none of that name",
    ),
    "both": (
        spoilt(lambda config, held: held.update({f"{QUERY}weight": torch.ones(32, 32)})),
        r"the adapter must tune \S+query.weight or hold it whole, got both",
    ),
    "an unknown option": (
        spoilt(lambda config, held: config.update(some_option=[1])),
        r"SHIRA must come without some_option, got some_option=\[1\]",
    ),
    "nothing": (spoilt(lambda config, held: held.clear()), "the adapter must have tensors of SHIRA, got none"),
    "damaged": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 40),
        "folder must have whole files of peft, got a damaged one .*",
    ),
    "a list": (
        lambda folder: (folder / "adapter_config.json").write_text("[]"),
        "adapter_config.json must be a table, got list",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_adapter_is_refused_and_the_model_as_it_was(case, tmp_path):
    made_by_peft("shira", tmp_path)
    spoil, message = SPOILT[case]
    spoil(tmp_path)
    refuses(partial(read, folder=tmp_path), message)


def test_a_repository_is_not_downloaded():
    message = "folder must be a local one with adapter_config.json, got 'organisation/adapter'"
    refuses(partial(read, folder="organisation/adapter"), message, FileNotFoundError)


FIXED = {
    ("A", "shira"): "fixed must be None for SHIRA, which has no factors, got 'A'",
    ("C", "lora-fa"): "LORA trains both factors, .*: fixed must be 'A' or 'B' to train the other alone, got 'C'",
}


@pytest.mark.parametrize(("fixed", "case"), FIXED)
def test_a_factor_is_fixed_only_where_there_is_one(fixed, case, tmp_path):
    made_by_peft(case, tmp_path)
    refuses(partial(read, folder=tmp_path, fixed=fixed), FIXED[fixed, case])


UNWRITABLE = {
    "hashed": (partial(tune.hashed, dim=200), r"\S+ must have the U of one tuner of peft's, got Hashed"),
    "frequencies": (
        partial(tune.fourier_ft, dim=70),
        r"\S+ must have the frequencies that peft draws from its seed 777, got others: start from an adapter of peft's",
    ),
    "biases": (tune.ia3, r"\S+.bias must be scaled with its outputs, as peft does, got one that is not"),
    "many": (partial(tune.sparse, density=0.9), r"\S+ must have room for \d+ entries, r = \d+, got \d+"),
    "dctps": (
        partial(subspace.recipes.dctps, density=0.1),
        r"\S+ must be the base's plus a delta, got d = DCT",
    ),
    "nothing": (lambda net: net, "model must have at least one registered weight, got none"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_peft_has_no_file_for_is_refused_and_nothing_written(case, tmp_path):
    make, message = UNWRITABLE[case]
    net = make(base(BERT))
    with pytest.raises(ValueError, match=f"^{message}$"):
        write(net, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
