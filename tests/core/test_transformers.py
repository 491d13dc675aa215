"""The models of transformers, as its users have them: what is taken, off the meta device, and scored in float64."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from subspace import initialize, materialize, methods, recipes, subspaces, summary, targets

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
BERT = {name: LLAMA[name] for name in LLAMA if name != "num_key_value_heads"}
VIT = {name: BERT[name] for name in list(BERT)[:4]} | {"image_size": 16, "patch_size": 4}
MOE = LLAMA | {"num_experts_per_tok": 2, "head_dim": 8}
GPT2 = {"n_layer": 1, "n_embd": 32, "n_head": 4, "vocab_size": 50, "n_positions": 16}
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
TOKENS = {"input_ids": torch.arange(12).reshape(2, 6)}
IMAGES = {"pixel_values": torch.linspace(-1, 1, 1536).reshape(2, 3, 16, 16)}
MODELS = {
    "GPT2LMHeadModel": (GPT2 | {"bos_token_id": 0, "eos_token_id": 0}, TOKENS),
    "LlamaForCausalLM": (LLAMA | {"tie_word_embeddings": True}, TOKENS),
    "MixtralForCausalLM": (MOE | {"num_local_experts": 4}, TOKENS),
    "Qwen3MoeForCausalLM": (MOE | {"num_experts": 4, "moe_intermediate_size": 16}, TOKENS),
    "GptOssForCausalLM": (MOE | {"num_local_experts": 4}, TOKENS),
    "BertForSequenceClassification": (BERT, TOKENS),
    "ViTForImageClassification": (VIT, IMAGES),
    "T5ForConditionalGeneration": (T5, TOKENS | {"decoder_input_ids": TOKENS["input_ids"]}),
}
MIXTURES = [name for name in MODELS if ("M" in name.removesuffix("LM") and "ForCausal" in name) or "GptOss" in name]
each_model = pytest.mark.parametrize("name", MODELS)


def model(name):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**MODELS[name][0])).eval()


def logits(net, name):
    return net(**MODELS[name][1]).logits


@each_model
def test_every_matrix_but_a_table_is_taken(name):
    net = model(name)
    left = {each.name: each.why for each in summary(recipes.dctps(net, density=0.1)).left_out}
    assert {why for why in left.values() if not why.startswith("tied")} <= {"bias", "norm", "embedding", "other"}
    assert all(why != "other" or "sinks" in each for each, why in left.items())
    logits(net, name).sum().backward()
    assert all(space.theta.grad is not None for _, space in subspaces(net))


@each_model
def test_ordinary_training_and_its_dense_model_compute_the_same(name):
    net = model(name)
    expected = logits(net, name)
    net = recipes.ordinary(net)
    torch.testing.assert_close(logits(net, name), expected)
    torch.testing.assert_close(logits(materialize(net), name), expected)


@pytest.mark.parametrize(
    ("name", "layer", "inputs_first", "blocks"),
    [
        ("GPT2LMHeadModel", "transformer.h.0.attn.c_attn.weight", True, 3),
        ("GPT2LMHeadModel", "transformer.h.0.attn.c_proj.weight", True, 1),
        ("MixtralForCausalLM", "model.layers.0.mlp.experts.down_proj", False, 4),
        ("GptOssForCausalLM", "model.layers.0.mlp.experts.down_proj", True, 4),
        ("GptOssForCausalLM", "model.layers.0.mlp.experts.gate_up_proj", True, 4),
    ],
)
def test_the_layouts_of_its_modules_are_known(name, layer, inputs_first, blocks):
    target = targets(model(name))[layer]
    shape = target.weight.shape
    fans = (shape[-1], shape[-2]) if inputs_first else (shape[-2], shape[-1])
    fans = (fans[0] // blocks, fans[1]) if len(shape) == 2 else fans
    assert (target.layout.fans(shape), target.layout.matrices(shape)) == (fans, blocks)


@each_model
@pytest.mark.parametrize("recipe", [recipes.dctps, recipes.random_pruning], ids=lambda recipe: recipe.__name__)
def test_it_comes_off_the_meta_device_by_its_own_rule(name, recipe):
    real = recipe(model(name), density=0.2)
    with torch.device("meta"):
        net = model(name)
    net = initialize(recipe(net, density=0.2), init=net._init_weights).eval()
    buffers = dict(net.named_buffers())
    for buffer, values in real.named_buffers():
        assert "parametrizations" in buffer or torch.equal(buffers[buffer], values), buffer
    for one, other in zip(real.parameters(), net.parameters(), strict=True):
        if len(one) > 500:
            torch.testing.assert_close(one.std(), other.std(), rtol=0.2, atol=1e-6)
        elif one.std() == 0:
            assert torch.equal(one, other)
    assert logits(net, name).isfinite().all()


def test_without_its_rule_the_tensor_is_named():
    with torch.device("meta"):
        net = recipes.dctps(model("LlamaForCausalLM"), density=0.2)
    with pytest.raises(
        ValueError, match=r"must be set by Llama\w+.reset_parameters, got none: give an init that sets it"
    ):
        initialize(net)


@each_model
def test_synflow_scores_in_float64_and_conserves_the_flow(name):
    net = model(name)
    plain = copy.deepcopy(net)
    scores = methods.synflow(net, lambda net: logits(net, name).double().sum())
    assert scores.keys() == targets(net).keys()
    assert all(s.dtype == torch.float64 and s.isfinite().all() for s in scores.values())
    assert all(map(torch.equal, net.state_dict().values(), plain.state_dict().values()))


def test_fine_tuning_of_a_classifier_trains_theta_and_its_head_alone():
    net = recipes.sparse_finetuning(model("BertForSequenceClassification"), density=0.01, also_train=["classifier"])
    size = summary(net)
    assert "classifier.weight" not in [row.name for row in size.rows]
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == size.dim + 32 * 2 + 2
    assert isinstance(net.classifier, nn.Linear)
