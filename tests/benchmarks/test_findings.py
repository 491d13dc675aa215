"""The page of findings says what the committed runs say, and these are the runs of the presets."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import channels, findings, small_files, sweeps
from subspace.study.entries.entry import Choice
from subspace.study.results.tables import runs_table
from subspace.study.spec import files
from subspace.study.spec.presets import presets
from subspace.study.spec.study import Run, Training
from tests.support.records import finished

PAGE = findings.PAGE.read_text()
OWN = {"channels", "tuning"}  # of no preset, as studies of bytes with a method or networks of their own
TABLES = [found for found in findings.TABLE.finditer(PAGE) if found[4] not in ("dimension", "files")]
KNOWN = {name.replace("/", "-"): name for name in presets()}
KNOWN |= {path.stem: path for path in findings.HERE.glob("*.toml")}
STUDIES = sorted({study for found in TABLES for study in found[2].split()} - OWN)


@pytest.mark.slow
def test_every_table_of_the_page_is_what_the_runs_say():
    assert len(STUDIES) > 1
    assert findings.renewed(PAGE) == PAGE


def test_the_page_shows_pictures_that_are_made_of_the_runs():
    pictures = findings.PICTURE.findall(PAGE)
    assert {study for study, _ in pictures} <= {path.name for path in findings.RESULTS.iterdir()}
    assert any(findings.drawn(study, name) for study, name in pictures)


@pytest.mark.parametrize("study", STUDIES)
def test_the_runs_are_all_of_those_of_the_preset(study):
    asked = files.study(files.read(findings.RESULTS / study / "study.toml"))
    known = files.study(files.read(KNOWN[max(filter(study.startswith, KNOWN), key=len)]))
    train = dataclasses.replace(known.train, learning_rate=asked.train.learning_rate, device=asked.train.device)
    assert dataclasses.replace(known, name=study, train=train) == asked
    table = findings.runs(study)
    (version,) = table["version"].unique()
    hashes = [dataclasses.replace(run, version=version).hash for run in asked.runs()]
    assert table["hash"].tolist() == hashes
    assert set(table["status"]) == {"finished"}


def records(**train):
    """Two methods at two densities on two networks, two seeds each, and the dense one."""
    for model in (Choice("mlp", {"norm": True}), Choice("mlp")):
        for seed in (0, 1):
            yield finished(Run(Choice("ordinary"), model, Choice("digits"), seed=seed, train=Training(**train)), 0.9)
            for name, last in (("dctps", 0.8), ("rigl", 0.7)):
                for density in (0.1, 0.001):
                    run = Run(Choice(name), model, Choice("digits"), density, seed=seed, train=Training(**train))
                    yield finished(run, last + density + 0.02 * seed)


def test_a_table_has_a_row_for_every_method_and_a_column_for_every_size(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "RESULTS", tmp_path)
    (tmp_path / "a").mkdir()
    runs_table(records()).to_csv(tmp_path / "a" / "runs.csv", index=False)
    page = "before\n<!-- table: a; digits, mlp; accuracy -->\nstale\n<!-- end -->\nafter\n"
    assert findings.renewed(page) == (
        "before\n<!-- table: a; digits, mlp; accuracy -->\n"
        "| method | 0.1 | 0.001 |\n"
        "| --- | ---: | ---: |\n"
        "| ordinary (dense) | 90.0 ± 0.0 |  |\n"
        "| RigL, ERK | 81.0 ± 1.4 | 71.1 ± 1.4 |\n"
        "| DCTpS, EPL | 91.0 ± 1.4 | 81.1 ± 1.4 |\n"
        "<!-- end -->\nafter\n"
    )
    talk = findings.made("a", "digits, mlp (norm=True)", "talk").splitlines()
    assert [line.split(" | ")[1:3] for line in talk[2:]] == [["+0.0", "+0.0"], ["-9.0", "-18.9"], ["+1.0", "-8.9"]]
    with pytest.raises(
        ValueError, match=r"place must be one of digits, mlp \(norm=True\); digits, mlp, got 'digits, m'"
    ):
        findings.made("a", "digits, m", "accuracy")


def test_networks_at_equal_bytes_are_put_with_the_least_budget_that_their_file_fits():
    text, gpt = Choice("stdlib"), {width: Choice("gpt", {"width": width}) for width in (6, 12, 96)}
    kept = [
        (Run(Choice("dctps"), gpt[96], text, bytes=size, seed=seed, train=Training(theta_bits=6)), size - 9, loss)
        for size, loss in ((1_000, 3.0), (10_000, 2.0))
        for seed in (0, 1)
    ]
    kept += [
        (Run(Choice("ordinary"), gpt[width], text, train=Training(theta_bits=6, learning_rate=rate)), size, loss)
        for width, size, rate, loss in ((6, 900, 0.01, 2.5), (6, 900, 0.1, 3.5), (12, 1_001, 0.01, 1.0))
    ]
    records = [finished(run, file_bytes=size) for run, size, _ in kept]
    for record, (run, _, loss) in zip(records, kept, strict=True):
        record["metrics"]["epochs"][-1]["test_loss"] = (loss + 0.1 * run.seed) * math.log(2)
    found = small_files.cases(runs_table(records))
    shown = found[["at_most", "label", "width", "seeds"]].to_numpy().tolist()
    assert shown == [
        [1_000, "ordinary (dense)", 6, 1],
        [1_000, "DCTpS, EPL", 96, 2],
        [1_000, "ordinary (dense)", 6, 1],
        [10_000, "ordinary (dense)", 12, 1],
        [10_000, "DCTpS, EPL", 96, 2],
    ]
    assert found["mean"].tolist() == pytest.approx([2.5, 3.05, 3.5, 1.0, 2.05])
    lines = small_files.table(runs_table(records)).splitlines()
    assert lines[3].startswith("| 1,000 | DCTpS, EPL | 61,470 |")
    assert "| 3.050 ± 0.071 | 2 |" in lines[3]
    (axes,) = small_files.figure(runs_table(records)).axes
    assert curves(axes) == {
        "ordinary (dense)": [(900, 2.5), (1_001, 1.0)],
        "DCTpS, EPL": [(991, 3.05), (9_991, 2.05)],
    }


def curves(axes):
    """The lines with a name: their points."""
    return {
        line.get_label(): list(zip(line.get_xdata(), line.get_ydata().round(6), strict=True))
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_accuracy_is_drawn_against_an_optimizers_rate_for_every_network_and_density():
    tables = [runs_table(records(learning_rate=rate, scaling="none")) for rate in (0.1, 0.001, 0.2)]
    tables[2]["optimizer"] = "SGD"  # which is another picture's
    runs = pd.concat(tables)
    figure = sweeps.rates(runs.assign(learning_rate=runs["learning_rate"].astype(float)), "Adam")
    assert [axes.get_title("left") for axes in figure.axes[:2]] == [
        "digits, mlp (norm=True)\ndensity 10 %",
        "digits, mlp (norm=True)\ndensity 0.1 %",
    ]
    for axes, (dctps, rigl) in zip(figure.axes, [(91, 81), (81.1, 71.1)] * 2, strict=True):
        assert curves(axes) == {
            "ordinary (dense)": [(0.001, 90), (0.1, 90)],
            "DCTpS, EPL": [(0.001, dctps), (0.1, dctps)],
            "RigL, ERK": [(0.001, rigl), (0.1, rigl)],
        }


def test_accuracy_is_drawn_against_what_an_offset_costs():
    def entry(offset, seed, accuracy, flops):
        run = Run(Choice("dctps", {"offset": offset}), Choice("mlp"), Choice("digits"), 0.01, seed=seed)
        return finished(run, accuracy, flops_forward=flops)

    costs = {"dct": (0.8, 900.0), "haar": (0.5, 300.0)}
    entries = [entry(name, seed, low + 0.1 * seed, flops) for name, (low, flops) in costs.items() for seed in (0, 1)]
    (axes,) = sweeps.offset_costs(runs_table(entries)).axes
    assert curves(axes) == {"dct": [(900, 85)], "haar": [(300, 55)]}
    ranges = [segment.tolist() for drawn in axes.collections[-2:] for segment in drawn.get_segments()]
    assert np.allclose(ranges, [[[900, 80], [900, 90]], [[300, 50], [300, 60]]])


def test_the_error_is_drawn_by_basis_for_every_method_that_chooses():
    def entry(basis, seed, accuracy):
        run = Run(Choice("synflow", {"basis": basis}), Choice("mlp"), Choice("digits"), 0.01, seed=seed)
        return finished(run, accuracy)

    means = {"identity": 0.7, "dct": 0.9}
    entries = [entry(basis, seed, mean + 0.04 * seed - 0.02) for basis, mean in means.items() for seed in (0, 1)]
    entries += [finished(Run(Choice("ordinary"), Choice("mlp"), Choice("digits"), seed=seed), 0.95) for seed in (0, 1)]
    figure = sweeps.bases(runs_table(entries))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["SynFlow"]
    drawn = {bars.get_label(): bars for bars in axes.containers}
    for name, (low, middle, high) in {"weights": (28, 30, 32), "DCT": (8, 10, 12)}.items():
        line, _, (reach,) = drawn[name].lines
        assert line.get_ydata() == pytest.approx([middle])
        assert reach.get_segments()[0][:, 1] == pytest.approx([low, high])


def test_bits_are_drawn_against_density_beside_dense_training():
    def entry(name, seed, bits, density=None):
        run = Run(Choice(name), Choice("lstm_lm"), Choice("stdlib"), density, seed=seed)
        record = finished(run, 0.4)
        record["metrics"]["epochs"][-1]["test_loss"] = math.log(2) * bits
        return record

    entries = [entry("ordinary", seed, 3 + seed) for seed in (0, 1)]
    entries += [entry("rigl", seed, bits + seed, at) for at, bits in ((0.1, 4), (0.01, 5)) for seed in (0, 1)]
    (axes,) = sweeps.bits_of_text(runs_table(entries)).axes
    drawn = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(line, [[0.01, 5.5], [0.1, 4.5]]) for line in drawn)
    assert any(np.allclose(line, [[0, 3.5], [1, 3.5]]) for line in drawn)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1 %", "10 %"]


def test_bits_and_dimensions_have_tables_too(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "RESULTS", tmp_path)
    (tmp_path / "a").mkdir()
    made = list(records())
    for number, record in enumerate(made):
        record["metrics"]["epochs"][-1]["test_loss"] = math.log(2) * (1 + number % 2)
    runs_table(made).to_csv(tmp_path / "a" / "runs.csv", index=False)
    assert "| ordinary (dense) | 1.500 ± 0.707 |" in findings.made("a", "digits, mlp", "bits")
    found = {"data": "digits", "model": "mlp", "label": "random subspace", "ordinary": 0.9, "seeds": 3, "trainings": 20}
    rows = [found | {"dim": 120.4, "low": 90.2, "high": 160.0}, found | {"note": "dims must reach it"}]
    pd.DataFrame(rows).to_csv(tmp_path / "a" / "dimension.csv", index=False)
    lines = findings.made("a", "digits, mlp", "dimension").splitlines()
    assert lines[2] == "| digits | mlp | random subspace | 90.0 | 120 [90, 160] | 3 | 20 |"
    assert "dims must reach it" in lines[3]


@pytest.mark.parametrize(("cost", "column"), [("bytes", "file_bytes"), ("flops", "flops_total"), ("time", "seconds")])
def test_accuracy_is_drawn_against_cost_for_every_method_kind_and_width(cost, column):
    def entry(hidden, norm, dim, seed):
        model = Choice("mlp", {"hidden": hidden, "norm": norm})
        return finished(Run(Choice("dctps"), model, Choice("digits"), dim=dim, seed=seed), dim / 1000 + 0.02 * seed)

    grid = [
        (hidden, norm, dim, s) for hidden in ([5, 5], [9]) for norm in (True, False) for dim in (9, 90) for s in (0, 1)
    ]
    runs = runs_table(entry(*one) for one in grid)
    figure = sweeps.widths(runs, cost)
    assert [axes.get_title("left") for axes in figure.axes] == [
        "with batch-norms\nDCTpS, EPL",
        "without batch-norms\nDCTpS, EPL",
    ]
    spent = runs[runs["seed"] == 0].groupby("dim")[column].mean()
    points = sorted(zip(spent, [1.9, 10.0], strict=True))
    for axes in figure.axes:
        assert curves(axes) == {"5-5": points, "9": points}


def test_effective_channels_are_counted_before_norms_over_samples_and_places():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1, bias=False), torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).reshape(3, 2, 1, 1))
    inputs = torch.zeros(1, 2, 2, 1)
    inputs[0, 0, 0, 0], inputs[0, 1, 0, 0], inputs[0, 1, 1, 0] = 1, 1, 1  # energies 1, 2 and 0
    found = channels.channels(model, inputs)
    assert found == {"0.weight": (pytest.approx(9 / 5), 3), "2.weight": (1.0, 1)}
