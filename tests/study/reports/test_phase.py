"""The phase diagram: shares by hand from records whose accuracies are known, and its picture."""

import pytest

from subspace.study.entries.entry import Choice
from subspace.study.reports.analyses.phase import phase_diagrams, phase_table
from subspace.study.results.tables import runs_table
from subspace.study.spec.study import Run
from tests.support.records import failure, finished

MLP = Choice("mlp"), Choice("digits")


def subspace_runs(dim, accuracies, **options):
    runs = [Run(Choice("random_subspace", options), *MLP, dim=dim, seed=seed) for seed in range(len(accuracies))]
    return [finished(run, accuracy) for run, accuracy in zip(runs, accuracies, strict=True)]


DENSE = [finished(Run(Choice("ordinary"), *MLP, seed=seed), accuracy) for seed, accuracy in enumerate([0.9, 0.8])]
RECORDS = [*DENSE, *subspace_runs(5, [0.46, 0.62]), *subspace_runs(10, [0.9, 0.79])]


def test_shares_are_of_the_seeds_that_reach_a_part_of_their_own_ordinary_training():
    table = phase_table(runs_table(RECORDS), targets=[0.5, 0.75, 1.0])
    found = {(row["dim"], row["target"]): (row["share"], row["runs"]) for _, row in table.iterrows()}
    assert found == {
        **{(5, 0.5): (1.0, 2), (5, 0.75): (0.5, 2), (5, 1.0): (0.0, 2)},
        **{(10, 0.5): (1.0, 2), (10, 0.75): (1.0, 2), (10, 1.0): (0.5, 2)},
    }


def test_a_run_that_failed_does_not_reach_its_target():
    broken = failure(Run(Choice("random_subspace"), *MLP, dim=5, seed=1))
    table = phase_table(runs_table([*DENSE, *subspace_runs(5, [0.9]), broken]), targets=[0.5])
    assert table["share"].tolist() == [0.5]


def test_a_method_has_a_panel_and_a_network_a_figure():
    records = [*RECORDS, *subspace_runs(5, [0.9, 0.8], offset="initial", burn_in=1)]
    figures = dict(phase_diagrams(phase_table(runs_table(records))))
    assert list(figures) == ["The share of seeds that reach a target: digits, mlp"]
    titles = [axes.get_title(loc="left") for axes in next(iter(figures.values())).axes]
    assert titles == ["random subspace", "random subspace, offset=initial, burn_in=1"]


def test_every_size_in_bytes_has_its_own_share():
    sized = [(4000, 0.9), (6000, 0.1)]
    runs = [
        (Run(Choice("random_subspace"), *MLP, bytes=size, seed=seed), last) for size, last in sized for seed in (0, 1)
    ]
    table = phase_table(runs_table([*DENSE, *(finished(*each) for each in runs)]), targets=[0.5])
    assert table[["bytes", "runs", "share"]].values.tolist() == [[4000, 2, 1.0], [6000, 2, 0.0]]
    ((_, figure),) = phase_diagrams(table)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["4,000", "6,000"]


def test_without_ordinary_training_of_a_seed_there_is_no_target():
    with pytest.raises(ValueError, match="runs must have ordinary training of every seed, got none of seed 1"):
        phase_table(runs_table([DENSE[0], *subspace_runs(5, [0.5, 0.5])]))
