"""Jacobian spectra: against autograd's own Jacobian, and by hand; in a run, once at its start and once at its end."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from subspace import Key, materialize, methods, recipes, structured
from subspace.study import data, models
from subspace.study.data import Data, Tensors
from subspace.study.entries.entry import Choice
from subspace.study.execution.execute import execute
from subspace.study.reports.analyses.jacobian import rank_figure, spectra_figures, spectra_summary, spectra_table
from subspace.study.results.store import Store
from subspace.study.results.summary import summary_table
from subspace.study.results.tables import runs_table
from subspace.study.spec.study import Run, Training
from subspace.study.training import jacobian
from subspace.study.training.run import train
from tests.support.records import finished

INPUTS = torch.from_numpy(Key(0).normal(40 * 64, dtype="float32")).reshape(40, 1, 8, 8)
FEW = Data(Tensors(INPUTS[:30], torch.arange(30) % 3), Tensors(INPUTS[30:], torch.arange(10) % 3), 3)
TRAIN = Training(epochs=2, batch=10, jacobian=4)


@pytest.fixture(autouse=True, scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda choice: FEW)
        yield


def mlp(norm=False):
    return models.mlp(Key(0), num_classes=3, input_shape=(1, 8, 8), hidden=[20, 20], norm=norm)


def by_autograd(net, inputs):
    """torch.autograd's Jacobian of every sample on its own, and numpy's singular values."""
    found = []
    for sample in inputs:
        J = torch.autograd.functional.jacobian(lambda x: net(x[None])[0], sample)
        found.append(np.linalg.svd(J.flatten(1).double().numpy(), compute_uv=False))
    return np.array(found)


NETWORKS = {
    "mlp": mlp,
    "lenet5": lambda: nn.Sequential(nn.Upsample(28), models.lenet5(Key(0))),
    "resnet20 pruned": lambda: recipes.random_pruning(
        models.resnet20(Key(0), in_channels=1, blocks=1), density=0.2, seed=1
    ),
    "dctps": lambda: recipes.dctps(mlp(), density=0.1),
    "dctps, structured": lambda: structured(recipes.dctps(mlp(), density=0.1)),
    "more logits than inputs": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh(), nn.Linear(2, 90)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_singular_values_are_those_of_autograds_jacobian(name):
    torch.manual_seed(0)
    net = materialize(NETWORKS[name]()).eval()
    values = jacobian.singular_values(net, INPUTS[:3])
    expected = by_autograd(net, INPUTS[:3])
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_singular_values_of_a_linear_network_are_those_of_its_matrix():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    expected = torch.linalg.svdvals(net[1].weight.double())
    torch.testing.assert_close(jacobian.singular_values(net, INPUTS[:2]), expected.expand(2, 5), rtol=1e-4, atol=1e-6)


def test_the_first_jacobian_of_a_deep_dct_network_is_an_isometry_in_its_linear_part():
    """Semi-orthogonal layers of equal width keep all singular values 1."""
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64, bias=False) for _ in range(6)))
    recipes.dctps(net, density=0.01)
    values = jacobian.singular_values(jacobian.settled(net, INPUTS), INPUTS[:2])
    torch.testing.assert_close(values, torch.ones(2, 64, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_batch_norms_are_at_the_statistics_of_the_inputs_and_the_model_is_left_alone():
    model = mlp(norm=True)
    model.norms[0].running_mean.fill_(5)
    before, mode = copy.deepcopy(model.state_dict()), model.training
    net = jacobian.settled(model, INPUTS)
    assert not any(p.requires_grad for p in net.parameters())  # or every row of J keeps a graph
    first = model.layers[0](INPUTS.flatten(1))
    torch.testing.assert_close(net.norms[0].running_mean, first.mean(0).detach())
    torch.testing.assert_close(net.norms[0].running_var, first.var(0).detach())
    assert not any(module.training for module in net.modules())
    assert model.training == mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone, together = net(INPUTS[:1]), net(INPUTS[:7])[:1]
    torch.testing.assert_close(alone, together)  # no sample sees another


def run(name="dctps", density=0.1, **fields):
    options = {"name": name, "steps": 2} if name == "synflow" else {"name": name}
    chosen = Choice.of({"name": "mlp", "hidden": [20, 20], "norm": True}, "model")
    made = {"density": density} if name != "ordinary" else {}
    return Run(Choice.of(options, "method"), chosen, Choice("few"), train=TRAIN, **made, **fields)


@pytest.mark.parametrize("name", ["ordinary", "dctps", "synflow"])
def test_a_run_keeps_the_spectra_of_its_start_and_of_its_end(name):
    each = run(name)
    metrics = train(each)
    assert metrics["spectra"].keys() == {"initial", "trained"}
    assert np.array(metrics["spectra"]["initial"]).shape == (4, 3)
    model = mlp(norm=True)
    dense = models.build(each.model, FEW, Key(0).fold("init"))
    model.load_state_dict(dense.state_dict())
    if name == "dctps":
        recipes.dctps(model, density=0.1)
    if name == "synflow":
        recipes.synflow(model, methods.flow(1, 1, 8, 8), density=0.1, steps=2)
    order = torch.from_numpy(Key(0).fold("jacobian").fold("test").permutation(10))[:4]
    expected = by_autograd(jacobian.settled(model, INPUTS[:30]), FEW.test.batch(order)[0])
    np.testing.assert_allclose(metrics["spectra"]["initial"], expected, rtol=1e-3, atol=1e-5)
    assert metrics["spectra"]["initial"] != metrics["spectra"]["trained"]
    plain = train(replace(each, train=replace(TRAIN, jacobian=0)))
    assert plain["spectra"] == {}
    assert [e["train_loss"] for e in plain["epochs"]] == [e["train_loss"] for e in metrics["epochs"]]


class Stopping:
    """A keeper that ends the run after its first epoch, as a crash would, and hands over what it kept."""

    def __init__(self):
        self.state = None

    def load(self):
        return self.state

    def save(self, state):
        if self.state is None:
            self.state = copy.deepcopy(state)
            raise KeyboardInterrupt


def test_a_resumed_run_has_the_spectrum_of_its_start():
    keeper = Stopping()
    with pytest.raises(KeyboardInterrupt):
        train(run(), keeper)
    assert train(run(), keeper)["spectra"] == train(run())["spectra"]


def test_more_samples_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="jacobian must be at most 10, the test samples, got 11"):
        train(replace(run(), train=replace(TRAIN, jacobian=11)))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("records"))
    runs = [run("ordinary"), *(run("dctps", density, seed=seed) for density in (0.1, 0.5) for seed in (0, 1))]
    for each in runs:
        execute(each, store.folder)
    return [store.read(each) for each in runs]


@pytest.mark.slow
def test_the_long_table_has_every_singular_value_once(records):
    table = spectra_table(records)
    assert len(table) == 5 * 2 * 4 * 3
    one = table[(table["hash"] == run("dctps", 0.5, seed=1).hash) & (table["when"] == "trained")]
    values = one.sort_values(["sample", "rank"])["value"].to_numpy().reshape(4, 3)
    np.testing.assert_array_equal(values, records[4]["metrics"]["spectra"]["trained"])
    assert (np.diff(values, axis=1) <= 0).all()


def test_the_runs_table_has_for_how_many_samples_they_were_asked(records):
    assert runs_table(records)["jacobian"].tolist() == [4] * 5


def test_the_summary_is_of_medians_over_samples_and_seeds(records):
    summary = spectra_summary(spectra_table(records))
    assert len(summary) == 3 * 2
    row = summary[(summary["density"] == 0.5) & (summary["when"] == "trained")].iloc[0]
    values = np.array([record["metrics"]["spectra"]["trained"] for record in records[3:]]).reshape(8, 3)
    assert row["largest"] == pytest.approx(np.median(values[:, 0]))
    assert row["smallest"] == pytest.approx(np.median(values[:, 2]))
    assert row["condition"] == pytest.approx(np.median(values[:, 0] / values[:, 2]))
    assert row["rms"] == pytest.approx(np.median(np.sqrt((values**2).mean(1))))


@pytest.mark.slow
def test_a_dead_network_has_an_infinite_condition(records):
    table = spectra_table(records[:1])
    table["value"] = 0.0
    summary = spectra_summary(table)
    assert (summary["condition"] == np.inf).all()
    assert (summary["rank"] == 0).all()
    table["value"] = np.where(table["rank"] == 3, 1e-9, 2.0)  # what rounding leaves of a 0
    summary = spectra_summary(table)
    assert (summary["condition"] == np.inf).all()
    assert (summary["rank"] == 2).all()
    assert all(isinstance(figure, Figure) for _, figure in spectra_figures(table))


def test_the_figure_has_a_line_for_every_method_at_every_time_and_size(records):
    ((title, figure),) = spectra_figures(spectra_table(records))
    assert title.startswith("Singular values of the Jacobian, logits by inputs: few, mlp")
    panels = {axes.get_title("left"): axes for axes in figure.axes}
    assert list(panels) == [f"{when}, density {p} %" for when in ("initial", "trained") for p in (50, 10)]
    table = spectra_table(records)
    for title, axes in panels.items():
        when, percent = title.split(", density ")
        drawn = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
        assert drawn.keys() == {"ordinary (dense)", "DCTpS, EPL"}
        own = table[(table["when"] == when) & (table["density"] == float(percent.rstrip(" %")) / 100)]
        np.testing.assert_allclose(drawn["DCTpS, EPL"], own.groupby("rank")["value"].median())


def test_runs_without_spectra_give_no_rows():
    assert len(spectra_table([])) == 0
    assert isinstance(spectra_table([]), pd.DataFrame)


def test_accuracy_is_drawn_against_rank_and_condition_and_without_full_rank_there_is_no_condition():
    mlp, digits = Choice("mlp"), Choice("digits")
    kept = {"dctps": [3.0, 2.0, 1.0], "rigl": [2.0, 1.0, 0.0]}
    records = [
        finished(Run(Choice(name), mlp, digits, 0.1, seed=seed), last, spectra={"initial": [kept[name]]})
        for name, last in (("dctps", 0.8), ("rigl", 0.3))
        for seed in (0, 1)
    ]
    summary = spectra_summary(spectra_table(records))
    rank, condition = rank_figure(summary, summary_table(runs_table(records))).axes
    points = [
        {
            line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])
            for line in axes.lines
            if line.get_marker() != "None"
        }
        for axes in (rank, condition)
    ]
    ranks = {label: (round(x), round(y, 9)) for label, (x, y) in points[0].items()}
    assert ranks == {"DCTpS, EPL": (3, 80), "RigL, ERK": (2, 30)}
    assert points[1] == {"DCTpS, EPL": (3, pytest.approx(80))}
