"""The page in real Chromium: themes, contrast, keyboard, paper, no scripts, a thousand trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from sharedenc.report.contents import Contents
from sharedenc.report.html import page
from sharedenc.report.theme import DARK, LIGHT
from tests.browser import chromium
from tests.report.contents import contents, large, photos, rows
from tests.report.study import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Nothing may hide from the check of contrast: not what is folded, off the screen, scrolled away in
# its box, or under a head that stays.
SHOW_ALL = """
document.querySelectorAll("details").forEach(function (one) { one.open = true; });
var style = document.createElement("style");
style.textContent = "* { content-visibility: visible !important; position: static !important; }"
  + ".scroll, .drawing { overflow: visible !important; max-height: none !important; }"
  + "body { width: max-content; max-width: none !important; } .unseen { display: none; }";
document.head.appendChild(style);
"""
# What a reader sees of a sheet of paper or a screen.
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile"), 1280, 900) as running:
        running.set_script_timeout(300)
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def study(folder: Path) -> str:
    return written(folder, "study", contents())


@pytest.fixture(scope="module")
def small(folder: Path) -> str:
    """A page with every kind of element, but one backbone and six tables: axe reads each cell."""
    chosen = contents(refresh_s=3600)
    wanted = ("4.4", "4.14", "4.16", "5.1", "A.2", "S.2")
    tables = tuple(table for table in chosen.tables if table.spec.number in wanted)
    evidence = dataclasses.replace(chosen.evidence, photos=photos(1, ["resnet18"]))
    return written(folder, "small", dataclasses.replace(chosen, tables=tables, evidence=evidence))


def written(folder: Path, name: str, told: Contents) -> str:
    path = folder / f"{name}.html"
    path.write_text(page(told))
    return path.as_uri()


def show(browser: webdriver.Chrome, url: str, theme: str = "light", media: str = "") -> None:
    """Open a page as a reader with this theme does; ``media`` is ``print`` on paper."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.get(url)
    browser.execute_script("try { localStorage.clear(); } catch (error) { }")
    browser.get(url)


def rgb(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the console says, and has not said before."""
    lines = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [str(line["message"]) for line in lines]


def judged(browser: webdriver.Chrome, options: str) -> dict[str, list[dict[str, Any]]]:
    """What axe finds, by `violations`, `passes` and `incomplete`."""
    script = f"var done = arguments[0]; axe.run({options}).then(done)"
    found: dict[str, list[dict[str, Any]]] = browser.execute_async_script(script)
    return found


def complained(rules: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Rule, what it asks for and the element, for each that breaks one."""
    return [(rule["id"], rule["help"], node["html"]) for rule in rules for node in rule["nodes"]]


def table(browser: webdriver.Chrome, name: str) -> WebElement:
    """The box of a table; what it is folded into is opened."""
    box = browser.find_element(By.CSS_SELECTOR, f"[role='region'][aria-label^='{name}']")
    browser.execute_script(
        "for (var at = arguments[0]; at; at = at.parentElement)"
        " if (at.tagName === 'DETAILS') at.open = true;",
        box,
    )
    return box


def column(browser: webdriver.Chrome, box: WebElement, at: int) -> list[str]:
    """The texts of a column, from top to bottom."""
    script = (
        "return Array.from(arguments[0].querySelectorAll('tbody tr'))"
        ".filter(row => !row.classList.contains('group') && !row.hidden)"
        ".map(row => row.cells[arguments[1]].textContent.trim())"
    )
    found: list[str] = browser.execute_script(script, box, at)
    return found


def press(browser: webdriver.Chrome, box: WebElement, at: int, key: str) -> str | None:
    """Press a key on a column's head; says how the column is sorted then."""
    head = box.find_element(By.CSS_SELECTOR, f"th[data-col='{at}']")
    button = head.find_element(By.TAG_NAME, "button")
    browser.execute_script("arguments[0].focus()", button)
    assert browser.switch_to.active_element == button
    button.send_keys(key)
    return head.get_attribute("aria-sort")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_either_theme_and_the_console_is_silent(
    browser: webdriver.Chrome, small: str, theme: str
) -> None:
    show(browser, small, theme)
    assert browser.execute_script(BACKGROUND) == rgb({"light": LIGHT, "dark": DARK}[theme]["paper"])
    axe = resources.files("selenium_axe_python").joinpath("axe-core", "axe.min.js")
    browser.execute_script(axe.read_text("utf-8"))
    # As it opens: structure, names, roles, keyboard.
    found = judged(browser, '{rules: {"color-contrast": {enabled: false}}}')
    assert complained(found["violations"]) == []
    assert len(found["passes"]) > 30
    browser.execute_script(SHOW_ALL)
    contrast = judged(browser, '{runOnly: ["color-contrast"]}')
    assert complained(contrast["violations"]) == []
    seen = [node for rule in contrast["passes"] for node in rule["nodes"]]
    assert len(seen) > 300
    # What it could not judge is not passed over, but for a sign beside its word and for figures,
    # whose colours are tested where they are chosen.
    unsure = [
        node["target"][0]
        for rule in contrast["incomplete"]
        for node in rule["nodes"]
        if "svg" not in node["target"][0] and 'aria-hidden="true"' not in node["html"]
    ]
    assert unsure == []
    assert complaints(browser) == []


def test_the_theme_is_the_readers_and_is_remembered(browser: webdriver.Chrome, study: str) -> None:
    show(browser, study, "light")
    button = browser.find_element(By.ID, "theme")
    assert button.text == "Dark"
    button.send_keys(Keys.ENTER)
    assert browser.execute_script(BACKGROUND) == rgb(DARK["paper"])
    assert button.text == "Light"
    browser.refresh()
    assert browser.execute_script(BACKGROUND) == rgb(DARK["paper"])
    browser.find_element(By.ID, "theme").send_keys(Keys.SPACE)
    assert browser.execute_script(BACKGROUND) == rgb(LIGHT["paper"])


def test_in_a_sandbox_without_storage_everything_works(
    browser: webdriver.Chrome, folder: Path
) -> None:
    """As MLflow's UI shows an artifact."""
    inside = page(contents()).replace("&", "&amp;").replace('"', "&quot;")
    outside = folder / "sandbox.html"
    outside.write_text(
        '<!doctype html><title>outside</title><iframe sandbox="allow-scripts" '
        f'width="1200" height="800" srcdoc="{inside}"></iframe>'
    )
    show(browser, outside.as_uri())
    complaints(browser)
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    button = browser.find_element(By.ID, "theme")
    button.send_keys(Keys.ENTER)
    assert browser.execute_script(BACKGROUND) == rgb(DARK["paper"])
    box = table(browser, "Highest of each backbone")
    assert press(browser, box, 0, Keys.ENTER) == "ascending"
    browser.switch_to.default_content()
    assert complaints(browser) == []


def test_a_table_is_sorted_by_keyboard_and_restored(
    browser: webdriver.Chrome, folder: Path
) -> None:
    factors = {"resnet18": 1.0, "mobilenet_v3_large": 1.2, "efficientnet_v2_s": 0.9}
    runs = [run(backbone, "baseline", task="seg", factor=by) for backbone, by in factors.items()]
    runs.append(run("densenet121", "baseline", task="seg", state="failed", reason="no memory"))
    show(browser, written(folder, "sorting", contents(rows(runs))))
    box = table(browser, "Table 4.4")
    as_it_was = column(browser, box, 0)
    assert as_it_was == ["resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121"]

    assert press(browser, box, 1, Keys.ENTER) == "ascending"
    assert column(browser, box, 1) == ["0.4500", "0.5000", "0.6000", "failed"]
    assert press(browser, box, 1, Keys.SPACE) == "descending"
    # What is missing stays last.
    assert column(browser, box, 1) == ["0.6000", "0.5000", "0.4500", "failed"]
    said = browser.execute_script("return document.getElementById('said').textContent")
    assert said.startswith("Sorted by ours of mIoU")
    # One column at a time.
    assert press(browser, box, 0, Keys.ENTER) == "ascending"
    assert column(browser, box, 0) == sorted(as_it_was)
    assert len(box.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1
    press(browser, box, 0, Keys.ENTER)
    assert press(browser, box, 0, Keys.ENTER) is None
    assert column(browser, box, 0) == as_it_was


def test_equal_rows_keep_their_order_and_rows_stay_under_the_line_of_their_group(
    browser: webdriver.Chrome, study: str
) -> None:
    show(browser, study)
    box = table(browser, "Trials of the tables")
    cells = column(browser, box, 0)
    # Every trial has one learning rate, so that sorting by it moves nothing, either way.
    assert press(browser, box, 2, Keys.ENTER) == "ascending"
    assert column(browser, box, 0) == cells
    assert press(browser, box, 2, Keys.ENTER) == "descending"
    assert column(browser, box, 0) == cells

    box = table(browser, "Table A.2")
    press(browser, box, 0, Keys.ENTER)
    press(browser, box, 0, Keys.ENTER)
    first = box.find_element(By.CSS_SELECTOR, "tbody tr")
    assert first.text.startswith("timed on: desk")
    names = column(browser, box, 0)
    assert names == sorted(names, reverse=True)
    assert names[0] == "resnet18"


def test_a_long_list_is_filtered_as_one_types(browser: webdriver.Chrome, study: str) -> None:
    show(browser, study)
    box = table(browser, "Trials of the tables")
    field = browser.find_element(By.CSS_SELECTOR, "[aria-label='Filter: Trials of the tables']")
    field.send_keys("resnet18 DUAL")
    assert column(browser, box, 0) == ["resnet18/dual"]
    assert "1 of 44" in field.find_element(By.XPATH, "../..").text
    field.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert len(column(browser, box, 0)) == 44


def test_the_page_is_whole_without_scripts(browser: webdriver.Chrome, study: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(study)
        text = browser.find_element(By.TAG_NAME, "body").text
        for words in ("What to deploy", "resnet18/dual", "Table 4.14", "no parent", "differs"):
            assert words in text
        assert not browser.find_element(By.ID, "theme").is_displayed()
        assert not browser.find_elements(By.CSS_SELECTOR, "th button")
        assert browser.find_elements(By.CSS_SELECTOR, "details > summary")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_paper_is_light_whatever_the_theme_and_nothing_is_cut_off(
    browser: webdriver.Chrome, study: str
) -> None:
    show(browser, study, "dark")
    browser.find_element(By.ID, "theme").click()
    browser.find_element(By.ID, "theme").click()
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert browser.execute_script(BACKGROUND) == rgb(LIGHT["paper"])
    ink = "return getComputedStyle(document.body).color"
    assert browser.execute_script(ink) == rgb(LIGHT["ink"])
    shown = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert browser.execute_script(shown, "nav", "display") == "none"
    assert browser.execute_script(shown, ".scroll", "overflow") == "visible"
    # What is folded on the screen is read on paper.
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    folded = "return document.querySelectorAll('details:not([open]):not([data-long])').length"
    assert browser.execute_script(folded) == 0
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(folded) > 0


@pytest.mark.parametrize("width", [400, 1280])
def test_only_boxes_scroll_sideways(browser: webdriver.Chrome, study: str, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        show(browser, study)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_first_stop_of_the_keyboard_skips_to_the_report(
    browser: webdriver.Chrome, study: str
) -> None:
    show(browser, study)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    link = browser.switch_to.active_element
    assert link.text == "Skip to the report"
    link.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "main"


def test_reloading_can_be_paused(browser: webdriver.Chrome, folder: Path) -> None:
    show(browser, written(folder, "running", contents(refresh_s=1)))
    browser.find_element(By.ID, "pause").send_keys(Keys.ENTER)
    browser.execute_script("window.mine = true")
    wait = "var done = arguments[0]; setTimeout(() => done(window.mine === true), 2500)"
    assert browser.execute_async_script(wait) is True
    browser.find_element(By.ID, "pause").send_keys(Keys.ENTER)

    def again(found: webdriver.Chrome) -> bool:
        return found.execute_script("return window.mine !== true") is True

    WebDriverWait(browser, 30).until(again)
    browser.get("about:blank")


def test_a_thousand_trials_open_and_sort(browser: webdriver.Chrome, folder: Path) -> None:
    show(browser, written(folder, "large", large()))
    assert complaints(browser) == []
    box = table(browser, "Learning-rate search")
    names = column(browser, box, 1)
    assert len(names) == 780
    assert press(browser, box, 1, Keys.ENTER) == "ascending"
    rates = [float(text) for text in column(browser, box, 1)]
    assert rates == sorted(float(name) for name in names)
    field = browser.find_element(By.CSS_SELECTOR, "[aria-label='Filter: Learning-rate search']")
    field.send_keys("densenet121")
    assert set(column(browser, box, 0)) == {"densenet121/baseline/seg"}
