"""A registered or structured model is exported to a program of torch's own operators that runs without this package."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from subspace import Key, dct, fwht, idct, recipes, register, structured
from subspace.embeddings import Sparse
from subspace.offsets import DCT, Hadamard, RankOne, SignedDCT
from subspace.products import Weight, linear
from tests.support.cases import EACH_ONCE, rest_slow

close = torch.testing.assert_close
BATCH = Dim("batch", min=1, max=1024)


def plus_sparse(offset):
    return recipes.offset_plus_sparse(lambda weight, key: offset(weight, key=key))


RECIPES = {
    "ordinary": recipes.ordinary,
    "random_pruning": lambda net: recipes.random_pruning(net, density=0.3),
    "freezenet": lambda net: recipes.freezenet(net, density=0.3),
    "sparse_finetuning": lambda net: recipes.sparse_finetuning(net, density=0.3),
    "dctps": lambda net: recipes.dctps(net, density=0.3),
    "dctps, full": lambda net: recipes.dctps(net, density=1.0),
    "signed": lambda net: plus_sparse(SignedDCT)(net, density=0.3),
    "hadamard": lambda net: plus_sparse(Hadamard)(net, density=0.3),
    "rank-one": lambda net: plus_sparse(RankOne)(net, density=0.3),
    "random_subspace": lambda net: recipes.random_subspace(net, dim=20),
}
LAYERS = {  # a network of two registered layers, and a sample
    "linear": (lambda: [nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)], (12,)),
    "linear-axes": (lambda: [nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 4)], (3, 6)),
    "conv1d": (lambda: [nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(30, 3)], (4, 9)),
    "conv2d": (lambda: [nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)], (4, 6, 5)),
    "conv2d-circular": (lambda: [nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.Flatten()], (4, 6, 5)),
    "conv2d-groups": (lambda: [nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 6, 3, groups=6)], (4, 6, 5)),
    "conv3d": (lambda: [nn.Conv3d(2, 3, 2, padding=1), nn.Flatten()], (2, 3, 4, 3)),
}


each_layers = pytest.mark.parametrize("layers", LAYERS)


def network(recipe: str, layers: str, fast: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[layers]
    net = RECIPES[recipe](nn.Sequential(*make()))
    with torch.no_grad():
        for theta in net.parameters():
            theta.add_(0.3 * torch.randn_like(theta))
    return (structured(net) if fast else net).eval(), torch.randn(4, *shape)


class Several(nn.Module):
    """Networks beside each other, which are exported and compiled at once."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [net(x) for net in self.networks]


def several(layers: str, thorough: Sequence[str] = ("linear", "conv2d")) -> tuple[nn.Module, Tensor]:
    """Networks of those layers, registered and structured: of every recipe where `thorough`, else of one."""
    recipes = RECIPES if layers in thorough else ["dctps"]
    pairs = [network(recipe, layers, fast) for recipe in recipes for fast in (False, True)]
    return Several(net for net, _ in pairs).eval(), pairs[0][1]


@functools.cache
def exported(layers: str) -> tuple[nn.Module, Tensor, torch.export.ExportedProgram]:
    """Several networks of those layers, a sample, and their program for any batch."""
    net, x = several(layers)
    return net, x, export(net, (x,), dynamic_shapes=({0: BATCH},))


def foreign(program: torch.export.ExportedProgram) -> list[str]:
    """The operators of a program that are not torch's own."""
    called = {
        str(node.target) for graph in _graphs(program.graph_module) for node in graph.nodes if node.op[:4] == "call"
    }
    return [name for name in called if "subspace" in name]


def _graphs(module: nn.Module):
    return [child.graph for child in module.modules() if hasattr(child, "graph")]


@pytest.mark.parametrize("layers", rest_slow(LAYERS, ["conv1d"]))
def test_a_program_for_any_batch_computes_the_same_by_torchs_operators(layers):
    net, x, program = exported(layers)
    assert not foreign(program)
    for count in (1, 3, 9):
        inputs = torch.randn(count, *x.shape[1:])
        close(program.module()(inputs), net(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("offset, embedding", EACH_ONCE, ids=lambda case: case.name)
def test_every_offset_and_embedding_is_exported_or_refused(offset, embedding):
    plain, x = nn.Linear(12, 7), torch.randn(4, 12)
    register(plain, "weight", offset.make(plain.weight, Key(2)), embedding.make(plain.weight, 10, Key(1)))
    net = Several([plain, structured(copy.deepcopy(plain))])
    if embedding.name == "gaussian-drawn":
        for each in net.networks:
            with pytest.raises(ValueError, match="U must be stored to be exported, got a Gaussian that is drawn"):
                export(each, (x,))
        return
    program = export(net, (x,), dynamic_shapes=({0: BATCH},))  # before the first eager call
    assert not foreign(program)
    close(program.module()(x[:3]), net(x[:3]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_strict_export_is_the_same():
    net, x = several("conv2d")
    program = export(net, (x,), dynamic_shapes=({0: BATCH},), strict=True)
    assert not foreign(program)
    close(program.module()(x[:2]), net(x[:2]), rtol=1e-4, atol=1e-4)


class Functions(nn.Module):
    """Somebody's module that calls the functions of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.index = torch.tensor([1, 5, 9])
        self.values = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.ones(1))
        self.d, self.U = DCT(torch.empty(8, 8)), Sparse(torch.empty(8, 8), 3, key=Key(0))

    def forward(self, x: Tensor) -> Tensor:
        w = Weight(self.scale, self.values, self.index, (8, 8), "dct")
        return linear(x, w, "remat") + idct(dct(fwht(x))) + self.d.linear(x) + self.U.linear(self.values, x)


def test_the_functions_are_exported_too():
    net, x = Functions(), torch.randn(4, 8)
    program = export(net, (x,), dynamic_shapes=({0: BATCH},))
    assert not foreign(program)
    close(program.module()(x[:3]), net(x[:3]))


@pytest.mark.slow
def test_a_trace_of_torchscript_computes_the_same(tmp_path):
    net, x = several("conv2d")
    traced = torch.jit.trace(net, x, strict=False)  # which are in a list
    torch.jit.save(traced, tmp_path / "net.pt")
    close(torch.jit.load(tmp_path / "net.pt")(x[:3]), net(x[:3]), rtol=1e-4, atol=1e-4)
    assert "PythonOp" not in str(traced.inlined_graph)


def test_what_export_computes_is_not_kept_from_eager_calls():
    net = recipes.dctps(nn.Sequential(nn.Linear(37, 41)), density=0.1)  # sizes that nobody has used before
    x = torch.randn(2, 37)
    for each in (net, structured(copy.deepcopy(net))):
        program = export(each, (x,))
        close(each(x), program.module()(x))
        each(x).sum().backward()


def test_a_mode_that_watches_operators_sees_the_product():
    from torch.fx.experimental.proxy_tensor import make_fx

    net, x = network("dctps", "linear", True)
    graph = make_fx(net)(x)  # would else record an output that nobody fills
    close(graph(2 * x), net(2 * x))


LOADER = """
import sys
sys.modules["subspace"] = None  # which makes importing it an error
import torch
for path in sys.argv[1:]:
    program, (x, y) = torch.export.load(path + ".pt2"), torch.load(path + ".pt")
    torch.testing.assert_close(program.module()(x), y, rtol=1e-4, atol=1e-4)
"""


def without_subspace(code: str, *arguments: object) -> None:
    """Run code in a process of its own, where this package cannot be imported."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


def detached(ys: list[Tensor]) -> list[Tensor]:
    return [y.detach() for y in ys]


@pytest.mark.slow
def test_saved_programs_run_without_this_package(tmp_path):
    for layers in LAYERS:
        net, x, program = exported(layers)
        torch.export.save(program, tmp_path / f"{layers}.pt2")
        torch.save([x[:3], detached(net(x[:3]))], tmp_path / f"{layers}.pt")
    without_subspace(LOADER, *(tmp_path / layers for layers in LAYERS))


@pytest.mark.slow
@each_layers
def test_onnx_computes_the_same(layers, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    net, x = several(layers, thorough=["linear"])
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, (x,), path, dynamo=True, dynamic_shapes=({0: BATCH},), verbose=False)
    session = runtime.InferenceSession(path)
    for inputs in (x, x[:1]):
        found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        close(list(map(torch.from_numpy, found)), detached(net(inputs)), rtol=1e-4, atol=1e-4)


RUNNER = """
import sys
sys.modules["subspace"] = None
import torch
for path in sys.argv[1:]:
    model, (x, y) = torch._inductor.aoti_load_package(path + ".pt2"), torch.load(path + ".pt")
    torch.testing.assert_close(list(model(x)), y, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.compile
def test_aot_inductor_computes_the_same(tmp_path):
    cases = [("dctps", False), ("dctps", True), ("signed", True), ("hadamard", True), ("random_subspace", False)]
    nets, (x, *_) = zip(*(network(recipe, "conv1d", fast) for recipe, fast in cases), strict=True)
    net, path = Several(nets).eval(), tmp_path / "net"
    program = export(net, (x,), dynamic_shapes=({0: BATCH},))
    torch._inductor.aoti_compile_and_package(program, package_path=f"{path}.pt2")
    torch.save([x[:3], detached(net(x[:3]))], f"{path}.pt")
    without_subspace(RUNNER, path)


def test_a_small_program_is_small(tmp_path):
    net = structured(recipes.dctps(nn.Sequential(nn.Linear(512, 512)), density=0.01))
    torch.export.save(export(net, (torch.randn(2, 512),)), tmp_path / "net.pt2")
    assert (tmp_path / "net.pt2").stat().st_size < 512 * 512 * 4 / 5
