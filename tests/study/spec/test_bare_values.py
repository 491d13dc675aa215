"""What Python says of a study: one value for a list, a function for its name, a table for a Training."""

import itertools
import types

import pytest

from subspace import recipes
from subspace.study.data import mnist1d
from subspace.study.entries.entry import Choice
from subspace.study.methods import METHODS
from subspace.study.models.lenet5 import lenet5
from subspace.study.spec import files
from subspace.study.spec.study import Study, Training
from tests.support import kinds

BARE = {
    "methods": [("dctps", ("dctps",)), ({"name": "rigl", "delta_t": 5}, ({"name": "rigl", "delta_t": 5},))],
    "densities": [(0.01, (0.01,)), ([0.1, 0.01], (0.1, 0.01)), (1, (1,))],
    "dims": [(100, (100,)), (range(1, 4), (1, 2, 3))],
    "models": [("resnet20", ("resnet20",)), ({"name": "mlp", "depth": 2}, ({"name": "mlp", "depth": 2},))],
    "data": [("digits", ("digits",))],
    "train": [({"epochs": 2}, Training(epochs=2))],
}


@pytest.mark.parametrize(
    ("field", "value", "meant"), [(field, *case) for field, cases in BARE.items() for case in cases], ids=str
)
def test_one_value_stands_for_a_list_of_it(field, value, meant):
    assert getattr(Study(**{field: value}), field) == meant
    if not isinstance(value, range):
        assert getattr(files.load({field: value}), field) == meant


@pytest.mark.parametrize(
    ("field", "thing", "name"),
    [
        ("models", lenet5, "subspace.study.models.lenet5:lenet5"),
        ("models", kinds.Experts, "tests.support.kinds:Experts"),
        ("data", mnist1d, "subspace.study.data.mnist1d:mnist1d"),
        ("methods", recipes.dctps, "dctps"),
        ("methods", recipes.snip, "snip"),
        ("methods", Choice("rigl", {"delta_t": 5}), {"name": "rigl", "delta_t": 5}),
    ],
)
def test_a_function_a_class_and_a_recipe_stand_for_their_names(field, thing, name):
    alone, among = Study(**{field: thing}), Study(**{field: ["dctps" if field == "methods" else "other", thing]})
    assert getattr(alone, field) == (name,)
    assert getattr(among, field)[1] == name
    assert files.study(files.load({"name": "x"}).__dict__ | {field: getattr(alone, field)}) == Study(
        "x", **{field: thing}
    )


def of_a_notebook():
    function = types.FunctionType((lambda: None).__code__, {"__name__": "__main__"}, "build")
    function.__module__, function.__qualname__ = "__main__", "build"
    return function


@pytest.mark.parametrize(
    ("field", "make"), list(itertools.product(["models", "data"], [of_a_notebook, lambda: lambda: None]))
)
def test_what_other_processes_cannot_import_is_refused_before_anything_runs(field, make):
    with pytest.raises(
        ValueError, match=r"^\w+ must be one that worker processes can import, got .*: put it in a module"
    ):
        Study(**{field: (make(),)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"densities": "many"}, "densities must be numbers, got 'many'"),
        ({"train": {"epoch": 3}}, r"train must have keys among .*, got 'epoch'; did you mean 'epochs'\?"),
        ({"train": 3}, "train must be a Training or a table of its fields, got 3"),
        ({"methods": 3}, "method must be a name or a table with one, got 3"),
        ({"methods": METHODS["dctps"]}, "method must be a name or a table with one, got Method"),
    ],
)
def test_what_is_none_of_these_is_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        Study(**fields)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "random_pruning",
            "got the recipe 'random_pruning', which is here random_pruning_uniform or random_pruning_epl or",
        ),
        ("sparse_finetuning", "got the recipe 'sparse_finetuning', of which there is no method here"),
    ],
)
def test_a_recipe_that_is_no_method_is_explained(name, message):
    for entry in (name, getattr(recipes, name)):
        with pytest.raises(ValueError, match=message):
            Study(methods=entry).runs()
