"""Lightning's Trainer: what was interrupted goes on to the bit, from checkpoints without the base."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from subspace import methods, recipes, subspaces, tune

lightning = pytest.importorskip("lightning.pytorch")
import torchmetrics  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from subspace.integrations.lightning import DeltaCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.linspace(-1, 1, 24 * 8).mul(3).sin().reshape(24, 8)
Y = torch.arange(24) % 2
SPARSE = partial(tune.sparse, density=0.2)
MOVERS = {
    "none": (partial(tune.fourier_ft, dim=12, also_train=["2"]), None),
    "rigl": (SPARSE, lambda module, optimizer: methods.RigL(module, optimizer, t_end=100, delta_t=2)),
    "set": (SPARSE, lambda module, optimizer: methods.SET(module, optimizer, t_end=100, delta_t=2)),
    "gradual": (
        recipes.ordinary,
        lambda module, optimizer: methods.GradualPruning(module, optimizer, density=0.3, t_start=1, t_end=6, delta_t=1),
    ),
}


class Module(lightning.LightningModule):
    def __init__(self, recipe, base: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
        layers[0].bias.data += base
        self.net = recipe(layers)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss, on_step=True)
        return {"loss": loss} if batch_idx % 2 else loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 1e-2)


class TwoOptimizers(Module):
    def __init__(self, recipe) -> None:
        super().__init__(recipe)
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD([p], 0.1) for p in self.parameters() if p.requires_grad]


def fit(
    module: Module, folder: Path, callback: DeltaCallback, epochs: int = 2, path: Path | None = None, devices: int = 1
) -> Module:
    accumulate = {"accumulate_grad_batches": 2} if module.automatic_optimization else {}
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 4)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        **accumulate,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1), callback],
    )
    trainer.fit(module, loader, ckpt_path=path)
    return module


def run(case: str, folder: Path, epochs: int = 2, path: Path | None = None, **options) -> Module:
    recipe, mover = MOVERS[case]
    return fit(Module(recipe), folder, DeltaCallback(mover, **options), epochs, path)


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(map(torch.equal, *(state.values() for state in states)))


@pytest.mark.parametrize("case", MOVERS)
def test_it_goes_on_to_the_bit_without_the_base(case, tmp_path):
    whole = run(case, tmp_path / "whole")
    begun = run(case, tmp_path / "parts", epochs=1)
    assert not same(whole, begun)
    path = tmp_path / "parts" / "step=3.ckpt"
    held = torch.load(path, weights_only=True)["state_dict"]
    trained = {name for name, p in begun.named_parameters() if p.requires_grad}
    assert {name for name in held if not name.endswith("_extra_state")} == trained
    assert same(whole, run(case, tmp_path / "parts", path=path))


class Counting(Module):
    """Counts its samples, alone and in a collection."""

    def __init__(self, recipe) -> None:
        super().__init__(recipe)
        self.seen = torchmetrics.SumMetric()
        self.more = torchmetrics.MetricCollection({"sum": torchmetrics.SumMetric()})
        self.losses, self.all = torchmetrics.MeanMetric(), torchmetrics.CatMetric()

    def training_step(self, batch, batch_idx):
        self.seen.update(len(batch[0]))
        self.more.update(len(batch[0]))
        self.all.update(batch[1])
        output = super().training_step(batch, batch_idx)
        self.losses(output["loss"] if isinstance(output, dict) else output)  # with its graph
        return output


def test_metrics_count_every_sample_once(tmp_path):
    recipe, mover = MOVERS["rigl"]
    module = fit(Counting(recipe), tmp_path, DeltaCallback(mover))
    assert module.seen.compute() == module.more.compute()["sum"] == 2 * len(X)
    assert len(module.all.compute()) == 2 * len(X)
    assert module.losses.weight == 12  # batches


def test_its_steps_are_those_of_a_plain_loop(tmp_path):
    recipe, make = MOVERS["rigl"]
    module, other = run("rigl", tmp_path), Module(recipe)
    optimizer = other.configure_optimizers()
    mover = make(other, optimizer)
    for step in range(6):
        optimizer.zero_grad()
        for micro in (2 * step % 6, (2 * step + 1) % 6):
            x, y = X[4 * micro : 4 * micro + 4], Y[4 * micro : 4 * micro + 4]
            (nn.functional.cross_entropy(other.net(x), y) / 2).backward()
        optimizer.step()
        mover.step(lambda net, x=x, y=y: nn.functional.cross_entropy(net.net(x), y))
    supports = [[space.embedding.support() for _, space in subspaces(net)] for net in (module, other)]
    assert all(map(torch.equal, *supports))
    first = [space.embedding.support() for _, space in subspaces(Module(recipe))]
    assert not all(map(torch.equal, supports[0], first))
    for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_objective_is_given_the_batch(tmp_path):
    asked = []

    def objective(module: nn.Module, batch: list[Tensor]) -> Tensor:
        asked.append(batch[0])
        return module.net(batch[0]).square().sum()

    run("rigl", tmp_path, objective=objective)
    assert len(asked) == 3
    assert all(torch.equal(x, X[4 * i : 4 * i + 4]) for x, i in zip(asked, (3, 1, 5), strict=True))


BAD = {
    "no subspace": (
        lambda folder: fit(Module(lambda net: net), folder, DeltaCallback()),
        "model must have at least one registered subspace, got none: apply a recipe first",
    ),
    "another base": (
        lambda folder: fit(Module(SPARSE, base=1.0), folder, DeltaCallback(), path=folder / "step=3.ckpt"),
        "the model must be as the checkpoint left it, on the same base, got another net.0.bias: .*",
    ),
    "a mover": (
        lambda folder: run("rigl", folder, path=folder / "step=3.ckpt"),
        "training must go on with no mover, as the checkpoint was made, got one",
    ),
    "optimizers": (
        lambda folder: fit(TwoOptimizers(SPARSE), folder, DeltaCallback(MOVERS["rigl"][1])),
        "a mover must have one optimizer, got 3",
    ),
    "foreign": (
        lambda folder: run("rigl", folder, path=folder / "plain.ckpt"),
        "the checkpoint must be one of this callback, got one without 'subspace'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_go_on_is_refused_in_a_sentence(case, tmp_path):
    fit(Module(SPARSE), tmp_path, DeltaCallback(), epochs=1)
    foreign = torch.load(tmp_path / "step=3.ckpt", weights_only=True)
    del foreign["subspace"]
    torch.save(foreign, tmp_path / "plain.ckpt")
    call, message = BAD[case]
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(tmp_path)
