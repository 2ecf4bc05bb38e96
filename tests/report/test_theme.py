"""The report's colours can be read, in both themes."""

from __future__ import annotations

import pytest

from sharedenc.report.theme import DARK, LIGHT, SERIES, contrast, standalone, variable

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def test_contrast_is_that_of_wcag() -> None:
    # The ends of the scale, and the grey that is known to just pass for text on white.
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#ffffff", "#ffffff") == 1.0
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@THEMES
@pytest.mark.parametrize("name", ["ink", "soft"])
def test_text_stands_out_from_the_paper(theme: dict[str, str], name: str) -> None:
    assert contrast(theme[name], theme["paper"]) >= 4.5


@THEMES
@pytest.mark.parametrize("name", [*SERIES, "reference"])
def test_marks_stand_out_from_the_paper(theme: dict[str, str], name: str) -> None:
    assert contrast(theme[name], theme["paper"]) >= 3.0


def test_both_themes_have_the_same_names_and_no_colour_twice() -> None:
    assert list(LIGHT) == list(DARK)
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_a_file_of_its_own_has_both_themes() -> None:
    svg = standalone(f'<svg xmlns="http://www.w3.org/2000/svg"><g fill="{variable("ink")}"/></svg>')
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"><style>')
    assert f"--ink: {LIGHT['ink']};" in svg.split("@media")[0]
    assert f"--ink: {DARK['ink']};" in svg.split("@media (prefers-color-scheme: dark)")[1]
