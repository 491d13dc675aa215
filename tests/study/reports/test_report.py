"""The folder a report leaves, and its page."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from rich.console import Console

from subspace.study.entries.entry import Choice
from subspace.study.reports.terminal import print_report
from subspace.study.reports.write import write
from subspace.study.results import schema
from subspace.study.results.comparisons import comparisons
from subspace.study.results.equal_cost import COSTS, at_equal
from subspace.study.results.summary import summary_table
from subspace.study.results.tables import epochs_table, runs_table, tensors_table
from subspace.study.spec import files
from subspace.study.spec.study import Run, Study, Training
from tests.support.records import failure, finished

TRAIN = Training(epochs=2)
STUDY = Study("small", ("ordinary", "dctps", "imp"), densities=(0.1, 0.01), seeds=2, train=TRAIN)
RECORDS = [failure(run) if place == 3 else finished(run) for place, run in enumerate(STUDY.runs())]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """The tags, ids and addresses of a page, and its visible text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.addresses, self.headings, self.text = [], [], [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("src", "href", "xlink:href") if name in found]

    def handle_data(self, data):
        self.text += data if self.lasttag not in ("script", "style") else ""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a report, and what was printed."""
    folder = tmp_path_factory.mktemp("report")
    return folder, printed(RECORDS, folder, "flops")


@pytest.fixture(scope="module")
def folder(made):
    return made[0]


def test_the_folder_has_the_tables_the_figures_and_the_page(folder):
    names = {path.name for path in folder.iterdir()}
    tables = {f"{name}.{kind}" for name in ("runs", "epochs", "tensors") for kind in ("csv", "parquet")}
    tables |= {"table.csv", "comparisons.csv", "study.toml", "report.html", *(f"at-{cost}.csv" for cost in COSTS)}
    drawn = {name for name in names if name.endswith((".png", ".svg"))}
    assert names - drawn == tables
    assert {name[:-4] for name in drawn if name.endswith(".png")} == {name[:-4] for name in drawn if name[-3:] == "svg"}
    assert {"accuracy-density.png", "accuracy-bytes.svg", "tensors-density-0.01.png"} < drawn
    assert files.load(folder / "study.toml") == STUDY


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("make", [runs_table, epochs_table, tensors_table])
def test_the_long_tables_are_those_of_the_records(folder, kind, make):
    name = make.__name__.removesuffix("_table")
    pd.testing.assert_frame_equal(schema.read(folder / f"{name}.{kind}", name), make(RECORDS), check_exact=True)


def test_the_small_tables_are_those_of_the_runs(folder):
    table = summary_table(runs_table(RECORDS))
    compared = comparisons(runs_table(RECORDS))
    for name, made in {"table": table, "comparisons": compared, "at-flops": at_equal(table, "flops")}.items():
        read = pd.read_csv(folder / f"{name}.csv")
        pd.testing.assert_frame_equal(read, made, check_dtype=False)


def test_the_page_says_what_ran_and_what_failed(folder):
    page = Page(folder / "report.html")
    for words in ("runs asked for", "FloatingPointError", "Traceback", 'name = "small"', "Some Processor"):
        assert words in page.text
    assert re.search(r"finished\s+9\s+failed\s+1", page.text)
    assert "mnist5k, lenet5, DCTpS, EPL, density 0.1, seed 1: FloatingPointError" in page.text
    for column in schema.describe()["description"]:
        assert column in page.text


def test_the_page_needs_nothing_else_and_names_everything_once(folder):
    page = Page(folder / "report.html")
    assert len(set(page.ids)) == len(page.ids)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert page.tags.count("svg") == page.tags.count("figure") == len(list(folder.glob("*.svg")))
    assert page.tags.count("h1") == 1


@pytest.mark.slow
def test_a_report_is_the_same_at_every_call(folder, tmp_path):
    write(STUDY, RECORDS, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


@pytest.mark.slow
def test_what_a_record_says_is_never_markup(tmp_path):
    study = Study("evil", ({"name": "synflow", "steps": 7},), densities=(0.1,), seeds=2, train=TRAIN)
    good, bad = finished(study.runs()[0]), failure(study.runs()[1], EVIL)
    good["warnings"], good["environment"]["cpu"] = [EVIL], EVIL
    bad["traceback"] = EVIL
    for record in (good, bad):
        record["configuration"]["method"] = {"name": EVIL, "options": {EVIL: 1}}
        record["configuration"]["model"] = {"name": EVIL, "options": {}}
    write(study, [good, bad], tmp_path)
    page = Page(tmp_path / "report.html")
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.text.count(EVIL) >= 5
    assert all(re.fullmatch(r"[a-z0-9.-]+", path.name) for path in tmp_path.iterdir())


def printed(records, tmp_path, at=""):
    console = Console(width=100)
    with console.capture() as capture:
        print_report(write(STUDY, records, tmp_path), console, at)
    return capture.get()


def test_the_tables_and_the_failures_are_printed(made):
    _, text = made
    assert text.startswith("Test accuracy in % on mnist5k, lenet5, 2 seeds: dense 95.8 ± 0.4; best at 10 % ")
    for words in (
        "Test accuracy in %: mnist5k, lenet5",
        "Points behind the best",
        "Test accuracy: mnist5k, lenet5",
        "Change against dense",
        "at equal FLOPs to choose U and to train",
    ):
        assert words in text
    assert "FAILED  mnist5k, lenet5, DCTpS, EPL, density 0.1, seed 1: FloatingPointError: the loss" in text


@pytest.mark.parametrize("records", [[], RECORDS[3:4]])
def test_a_study_of_which_nothing_has_finished_says_so(records, tmp_path):
    assert "No run has finished." in printed(records, tmp_path)
    assert "No run has finished" in Page(tmp_path / "report.html").text
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("record", [RECORDS[0], RECORDS[2]])
def test_a_study_of_which_one_run_has_finished_is_reported(record, tmp_path):
    assert "Test accuracy" in printed([record], tmp_path)
    assert (tmp_path / "accuracy-bytes.png").exists()
    assert "missing 9" in " ".join(Page(tmp_path / "report.html").text.split())


SECRETS = {
    "error": "OSError: no such file: '/home/jane doe/x' but /home/jane/secret/images.pt, see https://a.org/b/c",
    "traceback": 'File "/home/jane/project/mine.py", line 3, in f\n  File "C:\\Users\\jane\\other.py", line 4',
    "warnings": ["/srv/jane/thing.py:3: odd", "~/jane/odd"],
}


@pytest.mark.slow
def test_a_report_names_no_host_no_user_and_no_folder_unless_it_is_asked_to(tmp_path):
    study = replace(STUDY, data=({"name": "mnist5k", "train": 100},))
    cifar = replace(STUDY, data=({"name": "cifar10", "data_dir": "/home/jane/data", "train": 9},))
    mine = replace(STUDY, data=({"name": "mine:data", "root": "/home/jane", "file": "C:\\Users\\jane\\x.pt"},))
    record = failure(study.runs()[0], SECRETS["error"]) | SECRETS
    own = Choice("mine:data", {"root": "/home/jane", "file": "/home/jane doe/x.pt"})
    record["configuration"]["data"] = {"name": own.name, "options": dict(own.options)}
    record["environment"] |= {"host": "janes-laptop", "platform": "Linux-6.1-jane"}
    for hosts in (False, True):
        folder = tmp_path / str(hosts)
        write(study, [record], folder, hosts)
        write(cifar, [], folder / "cifar", hosts)
        write(mine, [], folder / "mine", hosts)
        for path in folder.rglob("*"):
            text = path.read_bytes().lower() if path.is_file() else b""
            assert hosts or b"jane" not in text, path
    page = Page(tmp_path / "True" / "report.html")
    assert "janes-laptop" in page.text
    assert "/home/jane/data" in (tmp_path / "True" / "cifar" / "study.toml").read_text()
    for words in ('"mine.py", line 3', "images.pt, see https://a.org/b/c", "thing.py:3: odd"):
        assert words in Page(tmp_path / "False" / "report.html").text
    assert files.load(tmp_path / "False" / "cifar" / "study.toml").data == ({"name": "cifar10", "train": 9},)


def test_data_that_differ_by_their_folder_alone_stay_two(tmp_path):
    data = [Choice("mine:data", {"folder": f"/home/jane/{name}/part"}) for name in "ab"]
    runs = [Run(Choice("ordinary"), Choice("mlp"), each) for each in data]
    report = write(STUDY, [finished(run, 0.5 + 0.1 * place) for place, run in enumerate(runs)], tmp_path)
    assert sorted(report.table["mean"]) == [0.5, 0.6]
    assert report.table["data_options"].nunique() == 2
    assert not report.table["data_options"].str.contains("jane").any()


@pytest.mark.slow
def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "runs.csv").write_text("before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        write(STUDY, RECORDS[:1], tmp_path)
    assert (tmp_path / "runs.csv").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]
