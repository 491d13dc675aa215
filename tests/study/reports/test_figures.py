"""Figures show what the tables say."""

import itertools

import matplotlib
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subspace.study.entries.entry import Choice
from subspace.study.methods import BASIC, METHODS
from subspace.study.reports.figures import images, plots
from subspace.study.reports.figures.all import pictures
from subspace.study.reports.figures.layer_densities import density_per_tensor
from subspace.study.reports.figures.looks import LOOKS, METHOD_LOOKS, assign_looks
from subspace.study.reports.figures.pareto import accuracy_against_cost, front
from subspace.study.reports.figures.plots import accuracy_against_size, spaced
from subspace.study.reports.figures.training_curves import training_curves
from subspace.study.results.equal_cost import COSTS
from subspace.study.results.summary import summary_table
from subspace.study.results.tables import epochs_table, runs_table, tensors_table
from subspace.study.spec.study import Run, Study, Training
from tests.support.records import failure, finished


def run(name, density=None, seed=0):
    return Run(Choice(name), density=density, seed=seed, train=Training(epochs=2))


RECORDS = [
    finished(run("dctps", 0.01, 0), 0.5, classes=10),
    finished(run("dctps", 0.01, 1), 0.7, classes=10),
    failure(run("dctps", 0.01, 2)),
    finished(run("dctps", 0.1, 0), 0.8, classes=10),
    finished(run("ordinary"), 0.96, classes=10),
]
TABLE = summary_table(runs_table(RECORDS))


def every(methods, **grid):
    """The records of a grid."""
    return [finished(one) for one in Study("s", methods, seeds=1, train=Training(epochs=2), **grid).runs()]


def named(axes):
    return {text.get_text() for text in axes.texts}


def note(figure):
    return figure.get_supxlabel()


def long_table(make, records):
    """A long table with the column method."""
    return make(records).merge(runs_table(records)[["hash", "method"]], on="hash")


def test_accuracy_is_drawn_in_per_cent_with_the_band_of_its_seeds():
    figure = accuracy_against_size(TABLE, "a title")
    (axes,) = figure.axes
    heights = {tuple(round(float(y), 9) for y in line.get_ydata()) for line in axes.lines}
    assert {(10.0, 10.0), (96.0, 96.0), (60.0, 80.0)} <= heights  # chance, dense, DCTpS
    (band,) = axes.collections
    band = band.get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((50.0, 80.0))
    assert axes.get_xscale() == "log"
    assert axes.xaxis_inverted()
    assert named(axes) == {"chance", "ordinary (dense)", "DCTpS, EPL"}
    assert note(figure).endswith("not drawn: 1 failed run")


def test_the_axis_says_so_where_the_density_asked_for_is_not_the_one_realised():
    exact = TABLE.assign(realised_density=TABLE["density"])
    (axes,) = accuracy_against_size(exact, "a title").axes
    assert axes.get_xlabel().startswith("density: share of the weights that train")
    away = TABLE.assign(realised_density=TABLE["density"] * 2)
    (axes,) = accuracy_against_size(away, "a title").axes
    assert axes.get_xlabel().startswith("density asked for")


def test_accuracy_is_drawn_against_dims_as_well():
    table = summary_table(runs_table(every(BASIC, dims=(10, 200, 1000))))
    (axes,) = accuracy_against_size(table, "a title", "dim").axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "200", "1,000"]
    assert sum(list(line.get_xdata()) == [10, 200, 1000] for line in axes.lines) == len(BASIC) - 1


@pytest.mark.slow
def test_many_methods_are_drawn_in_a_panel_for_each_family_with_the_others_in_grey():
    table = summary_table(runs_table(every(tuple(METHODS), densities=(0.1, 0.2))))
    figure = accuracy_against_size(table, "a title")
    families = list(dict.fromkeys(method.family for method in METHODS.values()))[1:]
    assert [axes.get_title(loc="left") for axes in figure.axes] == families
    for axes, family in zip(figure.axes, families, strict=True):
        own = {method.label for method in METHODS.values() if method.family == family}
        assert named(axes) == {"chance", "ordinary (dense)", *own}
        curves = [line for line in axes.lines if list(line.get_xdata()) == [0.1, 0.2]]
        assert len(curves) == len(METHODS) - 1
        assert sum(line.get_color() != plots.PALE for line in curves) == len(own)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_the_pareto_front_is_what_nothing_beats(points):
    table = pd.DataFrame(points, columns=["cost", "mean"], dtype=float)
    unbeaten = {
        (cost, mean)
        for cost, mean in points
        if not any((c <= cost and m >= mean) and (c, m) != (cost, mean) for c, m in points)
    }
    assert list(front(table, "cost").itertuples(index=False, name=None)) == sorted(unbeaten)


@pytest.mark.parametrize("cost", COSTS)
def test_accuracy_against_cost_has_every_entry_at_what_it_cost_and_the_front(cost):
    (axes,) = accuracy_against_cost(TABLE, "a title", cost).axes
    drawn = {tuple(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines}
    own = TABLE[TABLE["method"] == "dctps"].sort_values(COSTS[cost])
    assert tuple(zip(own[COSTS[cost]], 100 * own["mean"], strict=True)) in drawn
    best = front(TABLE, COSTS[cost])
    assert tuple(zip(best[COSTS[cost]], 100 * best["mean"], strict=True)) in drawn
    assert named(axes) == {"chance", "ordinary (dense)", "DCTpS, EPL"}


@pytest.mark.parametrize("measure", ["test_accuracy", "train_loss"])
def test_training_curves_are_means_over_seeds_per_epoch(measure):
    epochs = long_table(epochs_table, RECORDS[:2])
    (axes,) = training_curves(epochs, "a title", measure).axes
    means = epochs.groupby("epoch")[measure].mean() * (100 if measure == "test_accuracy" else 1)
    (curve,) = [line for line in axes.lines if list(line.get_xdata()) == [1, 2]]
    assert list(curve.get_ydata()) == pytest.approx(list(means))


def test_densities_per_tensor_are_those_realised_and_none_is_below_the_axis():
    records = every(("ordinary", "dctps"), densities=(0.001,))
    tensors = long_table(tensors_table, records)
    tensors.loc[tensors["name"] == "conv1.weight", "tensor_density"] = 0.0
    (axes,) = density_per_tensor(tensors, "a title").axes
    (dots,) = [line for line in axes.lines if len(line.get_xdata()) == 5]
    realised = list(tensors.loc[tensors["method"] == "dctps", "tensor_density"])
    assert list(dots.get_ydata()[1:]) == pytest.approx(realised[1:])
    assert 0 < dots.get_ydata()[0] < min(realised[1:])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert "none" in named(axes)


def test_a_tensor_has_its_place_whatever_else_a_method_trains():
    tensors = long_table(tensors_table, every(("dctps", "random_pruning_epl"), densities=(0.001,)))
    own = tensors["method"] == "dctps"
    bias = tensors[own & (tensors["place"] == 0)].assign(name="conv1.bias", tensor_density=0.5)
    rest = tensors[own & (tensors["place"] > 0)].assign(place=tensors["place"] + 1)
    fuller = pd.concat([tensors[own & (tensors["place"] == 0)], bias.assign(place=1), rest, tensors[~own]])
    (axes,) = density_per_tensor(fuller, "a title").axes
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    assert names == ["conv1", "conv1.bias", "conv2", "conv3", "fc1", "fc2"]
    at = {len(line.get_xdata()): line.get_xdata().round() for line in axes.lines if len(line.get_xdata()) in (5, 6)}
    assert at[5].tolist() == [0, 2, 3, 4, 5]


@pytest.mark.filterwarnings("error::UserWarning")
def test_long_names_of_tensors_and_thetas_larger_than_one_leave_room_for_the_figure():
    tensors = long_table(tensors_table, every(("ordinary", "dctps"), densities=(0.001,)))
    tensors["name"] = "encoder.layer.5.attention.output." * 3 + tensors["name"]
    tensors.loc[tensors["place"] == 4, "tensor_density"] = 60.0
    (axes,) = density_per_tensor(tensors, "a title").axes
    (dots,) = [line for line in axes.lines if len(line.get_xdata()) == 5]
    assert dots.get_ydata()[-1] == 1
    assert all(len(tick.get_text()) == 24 for tick in axes.get_xticklabels())
    assert axes.get_position().height > 0.3


@given(st.lists(st.floats(0, 1), max_size=15), st.floats(0.01, 0.06))
def test_names_of_lines_never_touch_and_stay_in_the_plot(heights, gap):
    heights = sorted(heights)
    moved = spaced(heights, gap)
    assert all(upper - lower >= gap - 1e-9 for lower, upper in itertools.pairwise(moved))
    assert all(0 <= height <= 1 for height in moved)
    if all(upper - lower >= gap for lower, upper in itertools.pairwise(heights)):
        assert moved == heights


def test_a_study_has_its_figures_for_every_data_set_and_network_with_words_for_each():
    records = every(("ordinary", "dctps"), densities=(0.1, 0.01), models=("lenet5", {"name": "mlp", "width": 3}))
    runs = runs_table(records)
    found = list(pictures(runs, epochs_table(records), tensors_table(records), summary_table(runs)))
    names = [picture.name for picture in found]
    ends = ["accuracy-density", "accuracy-bytes", "accuracy-flops", "accuracy-inference"]
    for density in ("0.1", "0.01"):
        ends += [f"{name}-density-{density}" for name in ("curves-accuracy", "curves-loss", "tensors")]
    assert names == [f"mnist5k-{model}-{end}" for model in ("lenet5", "mlp-width-3") for end in ends]
    assert "DCTpS, EPL" in found[0].alt


@pytest.mark.slow
def test_a_method_has_the_same_colour_in_all_figures():
    records = every(("freezenet", "dctps", "ordinary", "set"), densities=(0.1, 0.01))
    runs = runs_table(records)
    found = list(pictures(runs, epochs_table(records), tensors_table(records), summary_table(runs)))
    for picture in found:
        (axes,) = picture.figure.axes
        names = [text.get_text() for text in axes.texts if text.get_text() in set(runs["label"])]
        strokes = [line.get_color() for line in axes.lines if line.get_linestyle() == ":"][-len(names) :]
        colours = dict(zip(names, strokes, strict=True)) | {"ordinary (dense)": "black"}
        looks = assign_looks(reversed(colours))
        assert colours == {label: looks[label]["color"] for label in colours}, picture.name


def test_every_method_looks_like_no_other_and_the_same_beside_any():
    labels = [METHODS[name].label for name in METHOD_LOOKS]
    looks = assign_looks(labels)
    assert len({str(look) for look in looks.values()}) == len(looks) == len(METHOD_LOOKS)
    for label in labels:
        assert assign_looks(["one's own", label])[label] == looks[label]
        assert assign_looks(["one's own", label])["one's own"] != looks[label]


@given(st.lists(st.text(), unique=True, max_size=25), st.lists(st.sampled_from(list(METHODS)), unique=True, max_size=5))
def test_no_two_lines_of_a_figure_look_alike_as_long_as_there_are_looks(own, known):
    labels = [*own, *(METHODS[name].label for name in known)]
    looks = assign_looks(labels)
    assert len({str(look) for look in looks.values()}) >= min(len(set(labels)), len(LOOKS))


def test_a_figure_is_saved_with_the_same_bytes_and_leaves_no_setting_changed():
    before = dict(matplotlib.rcParams)
    first, second = (accuracy_against_size(TABLE, "a title") for _ in range(2))
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        content = images.saved(first, kind)
        assert content.startswith(start)
        assert images.saved(first, kind) == images.saved(second, kind) == content
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):  # nor is one taken over
        assert images.saved(accuracy_against_size(TABLE, "a title"), "svg") == content
    assert dict(matplotlib.rcParams) == before


def test_labels_are_text_whatever_they_contain():
    table = TABLE.assign(label=TABLE["label"] + r" $\frac <b>--><script>")
    figure = accuracy_against_size(table, r"$\oops")
    element = images.inline(images.saved(figure, "svg"), "here")
    assert "script" not in element
    assert r"DCTpS, EPL $\frac <b>--><script>" in named(figure.axes[0])
