"""A write into a tensor that is computed is noticed, and nothing else is."""

from __future__ import annotations

import copy
import gc
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from subspace import Key, materialize, recipes, register, structured
from subspace._base import written
from subspace.embeddings import Sparse
from subspace.offsets import DCT
from tests.support.cases import MODULES

close = torch.testing.assert_close
WRITES = {
    "constant": lambda m: nn.init.constant_(m.weight, 3.0),
    "normal": lambda m: nn.init.normal_(m.weight),
    "truncated normal": lambda m: nn.init.trunc_normal_(m.weight),
    "orthogonal": lambda m: nn.init.orthogonal_(m.weight),
    "reset_parameters": lambda m: m.reset_parameters(),
    "a view": lambda m: nn.init.zeros_(m.weight.t()),
    "a copy": torch.no_grad()(lambda m: m.weight.copy_(torch.ones(6, 8))),
}


def layer(dtype=torch.float32) -> nn.Linear:
    module = nn.Linear(8, 6).to(dtype)
    w = module.weight
    register(module, "weight", DCT(w), Sparse(w, 9, key=Key(0)))
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_into_a_registered_weight_is_said_to_be_lost(write, dtype):
    if write == "orthogonal" and dtype == torch.bfloat16:
        return  # whose decomposition torch has not
    module = layer(dtype)
    before = module.weight.detach().clone()
    with pytest.warns(UserWarning, match="what was written in place into a registered tensor is lost: it is d"):
        WRITES[write](module)
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("of", [lambda w: w.data, lambda w: w.detach()])
def test_what_is_written_to_the_data_is_not_noticed_and_lost(of):
    module = layer()
    before = module.weight.detach().clone()
    of(module.weight).fill_(3.0)
    assert torch.equal(module.weight, before)


def test_an_assignment_is_no_write():
    module = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.weight = torch.ones(6, 8)
    index = module.parametrizations.weight[0].embedding.index
    close(module.weight.flatten()[index], torch.ones(9))


USES = {
    "train": lambda m: torch.optim.SGD(m.parameters(), 0.1).step(),
    "copy": copy.deepcopy,
    "dense": materialize,
    "cached": lambda m: [m.weight, m.weight],
    "without gradients": torch.no_grad()(lambda m: m.weight.sum()),
    "inference": torch.inference_mode()(lambda m: m.weight.sum()),
    "out of place": lambda m: (m.weight + 1).zero_(),
    "remove": lambda m: parametrize.remove_parametrizations(m, "weight"),
    "traced": lambda m: torch.jit.trace(m, torch.ones(2, 8)),
    "exported": lambda m: torch.export.export(m, (torch.ones(2, 8),)),
    "vmap": lambda m: torch.vmap(m)(torch.ones(3, 2, 8)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("use", USES)
def test_other_uses_say_nothing(use, recwarn):
    module = layer()
    for _ in range(2):
        module(torch.ones(2, 8)).sum().backward()
        with parametrize.cached() if use != "traced" else nullcontext():  # which torch refuses
            USES[use](copy.deepcopy(module))
    structured(module)(torch.ones(2, 8)).sum().backward()
    gc.collect()
    assert not [w for w in recwarn if "written in place" in str(w.message)]


@pytest.mark.slow
@pytest.mark.parametrize("case", MODULES, ids=lambda case: case.name)
def test_no_module_writes_into_its_weight(case, recwarn):
    module = recipes.random_pruning(case.make().double(), dim=1, include=[case.tensor])
    case.call(module).square().sum().backward()
    gc.collect()
    assert not [w for w in recwarn if "written in place" in str(w.message)]


def test_nothing_is_held_for_it():
    module = layer()
    weight = module.weight
    held = len(written._watched)
    assert held > 0
    del weight
    gc.collect()
    assert len(written._watched) < held
