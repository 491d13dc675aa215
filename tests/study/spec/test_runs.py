"""Laws of a run's configuration: it is all of it, it survives JSON and TOML, and its hash sees every field."""

import dataclasses
import json
import warnings

import pytest
import torch

import subspace
from subspace import Key
from subspace.study import models
from subspace.study.data import Tensors
from subspace.study.entries.entry import Choice
from subspace.study.methods import BASIC, METHODS, method
from subspace.study.methods.setting import Setting
from subspace.study.spec.study import Run, Study, Training, label

RUN = Run(Choice("dctps"), density=0.01)
OTHER = {
    "bytes": 9,
    "method": Choice("freezenet"),
    "model": Choice("other"),
    "data": Choice("other", {"train": 9}),
    "density": 0.02,
    "dim": 9,
    "seed": 1,
    "train": Training(epochs=7),
    "version": "other",
}
OTHER_TRAINING = {
    "theta_bits": 6,
    "epochs": 9,
    "batch": 9,
    "optimizer": {"name": "SGD", "momentum": 0.9},
    "learning_rate": 9.0,
    "scaling": "none",
    "schedule": {"name": "StepLR", "step_size": 9},
    "validation": 0.1,
    "structured": False,
    "device": "cuda",
    "threads": 2,
    "processes": 2,
    "jacobian": 3,
}


def run(name, **fields):
    return Run(Choice(name), **fields)


def test_the_hash_changes_with_every_field():
    assert OTHER.keys() == {field.name for field in dataclasses.fields(Run)}
    assert OTHER_TRAINING.keys() == {field.name for field in dataclasses.fields(Training)}
    changed = [
        dataclasses.replace(RUN, **{name: value})
        for name, value in OTHER.items()
        if name not in ("density", "dim", "bytes")
    ]
    changed += [run("dctps", density=0.02), run("dctps", dim=9), run("dctps", bytes=9)]
    changed += [run("rigl", density=0.01), Run(Choice("rigl", {"delta_t": 9}), density=0.01)]
    changed += [
        dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, **{name: value}))
        for name, value in OTHER_TRAINING.items()
    ]
    assert len({run.hash for run in [RUN, *changed]}) == 1 + len(changed)


def test_where_the_data_are_is_no_part_of_a_configuration():
    here, there, other = (
        Run(Choice("dctps"), data=Choice("cifar10", options), density=0.1)
        for options in ({"data_dir": "/here"}, {"data_dir": "/there", "download": True}, {"augment": False})
    )
    assert here.hash == there.hash != other.hash
    assert (here.configuration()["data"]["options"], here.data.options) == ({}, {"data_dir": "/here"})
    own = [Run(Choice("dctps"), data=Choice("mine:data", {"data_dir": folder}), density=0.1) for folder in "ab"]
    assert own[0].hash != own[1].hash  # what a function of one's own reads there is its own business


def test_the_hash_is_of_values_and_not_of_how_they_were_written():
    assert run("dctps", density=1).hash == run("dctps", density=1.0).hash
    for one, other in (
        ({"optimizer": "SGD"}, {"optimizer": {"name": "SGD"}}),
        ({"validation": 0}, {"validation": 0.0}),
    ):
        assert run("ordinary", train=Training(**one)).hash == run("ordinary", train=Training(**other)).hash
    assert Run(Choice("rigl", dict(METHODS["rigl"].options)), density=0.1) == run("rigl", density=0.1)
    one, other = (
        {"name": "SGD", "momentum": 0.9, "nesterov": True},
        {"nesterov": True, "momentum": 0.9, "name": "SGD"},
    )
    assert run("dctps", density=1, train=Training(optimizer=one)) == run(
        "dctps", density=1, train=Training(optimizer=other)
    )
    assert (
        run("dctps", density=1, train=Training(optimizer=one)).hash
        == run("dctps", density=1, train=Training(optimizer=other)).hash
    )
    assert len(RUN.hash) == 16
    assert set(RUN.hash) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "run",
    [
        RUN,
        run("ordinary", seed=3),
        run("random_subspace", dim=7, seed=7, train=Training(2, 8, learning_rate=0.5)),
        run("force", density=0.1),
        Run(Choice("rigl", {"delta_t": 9}), Choice("resnet", {"depth": 8}), Choice("x:y", {"z": [1]}), density=0.1),
        run("dctps", density=1.0, train=Training(**OTHER_TRAINING)),
    ],
)
def test_a_run_survives_json(run):
    again = Run.parse(json.loads(json.dumps(run.configuration())))
    assert again == run
    assert again.hash == run.hash


def test_the_version_is_part_of_the_configuration():
    assert RUN.configuration()["version"] == subspace.__version__


def test_the_default_study_is_six_methods_three_densities_three_seeds_and_dense_once_per_seed():
    runs = Study().runs()
    assert len(runs) == len(set(runs)) == 3 + 5 * 3 * 3
    assert [(run.density, run.seed) for run in runs if run.method.name == "ordinary"] == [
        (None, 0),
        (None, 1),
        (None, 2),
    ]
    assert {(run.method.name, run.density, run.seed) for run in runs if run.method.name != "ordinary"} == {
        (name, density, seed)
        for name in BASIC
        if name != "ordinary"
        for density in (0.1, 0.01, 0.001)
        for seed in range(3)
    }


def test_a_study_is_a_grid_over_methods_sizes_seeds_models_and_data():
    study = Study(
        methods=("ordinary", {"name": "rigl", "delta_t": 5}),
        dims=(10, 20),
        seeds=(3, 5),
        models=("a", "b:c"),
        data=("d", "e"),
    )
    runs = study.runs()
    assert len(runs) == len({run.hash for run in runs}) == 2 * 2 * 2 * (1 + 2)
    assert {(run.data.name, run.model.name, run.seed) for run in runs} == {
        (d, m, s) for d in "de" for m in ("a", "b:c") for s in (3, 5)
    }
    moving = [run for run in runs if run.method.name == "rigl"]
    assert {(run.dim, run.density, run.method.options["delta_t"]) for run in moving} == {(10, None, 5), (20, None, 5)}


def test_all_methods_are_each_of_them_at_every_density():
    runs = Study(methods=("all",), seeds=1).runs()
    assert len(runs) == len({run.hash for run in runs}) == 1 + 3 * (len(METHODS) - 1)


def test_a_run_is_called_by_what_is_not_as_ever():
    assert str(RUN) == "DCTpS, EPL, density 0.01, seed 0"
    assert str(run("ordinary", seed=1)) == "ordinary (dense), seed 1"
    moving = Run(Choice("rigl", {"delta_t": 5}), Choice("mlp", {"width": 9}), dim=1234)
    assert str(moving) == "RigL, ERK, delta_t=5, dim 1,234, seed 0, mlp, width=9 on mnist5k"
    assert label(Choice("rigl")) == "RigL, ERK"


def test_epochs_and_costs_include_the_rounds_of_imp():
    assert [run(name, density=0.1).epochs for name in ("imp", "force", "dctps")] == [40, 4, 4]
    assert run("imp", density=0.1).cost == 10 * RUN.cost


def test_a_grid_that_repeats_itself_has_each_run_once():
    assert len(Study(methods=("dctps", "dctps"), densities=(0.1, 0.1), seeds=2).runs()) == 2


OWN = dataclasses.replace(METHODS["dctps"], label="mine")


def test_a_method_of_ones_own_is_named_by_its_import_path():
    assert str(run(f"{__name__}:OWN", density=0.1)) == "mine, density 0.1, seed 0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: run("dctpss", density=0.1),
            r"method must be one of ordinary, .*, got 'dctpss'; did you mean 'dctps'\?",
        ),
        (lambda: run("zzz", density=0.1), r"method must be one of .*, got 'zzz'$"),
        (
            lambda: run("nowhere.at:all", density=0.1),
            r"method must be an import path MODULE:NAME, got 'nowhere.at:all': No module",
        ),
        (lambda: run("json:loads", density=0.1), r"method must be a Method, got function at 'json:loads'"),
        (lambda: run("dctps", density=0.0), r"density must be in \(0, 1\], got 0.0"),
        (lambda: run("dctps", density=1.5), r"density must be in \(0, 1\], got 1.5"),
        (lambda: run("dctps", density=float("nan")), r"density must be in \(0, 1\], got nan"),
        (lambda: run("dctps", dim=0), r"dim must be an integer of at least 1 and .*, got 0"),
        (lambda: run("dctps"), r"exactly one of density, dim, bytes must be given for dctps, got none"),
        (
            lambda: run("dctps", density=0.1, dim=3),
            r"exactly one of density, dim, bytes must be given for dctps, got .*0.1.*3",
        ),
        (lambda: run("ordinary", density=0.1), r"no size must be given for ordinary, got .*0.1"),
        (
            lambda: Run(Choice("random_subspace", {"steps": 3}), density=0.1),
            r"options of random_subspace must be burn_in, embedding, offset, tensors, got 'steps'",
        ),
        (
            lambda: Run(Choice("force", {"step": 3}), density=0.1),
            r"must be basis, batches, loss, reinit, rule, samples, shuffle, steps, got 'step'; did you mean 'steps'\?",
        ),
        (lambda: Run(Choice("force", {"steps": "3"}), density=0.1), r"steps of force must be such as 60, got '3'"),
        (lambda: run("dctps", density=0.1, seed=-1), r"seed must be an integer of at least 0 and below 2\^63, got -1"),
        (lambda: Training(epochs=0), r"epochs must be an integer of at least 1 and below 2\^63, got 0"),
        (lambda: Training(batch=0), r"batch must be an integer of at least 1 and .*, got 0"),
        (lambda: Training(threads=0), r"threads must be an integer of at least 1 and .*, got 0"),
        (lambda: Training(batch=2, processes=3), r"batch must be at least processes, 3, got 2"),
        (lambda: Training(learning_rate=float("inf")), r"learning_rate must be positive and finite, got inf"),
        (lambda: Training(scaling="log"), r"scaling must be root or none, got 'log'"),
        (lambda: Training(jacobian=-1), r"jacobian must be an integer of at least 0 and .*, got -1"),
        (lambda: Training(validation=1.0), r"validation must be in \[0, 1\), got 1.0"),
        (
            lambda: Training(optimizer={"momentum": 1}),
            r"optimizer must be a name or a table with one, got \{'momentum': 1\}",
        ),
        (lambda: Study(seeds=0), r"seeds must be at least one, got none"),
        (lambda: Study(seeds=()), r"seeds must be at least one, got none"),
        (lambda: Study(methods=()), r"methods must be some of ordinary, .*, got none"),
        (lambda: Study(densities=()), r"densities must have at least one entry, got none"),
        (lambda: Study(models=()), r"models must have at least one entry, got none"),
        (
            lambda: Study(densities=(0.1,), dims=(3,)),
            r"one of densities, dims, bytes must be given, got \(0.1,\) and \(3,\)",
        ),
        (
            lambda: Study(methods=("dctps", "snip", "grasp"), data=()),
            r"data must be at least one data set to train on, which snip, grasp also choose U by, got none",
        ),
        (lambda: Study(name="a/b"), r"name must be that of a folder other than runs, of at most 200 bytes, got 'a/b'"),
        (
            lambda: Study(name="runs"),
            r"name must be that of a folder other than runs, of at most 200 bytes, got 'runs'",
        ),
    ],
)
def test_bad_values_are_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture(scope="module")
def few():
    """Thirty images without meaning, and a loop that does nothing."""
    images = torch.from_numpy(Key(0).normal(30 * 784, dtype="float32")).reshape(30, 1, 28, 28)

    def setting(name, density=0.001, seed=0):
        options = {n: 2 if n in ("steps", "rounds") else value for n, value in METHODS[name].options.items()}
        samples = Tensors(images, torch.arange(30) % 3)
        return Setting({"density": density}, density, seed, options, samples, 4, lambda model: None)

    return setting


def test_every_method_trains_exactly_the_budget_of_the_same_network(few):
    sizes, trained = {}, {}
    for name in METHODS:
        model = models.lenet5(Key(0))
        with warnings.catch_warnings():  # a uniform budget of 61 leaves conv1 none, and says so
            warnings.simplefilter("ignore")
            model = method(name).apply(model, few(name))
        sizes[name] = subspace.summary(model)
        trained[name] = sum(p.numel() for p in set(model.parameters()) if p.requires_grad)
        assert trained[name] == sizes[name].dim + sum(sizes[name].beside.values()), name
    assert {size.weights for size in sizes.values()} == {61_210}
    assert {name: trained[name] - size.alpha for name, size in sizes.items()} == {
        name: 61_210 if name == "ordinary" or METHODS[name].prunes else 61 for name in METHODS
    }


@pytest.mark.parametrize("name", ["set", "rigl", "dctps_set", "dctps_rigl"])
def test_movers_follow_the_options(name, few):
    model = method(name).apply(models.lenet5(Key(0)), few(name, density=0.1))
    mover = method(name).mover(model, torch.optim.Adam(model.parameters()), few(name))
    assert (mover.delta_t, mover.fraction, mover.t_end) == (8, 0.3, 3)


def test_imp_needs_no_round_at_density_one(few):
    model = method("imp").apply(models.lenet5(Key(0)), few("imp", density=1.0))
    assert subspace.summary(model).dim == 61_210


def test_the_data_of_a_saliency_are_one_batch_drawn_from_the_seed(few):
    seen = []

    class Net(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return images.mean((1, 2, 3)).unsqueeze(1) * torch.tensor([1.0, -1.0, 2.0])

    setting = few("snip")
    logits = Net()(setting.samples.inputs)
    everything = torch.nn.functional.cross_entropy(logits, setting.samples.labels)
    assert setting.loss(30)(Net()) == pytest.approx(everything.item())
    assert setting.loss(128)(Net()) == pytest.approx(everything.item())
    first, again, other = (few("snip", seed=seed).loss(5) for seed in (0, 0, 1))
    values = [objective(Net()).item() for objective in (first, first, again, other)]
    assert values[0] == values[1] == values[2] != values[3]
    assert [len(images) for images in seen[-4:]] == [5] * 4
    cooled = torch.nn.functional.cross_entropy(logits / 200, setting.samples.labels)
    assert setting.balanced_loss(per_class=10, temperature=200)(Net()) == pytest.approx(cooled.item())
    setting.balanced_loss(per_class=4, temperature=1)(Net())
    places = [int((setting.samples.inputs == image).flatten(1).all(1).nonzero()) for image in seen[-1]]
    assert torch.bincount(setting.samples.labels[places]).tolist() == [4, 4, 4]
    assert len(set(places)) == 12
