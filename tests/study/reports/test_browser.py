"""The page of a report in a real browser, from the disk: it works, it is quiet, and it loads nothing."""

import json
import shutil

import pytest

from subspace.study.reports.write import write
from subspace.study.spec.study import Study, Training
from tests.support.records import failure, finished

selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "window-size=1280,1000"]

WIDTHS = """
    let box = document.querySelector("#runs table");
    while (getComputedStyle(box).overflowX !== "auto") box = box.parentElement;
    return [box.clientWidth, box.scrollWidth];
"""  # of what the table of runs scrolls in


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    methods = ("ordinary", "dctps", "imp", "freezenet", {"name": "rigl", "delta_t": 100})
    study = Study("a <small> study", methods, seeds=3, train=Training(epochs=2))
    records = [failure(run) if place == 5 else finished(run, classes=10) for place, run in enumerate(study.runs())]
    folder = tmp_path_factory.mktemp("report")
    write(study, records, folder)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, address):
    driver.get(address)
    WebDriverWait(driver, 20).until(lambda it: it.execute_script("return 'ready' in document.documentElement.dataset"))
    driver.execute_script("document.querySelectorAll('details.part').forEach(it => it.open = true)")
    return driver


@pytest.fixture
def folded(driver, address):
    driver.get(address)
    return driver


def test_it_opens_with_the_story_the_picture_and_nothing_else_unfolded(folded):
    story = folded.find_element(By.CSS_SELECTOR, "header .story").text
    assert story.startswith("Test accuracy in % on mnist5k, lenet5, 3 seeds: dense ")
    assert len(folded.find_elements(By.CSS_SELECTOR, "main > figure")) == 1
    assert not folded.find_elements(By.CSS_SELECTOR, "details[open]")
    shown = [table for table in folded.find_elements(By.TAG_NAME, "table") if table.is_displayed()]
    assert not shown


def test_the_keyboard_alone_unfolds_a_part_and_so_does_its_address(folded, address):
    summary = folded.find_element(By.CSS_SELECTOR, "#runs > summary")
    folded.execute_script("arguments[0].focus()", summary)
    summary.send_keys(Keys.ENTER)
    assert folded.find_element(By.CSS_SELECTOR, "#runs table").is_displayed()
    folded.get(f"{address}#equal")
    assert folded.find_element(By.CSS_SELECTOR, "#equal table").is_displayed()


def texts(page, place, column=1):
    """What a column of the tables in a section shows, all at once: sorting replaces the cells."""
    cells = f"{place} table.grid tbody tr td:nth-child({column})"
    return page.execute_script("return [...document.querySelectorAll(arguments[0])].map(it => it.innerText)", cells)


def sort(page, place, name, order):
    """Click on the head of a column until its order is that; what the column shows then, and its number."""
    heads = page.find_elements(By.CSS_SELECTOR, f"{place} table.grid:first-of-type thead th")
    number = [it.text for it in heads].index(name)
    heads[number].click()
    WebDriverWait(page, 10).until(lambda _: heads[number].get_attribute("aria-sort") == order)
    return texts(page, place, number + 1)


def test_it_loads_from_the_disk_without_a_complaint_or_a_request(page, address):
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = {request["request"]["url"] for request in requests if request["documentURL"] == address}
    assert address in asked
    assert {url.split(":")[0] for url in asked - {address}} <= {"data", "blob"}
    assert page.title == "a <small> study: report"


def test_a_click_on_a_head_sorts_by_the_figure_and_another_turns_the_order_round(page):
    rising = sort(page, "#runs", "accuracy %", "ascending")
    assert rising[0] == "-"  # the failed run
    rising = [float(text) for text in rising[1:]]
    assert rising == sorted(rising)
    falling = [float(text) for text in sort(page, "#runs", "accuracy %", "descending")]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > rising[0]


def test_the_dense_network_is_the_largest_size(page):
    assert sort(page, "#runs", "size", "ascending")[0] == "0.001"
    assert sort(page, "#runs", "size", "descending")[:4] == ["dense", "dense", "dense", "0.1"]


@pytest.mark.parametrize(("place", "method", "count"), [("#runs", "IMP", 9), ("#results", "DCTpS", 3)])
def test_the_box_filters_the_rows(page, place, method, count):
    page.find_element(By.CSS_SELECTOR, f"{place} input[type=search]").send_keys(method)
    rows = f"return [...document.querySelector('{place} table.grid').tBodies[0].rows].map(it => it.innerText)"
    WebDriverWait(page, 10).until(lambda _: len(page.execute_script(rows)) == count)
    assert all(method in row for row in page.execute_script(rows))


def test_long_tables_have_pages(page):
    assert len(texts(page, "#runs")) == 25
    page.find_element(By.CSS_SELECTOR, "#runs button.next").click()
    WebDriverWait(page, 10).until(lambda _: len(texts(page, "#runs")) == 3 * 13 - 25)


def test_a_failure_opens_to_its_traceback(page):
    failure = page.find_element(By.CSS_SELECTOR, "#failures details")
    trace = failure.find_element(By.TAG_NAME, "pre")
    assert not trace.is_displayed()
    failure.find_element(By.TAG_NAME, "summary").click()
    assert trace.is_displayed()
    assert "FloatingPointError" in trace.text


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_does_not_scroll_sideways_and_its_figures_are_there(page, width):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        seen, whole = page.execute_script(WIDTHS)
        assert seen <= width < whole
        for figure in page.find_elements(By.CSS_SELECTOR, "figure svg"):
            assert figure.size["height"] > 100
        legend = page.find_element(By.CSS_SELECTOR, "main > figure .legend")
        assert legend.is_displayed() == (width < 500)  # there the names at the ends of the lines are out of sight
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_is_dark_where_the_reader_likes_it_dark(page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert page.execute_script(colour) == "rgb(255, 255, 255)"
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert page.execute_script(colour) == "rgb(22, 22, 22)"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_figure_has_words_and_every_table_a_caption(page):
    figures = page.find_elements(By.CSS_SELECTOR, "figure [role=img]")
    assert len(figures) == 13
    for figure in figures:
        assert figure.get_attribute("aria-label")
        assert page.find_element(By.ID, figure.get_attribute("aria-describedby")).text
    headings = [heading.text for heading in page.find_elements(By.TAG_NAME, "h2")]
    assert headings == [
        "Failures",
        "In pairs of equal seeds",
        "Results",
        "Figures",
        "At equal cost",
        "Runs",
        "Configuration",
        "Environment",
        "Columns",
    ]
    assert not page.execute_script("return [...document.querySelectorAll('table')].filter(it => !it.caption).length")
