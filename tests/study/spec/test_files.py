"""Laws of a study's file: it says all of a study and nothing else, in TOML and in JSON alike."""

import json
import re

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from subspace.study.methods import METHODS
from subspace.study.spec import files
from subspace.study.spec.study import Study, Training

ENTRIES = st.sampled_from(
    ["ordinary", "dctps", {"name": "rigl", "delta_t": 5}, {"name": "imp", "rounds": 3}, "my.mod:x"]
)
SIZES = st.one_of(
    st.fixed_dictionaries({"densities": st.lists(st.floats(1e-5, 1), min_size=1, max_size=3).map(tuple)}),
    st.fixed_dictionaries({"dims": st.lists(st.integers(1, 10**6), min_size=1, max_size=3).map(tuple)}),
)
TRAININGS = st.builds(
    Training,
    epochs=st.integers(1, 300),
    learning_rate=st.floats(1e-6, 1),
    optimizer=st.sampled_from(["Adam", {"name": "SGD", "momentum": 0.9, "nesterov": True}]),
    schedule=st.sampled_from(["", {"name": "MultiStepLR", "milestones": [120, 160]}]),
    structured=st.booleans(),
    validation=st.sampled_from([0, 0.1]),
)
STUDIES = st.builds(
    lambda size, **fields: Study(**size, **fields),
    SIZES,
    name=st.sampled_from(["study", "talk", "ein Name"]),
    methods=st.lists(ENTRIES, min_size=1, max_size=3).map(tuple),
    seeds=st.sampled_from([1, 3, (0, 7)]),
    models=st.sampled_from([("lenet5",), ({"name": "my.mod:build", "width": 3, "deep": [1, "a"]}, "lenet5")]),
    train=TRAININGS,
)


@given(study=STUDIES)
def test_a_study_survives_toml_and_json(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "a.toml").write_text(files.toml(study))
    (folder / "a.json").write_text(json.dumps(tomlkit.parse(files.toml(study)).unwrap()))
    for name in ("a.toml", "a.json"):
        assert files.study(files.read(folder / name)) == study


def test_what_a_file_leaves_out_is_as_ever_and_its_name_is_the_files(tmp_path):
    (tmp_path / "talk.toml").write_text("seeds = 1")
    assert files.study(files.read(tmp_path / "talk.toml")) == Study(name="talk", seeds=1)


def test_assignments_set_single_values_of_any_kind_and_leave_the_rest():
    table = {"seeds": 2, "train": {"epochs": 3, "batch": 7}}
    words = [
        "train.epochs=20",
        "train.optimizer={name = 'SGD', momentum = 0.9}",
        "methods=['dctps']",
        "train.device=cpu",
    ]
    assert files.assigned(table, words) == {
        "seeds": 2,
        "methods": ["dctps"],
        "train": {"epochs": 20, "batch": 7, "optimizer": {"name": "SGD", "momentum": 0.9}, "device": "cpu"},
    }
    assert table == {"seeds": 2, "train": {"epochs": 3, "batch": 7}}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"mehods": ["dctps"]}, "a study must have keys among name, .*, got 'mehods'; did you mean 'methods'?"),
        ({"train": {"epoch": 2}}, "train must have keys among epochs, .*, got 'epoch'; did you mean 'epochs'?"),
        ({"train": {"zzz": 2}}, "train must have keys among epochs, .*, got 'zzz'"),
        ({"train": {"epochs": "2"}}, "train.epochs: Expected `int`, got `str`"),
        ({"train": {"epochs": 0}}, "train: epochs must be an integer of at least 1 and below 2^63, got 0"),
        ({"train": 3}, "train: Expected `object`, got `int`"),
        ({"densities": [0.1, "ten"]}, "densities[1]: Expected `float`, got `str`"),
        ({"densities": [0.1], "dims": [3]}, "one of densities, dims, bytes must be given, got (0.1,) and (3,)"),
        ({"seeds": 1.5}, "seeds: Expected `int | array`, got `float`"),
        ({"train": {"scaling": "log"}}, "train.scaling: Invalid enum value 'log'"),
    ],
)
def test_what_is_not_a_study_is_refused_in_one_sentence(table, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message).replace(re.escape('.*'), '.*')}$"):
        files.study(table)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "seeds = = 3", r"a\.toml must be TOML, got: .* line 1"),
        ("a.json", "{", r"a\.json must be JSON, got: "),
        ("a.json", "[1]", r"a\.json must be a table of keys and values, got a list"),
        ("a.yaml", "", r"a study's file must end in \.toml or \.json, got '.*a\.yaml'"),
        ("a.toml", b"\xff\xfe", r"a\.toml must be TOML, got: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        files.read(tmp_path / name)


@pytest.mark.parametrize("words", ["train.epochs", "=3", "train.=3", ".epochs=3"])
def test_an_assignment_has_a_key_and_a_value(words):
    with pytest.raises(ValueError, match="a setting must be KEY=VALUE, such as train.epochs=20, got "):
        files.assigned({}, [words])


def test_an_assignment_into_a_value_is_refused():
    with pytest.raises(ValueError, match="seeds must be a table to set seeds.first in, got 3"):
        files.assigned({"seeds": 3}, ["seeds.first=1"])


def test_every_method_can_be_named_in_a_file():
    assert len(files.study({"methods": ["all"], "seeds": 1, "densities": [0.5]}).runs()) == len(METHODS)
