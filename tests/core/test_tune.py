"""Tuners of pretrained models: each starts at its base, trains theta and what it was told to, and loses nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import subspace
from subspace import Layout, methods, register, set_layouts, subspaces, summary, tune
from subspace.embeddings import DCT, Identity, LowRank
from subspace.offsets import Pretrained
from tests.core import test_transformers as zoo
from tests.support.cases import each_with_one, rest_slow
from tests.support.quantised import QUANTISERS


def energy(net: nn.Module) -> Tensor:
    return sum((p.double() ** 3).sum() for p in net.parameters() if p.requires_grad)


TUNERS: dict[str, Callable[..., nn.Module]] = {
    "sparse": partial(tune.sparse, density=0.02),
    "sparse-gradient": partial(tune.sparse, dim=99, objective=energy),
    "sparse-magnitude": partial(tune.sparse, density=0.02, saliency=methods.magnitude),
    "fourier-ft": partial(tune.fourier_ft, dim=120),
    "hashed": partial(tune.hashed, dim=120),
    "srht": partial(tune.srht, dim=50),
    "basis": partial(tune.basis, dim=120),
    "basis-dct": partial(tune.basis, dim=120, transform=DCT),
    "lora-xs": partial(tune.lora_xs, rank=2),
    "lora-fa": partial(tune.lora_fa, rank=2),
    "ia3": tune.ia3,
    "circulant": tune.circulant,
}
WITH_BIASES = partial(tune.ia3, biases=True)
pytestmark = pytest.mark.filterwarnings("ignore:the budget of")
each_tuner = pytest.mark.parametrize("tuner", TUNERS.values(), ids=TUNERS)


def plain() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(2)]
    return nn.Sequential(*layers, nn.LayerNorm(196), nn.Linear(196, 12), nn.Flatten(), nn.Linear(96, 4)).eval()


def half() -> nn.Module:
    return plain().bfloat16()


NAMES = ["GPT2LMHeadModel", "LlamaForCausalLM", "MixtralForCausalLM", "BertForSequenceClassification"]
MODELS = {name: partial(zoo.model, name) for name in [*NAMES, "ViTForImageClassification"]} | {
    "plain": plain,
    "half": half,
}
HEADS = {name: "lm_head" if name in NAMES[:3] else "classifier" for name in MODELS} | {"plain": "7", "half": "7"}
each_model = pytest.mark.parametrize("name", MODELS)


def output(net: nn.Module, name: str) -> Tensor:
    if name in ("plain", "half"):
        x = torch.linspace(-1, 1, 2 * 3 * 256).sin().reshape(2, 3, 16, 16)
        return net(x.to(net[0].bias.dtype))
    return zoo.logits(net, name)


def trained(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("tuner, name", rest_slow(product(TUNERS, MODELS), each_with_one(TUNERS, MODELS)))
def test_it_starts_at_its_base_and_trains_theta_alone(tuner, name):
    tuner = TUNERS[tuner]
    base = MODELS[name]()
    net = tuner(copy.deepcopy(base))
    assert torch.equal(output(net, name), output(base, name))
    spaces = dict(subspaces(net))
    thetas = {id(space.theta) for space in spaces.values() if space.theta.numel()}
    assert {id(p) for p in net.parameters() if p.requires_grad} == thetas
    assert all(space.theta.dtype == torch.float32 and not space.theta.any() for space in spaces.values())
    assert all(isinstance(space.offset, Pretrained) for space in spaces.values())
    left = {each.name for each in summary(net).left_out}
    assert {"transformer.wte.weight", "model.embed_tokens.weight"} & left or HEADS[name] != "lm_head"
    output(net, name).float().square().sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    assert any(p.grad.any() for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("tuner, name", each_with_one(TUNERS.values(), MODELS), ids=[*TUNERS])
def test_its_file_holds_theta_and_what_else_trains_and_loads_onto_a_fresh_base(tuner, name, tmp_path):
    base, head = MODELS[name](), HEADS[name]
    net = tuner(copy.deepcopy(base), also_train=[head])
    others = {each: p for each, p in net.named_parameters(remove_duplicate=False) if each.startswith(f"{head}.")}
    assert others
    assert all(p.requires_grad for p in others.values())
    thetas = {id(space.theta): space.theta for _, space in subspaces(net)}.values()
    for parameter in (*thetas, *others.values()):
        parameter.data += 0.01 * torch.randn_like(parameter)
    subspace.save(net, tmp_path / "delta")
    other = subspace.load(base, tmp_path / "delta")
    assert torch.equal(output(net, name), output(other, name))
    with safe_open(tmp_path / "delta", "pt") as file:
        held = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    buffers = sum(
        buffer.numel() for buffer in MODELS[name]().state_dict(keep_vars=True).values() if not is_parameter(buffer)
    )
    of = {kind: sum(t.numel() for each, t in held.items() if each.startswith(kind)) for kind in ("theta:", "state:")}
    assert of["theta:"] == sum(theta.numel() for theta in thetas)
    assert of["state:"] == sum(p.numel() for p in others.values()) + buffers
    places = sum(t.nbytes for each, t in held.items() if not each.startswith(("theta:", "state:")))
    assert places <= 4 * of["theta:"] * any(space.embedding.key is None for _, space in subspaces(net))


def is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


@pytest.mark.parametrize(
    "name", rest_slow(["GPT2LMHeadModel", "MixtralForCausalLM", "ViTForImageClassification", "plain"], ["plain"])
)
@each_tuner
def test_a_structured_model_computes_the_same(tuner, name):
    net = tuner(MODELS[name]())
    for _, space in subspaces(net):
        space.theta.data += 0.1 * torch.randn_like(space.theta)
    expected = output(net, name)
    torch.testing.assert_close(output(subspace.structured(net), name), expected, rtol=1e-3, atol=1e-4)


def test_a_fused_layer_has_its_parts_apart_structured_or_not():
    x = torch.randn(5, 12)
    for tuner in (partial(tune.lora_xs, rank=2), partial(tune.lora_fa, rank=2), tune.circulant, tune.ia3):
        layer = nn.Linear(12, 36)
        set_layouts(layer, {"weight": Layout(blocks=3)})
        ((_, space),) = subspaces(tuner(layer))
        assert space.embedding.matrices == 3
        space.theta.data.normal_()
        expected = layer(x)
        torch.testing.assert_close(subspace.structured(layer)(x), expected, rtol=1e-4, atol=1e-4)


@each_tuner
def test_what_the_user_froze_and_what_is_left_out_stay_as_they_are(tuner):
    net = plain()
    net[2].requires_grad_(False)
    before = copy.deepcopy(net)
    tuner(net, exclude=["7"], also_train=["bias", "4"])
    assert {each for each, _ in subspaces(net)} == {"0.weight", "5.weight"}
    free = {each for each, p in net.named_parameters() if p.requires_grad and "parametrizations" not in each}
    assert free == {"0.bias", "1.bias", "4.bias", "5.bias", "7.bias", "4.weight"}
    for each, tensor in before.state_dict().items():
        module, _, attribute = each.rpartition(".")
        assert torch.equal(getattr(net.get_submodule(module), attribute), tensor), each


@each_tuner
def test_a_frozen_or_tied_tensor_is_taken_where_it_is_named(tuner):
    net = zoo.model("GPT2LMHeadModel").requires_grad_(False)
    before = zoo.logits(net, "GPT2LMHeadModel")
    tuner(net, include=["lm_head"])
    assert [each for each, _ in subspaces(net)] == ["lm_head.weight"]
    assert torch.equal(zoo.logits(net, "GPT2LMHeadModel"), before)
    assert torch.equal(net.transformer.wte.weight, net.lm_head.weight)


BAD = {
    "include": ({"include": ["nowhere"]}, "include must name tensors of the model, got 'nowhere', which none ends in"),
    "exclude": ({"exclude": ["nowhere"]}, "exclude must name tensors of the model, got 'nowhere', which none ends in"),
    "also_train": ({"also_train": ["nowhere"]}, "also_train must name tensors of the model, got 'nowhere', .*"),
    "frozen": ({"also_train": ["2"]}, "also_train must name tensors that train, got 2 that are frozen"),
    "nothing": ({"exclude": lambda name, tensor: True}, "the model must have a tensor that is chosen, got none .*"),
}
WORSE = {
    "rank-xs": (partial(tune.lora_xs, rank=9), r"0.weight cannot be tuned: rank must be in \[1, 8\], got 9"),
    "rank-fa": (partial(tune.lora_fa, rank=28), r"0.weight cannot be tuned: rank must be in \[1, 27\], got 28"),
    "rank-0": (partial(tune.lora_fa, rank=0), r"0.weight cannot be tuned: rank must be in \[1, 27\], got 0"),
    "block": (partial(tune.circulant, block=5), "0.weight cannot be tuned: block must divide 8 outputs and 27 .*"),
    "frequencies": (partial(tune.fourier_ft, density=1.0), r"0.weight cannot be tuned: dim must be in \[1, 109\].*"),
    "few": (partial(tune.hashed, dim=2), r"\S+ cannot be tuned: dim must be in \[1, \d+\], got 0"),
    "many": (partial(tune.srht, dim=10**6), "dim must be .*"),
    "magnitude": (partial(tune.sparse, density=1.5, saliency=methods.magnitude), "density must be .*"),
    "infinite": (partial(tune.basis, dim=10), "pretrained weights must be finite, got 1 that are not"),
    "zero-row": (tune.ia3, "5.weight cannot be tuned: every row of offset must have an entry other than 0, .*"),
}


def refuses(call: Callable[[nn.Module], nn.Module], net: nn.Module, message: str) -> None:
    before, flags = copy.deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(net)
    assert not list(subspaces(net))
    assert [p.requires_grad for p in net.parameters()] == flags
    for one, other in zip(before.values(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
@each_tuner
def test_a_bad_choice_is_refused_in_a_sentence(tuner, options, message):
    net = plain()
    net[2].requires_grad_(False)
    refuses(partial(tuner, **options), net, message)


@pytest.mark.parametrize("case", WORSE)
def test_a_bad_size_is_refused_in_a_sentence(case):
    net = plain()
    with torch.no_grad():
        net[5].weight[1] = 0 if case == "zero-row" else net[5].weight[1]
        net[5].weight[0, 0] = torch.inf if case == "infinite" else net[5].weight[0, 0]
    call, message = WORSE[case]
    refuses(call, net, message)


@each_tuner
def test_it_takes_options_by_name_alone(tuner):
    with pytest.raises(TypeError, match="unexpected keyword argument 'inclde'"):
        tuner(plain(), inclde=["0"])


def test_supports_are_the_largest_and_the_random_ones_are_of_the_seed():
    base = nn.Linear(20, 30)
    scores = {"magnitude": base.weight.abs(), "gradient": (3 * base.weight.double() ** 2).abs()}
    options = {"magnitude": {"saliency": methods.magnitude}, "gradient": {"objective": energy}}
    for kind, score in scores.items():
        _, space = next(subspaces(tune.sparse(copy.deepcopy(base), dim=50, **options[kind])))
        assert set(space.embedding.support().tolist()) == set(score.flatten().topk(50).indices.tolist())
    drawn = [
        next(subspaces(tune.sparse(copy.deepcopy(base), dim=50, seed=seed)))[1].embedding.support().tolist()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_factors_of_outputs_scale_biases_too_unless_these_train():
    base = plain()
    net = WITH_BIASES(copy.deepcopy(base), exclude=["7"])
    assert {name for name, _ in subspaces(net)} == {f"{layer}.{of}" for layer in (0, 2, 5) for of in ("weight", "bias")}
    x = torch.linspace(-1, 1, 2 * 3 * 256).sin().reshape(2, 3, 16, 16)
    assert torch.equal(net(x), base(x))
    net[0].parametrizations.weight.original.data += torch.arange(8.0)
    assert net[0].parametrizations.weight.original is net[0].parametrizations.bias.original
    torch.testing.assert_close(net[0](x), base[0](x) * (1 + torch.arange(8.0)).reshape(8, 1, 1))
    net = WITH_BIASES(copy.deepcopy(base), also_train=["bias"])
    assert not any(name.endswith("bias") for name, _ in subspaces(net))
    base[5].weight.data[1] = 0  # beside a bias, which the factor scales still
    assert isinstance(WITH_BIASES(copy.deepcopy(base)), nn.Module)
    base[5].bias.data[1] = 0
    refuses(WITH_BIASES, base, "5.weight cannot be tuned: every output must have an entry other than 0, got 1 without")


def test_each_matrix_of_several_has_its_own_and_outputs_are_outputs_in_any_order():
    experts = nn.Module()
    experts.up = nn.Parameter(torch.randn(3, 6, 4))
    set_layouts(experts, {"up": Layout.parse("batch in out")})
    w = experts.up.detach().clone()
    for tuner, most in ((partial(tune.lora_xs, rank=2), 2), (partial(tune.lora_fa, rank=3), 3), (tune.circulant, 4)):
        net = tuner(copy.deepcopy(experts), include=["up"])
        ((_, space),) = subspaces(net)
        assert space.theta.numel() == 3 * {2: 4, 3: 12, 4: 12}[most]
        space.theta.data.normal_()
        assert all(torch.linalg.matrix_rank(delta) <= most for delta in (net.up - w).detach())
        moved = space.theta.data.numel() // 3
        space.theta.data[:moved] = 0
        assert torch.equal(net.up[0], w[0])
        assert not torch.equal(net.up[1], w[1])
    net = tune.ia3(copy.deepcopy(experts), include=["up"])
    ((_, space),) = subspaces(net)
    space.theta.data.copy_(torch.arange(12.0))
    torch.testing.assert_close(net.up, w * (1 + torch.arange(12.0).reshape(3, 1, 4)))
    net = tune.lora_xs(copy.deepcopy(experts), rank=4, include=["up"])
    ((_, space),) = subspaces(net)
    values = torch.stack([torch.diag(s) for s in torch.linalg.svdvals(w)])
    torch.testing.assert_close(space.embedding.adjoint(w).reshape(3, 4, 4), values, atol=1e-5, rtol=1e-5)
    assert isinstance(space.embedding, LowRank)


@each_tuner
def test_one_rate_trains_every_tuner(tuner):
    torch.manual_seed(1)
    net = tuner(plain())
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(25):
        losses.append(nn.functional.cross_entropy(net(x), y))
        adam.zero_grad()
        losses[-1].backward()
        adam.step()
    assert losses[-1] < 0.8 * losses[0]


@each_tuner
@pytest.mark.parametrize("quantiser", ["Int8WeightOnlyConfig", "nf4", "int8"])
def test_a_quantised_base_is_tuned_or_refused(tuner, quantiser):
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).requires_grad_(False)
    QUANTISERS[quantiser](net)
    x = torch.randn(4, 64)
    expected = net(x)
    if tuner in (TUNERS["sparse-gradient"], TUNERS["sparse-magnitude"]):
        with pytest.raises(
            ValueError, match=r"^0.weight must be of plain values for what is asked, got a quantised .*"
        ):
            tuner(net)
        assert not list(subspaces(net))
        assert torch.equal(net(x), expected)
    else:
        assert {each for each, _ in subspaces(tuner(net))} == {"0.weight", "2.weight"}
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(subspace.structured(net)(x), expected, rtol=1e-4, atol=1e-5)


@each_tuner
def test_what_is_registered_already_is_refused(tuner):
    net = tuner(plain(), include=["5"])
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    register(net[7], "bias", Pretrained(net[7].bias), Identity(net[7].bias))
    with pytest.raises(ValueError, match=r"^5.weight must not be parametrized yet, got one that is$"):
        tuner(net)
    assert {each for each, _ in subspaces(net)} == {"5.weight", "7.bias"}


@pytest.mark.parametrize("make", [lambda: nn.MultiheadAttention(8, 2), lambda: nn.LSTM(8, 4), lambda: nn.GRU(8, 5)])
def test_ia3_scales_the_biases_of_attention_and_recurrent_layers_with_their_weights(make):
    torch.manual_seed(0)
    plain = make()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.uniform_(-1, 1)
    model = tune.ia3(copy.deepcopy(plain), biases=True)
    spaces = dict(subspaces(model))
    assert spaces.keys() == {name for name, _ in plain.named_parameters()}
    for name, weight in plain.named_parameters():
        if "weight" in name:
            bias = name.replace("weight", "bias")
            assert spaces[name].theta is spaces[bias].theta
            with torch.no_grad():
                spaces[name].theta.copy_(torch.linspace(-1, 1, len(weight)))
            factors = _read(model, name) / weight
            torch.testing.assert_close(
                factors, (_read(model, bias) / plain.get_parameter(bias))[:, None].expand_as(weight)
            )


def _read(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    return getattr(model.get_submodule(owner), last)


def test_ia3_of_what_has_other_outputs_than_biases_is_refused_in_one_sentence():
    net = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2))
    with pytest.raises(ValueError, match="0.weight cannot be tuned: weight and bias must have as many outputs, got"):
        tune.ia3(net, biases=True)
    assert not list(subspaces(net))
