"""Every tuner on a pretrained network of 22.7 million numbers: from its very output, in a file of what trains."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from subspace import load, save, subspaces, summary
from tests.core.test_tune import each_tuner
from tests.support.minilm import minilm, sentences

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the budget of")]
DESCRIPTION = 400  # bytes for each tensor of the network: names, classes, keys and fingerprints


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return minilm()


def states(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(**sentences()).last_hidden_state


@each_tuner
def test_it_starts_at_its_output_and_its_file_is_what_the_summary_says(base, tuner, tmp_path):
    expected, net = states(base), tuner(copy.deepcopy(base))
    assert torch.equal(states(net), expected)
    size, told = summary(net), {id(space.theta): space.theta for _, space in subspaces(net)}.values()
    trained = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    assert size.dim == sum(theta.numel() for theta in told) == trained
    for theta in told:
        theta.data += 0.1 * torch.randn_like(theta)
    moved = states(net)
    assert not torch.equal(moved, expected)
    left_out = save(net, tmp_path / "delta")
    tensors = len(base.state_dict())
    described = (tmp_path / "delta").stat().st_size - size.stored_bytes
    assert 0 < described < DESCRIPTION * tensors
    assert len(left_out) + len(dict(subspaces(net))) == tensors
    assert torch.equal(states(load(copy.deepcopy(base), tmp_path / "delta")), moved)


def test_the_network_knows_what_is_alike(base):
    seen = sentences()["attention_mask"].unsqueeze(-1)
    vectors = nn.functional.normalize((states(base) * seen).sum(1) / seen.sum(1))
    cats, prices = (vectors @ vectors.T)[0, 1:]
    assert cats > 0.4 > 0.2 > prices
