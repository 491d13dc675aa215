"""A folder with a delta and its card: complete, true, and refused on another base."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from subspace import Deltas, subspaces
from subspace.integrations import folders
from tests.core.test_tune import HEADS, MODELS, TUNERS, each_tuner, output
from tests.support.cases import rest_slow

pytestmark = pytest.mark.filterwarnings("ignore:the budget of")


def trained(tuner, name: str) -> nn.Module:
    net = tuner(MODELS[name](), also_train=[HEADS[name]])
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("name", rest_slow(["plain", "BertForSequenceClassification"], ["plain"]))
@each_tuner
def test_a_folder_gives_the_tuned_model_back(tuner, name, tmp_path):
    net = trained(tuner, name)
    left_out = folders.write(net, tmp_path / "new" / "folder", base="the base")
    again = folders.read(MODELS[name](), tmp_path / "new" / "folder")
    assert torch.equal(output(net, name), output(again, name))
    assert left_out
    deltas = Deltas(MODELS[name]())
    deltas.add("one", tmp_path / "new" / "folder" / folders.DELTA)


@each_tuner
def test_the_card_says_what_is_true(tuner, tmp_path):
    net = trained(tuner, "plain")
    left_out = folders.write(net, tmp_path, base='org/"base": 1', licence="apache-2.0")
    card = (tmp_path / folders.CARD).read_text()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    about = {name: json.loads(value) for name, value in (line.split(": ", 1) for line in front.splitlines())}
    assert about == {
        "library_name": "torch-subspace",
        "tags": ["subspace"],
        "base_model": 'org/"base": 1',
        "license": "apache-2.0",
    }
    spaces = dict(subspaces(net))
    dim = sum(theta.numel() for theta in {id(s.theta): s.theta for s in spaces.values()}.values())
    size = (tmp_path / folders.DELTA).stat().st_size
    assert f"holds {dim:,} numbers" in body
    assert f"{size:,} bytes" in body
    assert f"and {len(left_out)} frozen tensors" in body
    for name, space in spaces.items():
        (row,) = (line for line in body.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {space.embedding.label()} | {space.embedding.dim} |" in row
        assert str(space.embedding.key) in row or space.embedding.key is None
        assert f"{space.parametrization.identity().probes[0].value:.9g}" in row


def test_a_folder_may_hold_few_bits(tmp_path):
    net = trained(TUNERS["sparse"], "plain")
    for bits in (None, 4):
        folders.write(net, tmp_path / str(bits), base="a base", bits=bits)
    exact, few = (tmp_path / name / folders.DELTA for name in ("None", "4"))
    assert few.stat().st_size < exact.stat().st_size
    again = folders.read(MODELS["plain"](), tmp_path / "4")
    torch.testing.assert_close(output(again, "plain"), output(net, "plain"), rtol=0, atol=0.1)
    assert f"{few.stat().st_size:,} bytes" in (tmp_path / "4" / folders.CARD).read_text()


def test_what_is_not_stated_is_not_made_up(tmp_path):
    folders.write(trained(TUNERS["sparse"], "plain"), tmp_path, base="a base")
    card = (tmp_path / folders.CARD).read_text()
    assert "license" not in card
    assert "Licence of the delta: none stated." in card


def test_another_base_is_refused_and_stays_as_it_was(tmp_path):
    folders.write(trained(TUNERS["sparse"], "plain"), tmp_path, base="a base")
    other = MODELS["plain"]()
    other[5].weight.data[0] += 1
    before = output(other, "plain")
    with pytest.raises(ValueError, match=r"^d of 5.weight must be as it was saved, with fingerprint \S+, got \S+$"):
        folders.read(other, tmp_path)
    assert torch.equal(output(other, "plain"), before)
    assert not list(subspaces(other))


@pytest.mark.parametrize("folder", ["organisation/repository", "nowhere"])
def test_a_repository_is_not_downloaded(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^folder must be a local one with {folders.DELTA}, got '{folder}': "):
        folders.read(MODELS["plain"](), folder)


def test_a_name_of_two_lines_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^base and licence must be of one line, got 'a\\nb'$"):
        folders.write(trained(TUNERS["sparse"], "plain"), tmp_path / "folder", base="a\nb")
    assert not (tmp_path / "folder").exists()


def test_a_plain_model_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="^model must have at least one registered subspace, got none$"):
        folders.write(MODELS["plain"](), tmp_path / "folder", base="a base")
    assert not (tmp_path / "folder").exists()


def test_a_hub_reads_the_card(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    folders.write(trained(TUNERS["sparse"], "plain"), tmp_path, base="org/base", licence="mit")
    card = hub.ModelCard.load(tmp_path / folders.CARD)
    assert (card.data.base_model, card.data.license, card.data.tags) == ("org/base", "mit", ["subspace"])
