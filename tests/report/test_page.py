"""The page as text: one file, every name escaped, and sections for what there is."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from sharedenc.report.cells import number_cell
from sharedenc.report.changes import Figure
from sharedenc.report.evidence import Evidence, Photo, Provenance
from sharedenc.report.findings import Finding, Observation
from sharedenc.report.html import page
from sharedenc.report.tables import SPECS
from sharedenc.report.views import fold, grid, picture_rows, plates, setups
from tests.report.contents import (
    FINDINGS,
    NASTY,
    contents,
    jpeg,
    large,
    option,
    options,
    photos,
    picture,
    rows,
)
from tests.report.study import grid as all_runs
from tests.report.study import run

VOID = {"meta", "img", "br", "link", "hr", "input", "wbr"}
RAW = {"script", "style"}


class Page(HTMLParser):
    """A page's elements, its text by section, and whether its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self._inside: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._inside.append(named.get("id", ""))
            self.sections.setdefault(self._inside[-1], "")
        self.elements.append((tag, named))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in RAW:
            return
        self.text += data
        for name in self._inside:
            self.sections[name] += data

    def values(self, name: str) -> list[str]:
        """Every value of an attribute, in order."""
        return [named[name] for _, named in self.elements if name in named]


@pytest.fixture(scope="module")
def whole() -> Page:
    return Page(page(contents()))


def test_tags_are_balanced_ids_are_unique_and_every_link_has_its_target(whole: Page) -> None:
    assert whole.open == []
    ids = whole.values("id")
    assert len(ids) == len(set(ids))
    links = [link for link in whole.values("href") if not link.startswith("data:")]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(" ".join(whole.values(name)).split()) <= set(ids)


def test_the_page_loads_nothing_and_holds_its_pictures() -> None:
    text = page(contents())
    found = Page(text)
    assert set(re.findall(r"https?://[^\"' <)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "url(" not in text
    assert "@import" not in text
    sources = found.values("src")
    # Four backbones, two photos: two truths and eleven cells, less the one cell of resnet18.
    assert len(sources) == 2 * (4 * 13 - 1)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"link", "iframe", "object", "embed", "base"}
    assert not [name for _, named in found.elements for name in named if name.startswith("on")]


def test_every_section_of_a_study_is_there_in_order_and_every_table(whole: Page) -> None:
    assert [name for name in whole.sections if name] == [
        "deploy",
        "summary",
        "findings",
        "figures",
        "predictions",
        "curves",
        "timings",
        "tables",
        "unfinished",
        "runs",
        "provenance",
        "about",
    ]
    assert {f"table-{spec.number}" for spec in SPECS} <= set(whole.values("id"))
    levels = [int(tag[1]) for tag, _ in whole.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_answer_comes_first_with_its_models_and_the_command_for_other_limits(
    whole: Page,
) -> None:
    said = " ".join(whole.sections["deploy"].split())
    assert "Orin, 15 W, tensorrt 10 · int8 · p99-single" in said
    assert said.index("resnet18/dual") < said.index("densenet121/dual")
    assert "★ fastest" in said
    assert "★ highest mIoU, highest mAP" in said
    assert "voc20-resnet18-dual version 3" in said
    assert "suspect: clocks changed" in said
    # What holds for all of them is said once, where they begin; once more for those behind.
    assert said.count("no INT8 file: not calibrated") == 2
    assert "1 deployment behind the front" in said
    assert (
        "sharedenc recommend written --device Orin --mode '15 W' --precision int8 "
        "--stat p99-single --max-latency-ms 9.8"
    ) in said


def test_options_are_compared_only_with_those_timed_in_the_same_way() -> None:
    found = setups([*options("one"), *options("two")], "it's mine")
    assert [setup.title.split(",")[0] for setup in found] == ["one", "two"]
    assert [len(setup.front) for setup in found] == [2, 2]
    assert found[0].command.startswith("sharedenc recommend 'it'\"'\"'s mine' --device one")
    untimed = dataclasses.replace(options()[0], latency=Figure.missing("not timed yet"))
    (setup,) = setups([untimed, *options()], "s")
    assert setup.others[-1].option is untimed


def test_a_lone_deployment_of_the_front_is_said_to_be_ahead_only_of_others() -> None:
    first = option("resnet18", "dual", 4.5, 0.6, 0.3, front=True, device="Orin")
    (alone,) = setups([first], "s")
    assert alone.front[0].first_in == ()
    behind = option("resnet18", "baseline", 7.0, 0.5, 0.2, front=False, device="Orin")
    (two,) = setups([behind, first], "s")
    assert two.front[0].first_in == ("best or level in all three",)


def test_the_answer_is_a_sentence_with_what_the_rest_of_the_front_gives_and_costs() -> None:
    (both,) = setups(options(), "s")
    assert both.answer == (
        "where latency decides, deploy resnet18/dual (4.50 ms, mIoU 0.5400, mAP 0.2100); where "
        "accuracy decides, densenet121/dual (9.75 ms, mIoU 0.5900, mAP 0.2400): "
        "+5.00 pp mIoU and +3.00 pp mAP for 5.25 ms more."
    )
    first = option("resnet18", "dual", 4.5, 0.6, 0.3, front=True, device="Orin")
    behind = option("resnet18", "baseline", 7.0, 0.5, 0.2, front=False, device="Orin")
    (alone,), (ahead,) = setups([first], "s"), setups([behind, first], "s")
    assert "only deployment here" in alone.answer
    assert ahead.answer.endswith("no other is faster or scores higher.")
    (none,) = setups([behind], "s")
    assert none.answer == ""
    level = option("densenet121", "dual", 4.5, 0.5, 0.4, front=True, device="Orin")
    (even,) = setups([first, level], "s")
    assert even.answer.endswith("-10.00 pp mIoU and +10.00 pp mAP at the same latency.")
    assert "fastest" not in [what for choice in even.front for what in choice.first_in]


def test_without_a_front_the_other_figures_stand_open() -> None:
    text = page(contents(choices=[], pictures=[picture("front-parameters", "By parameters")]))
    assert 'id="figure-front-parameters"' in text
    assert "more: other devices" not in text


def test_what_nothing_can_be_told_of_is_folded_with_its_common_reason_once() -> None:
    open_ = [
        dataclasses.replace(FINDINGS[2], id=f"open-{at}", why="Other data: mine.") for at in (1, 2)
    ]
    found = dataclasses.replace(contents(), findings=(FINDINGS[0], *open_))
    text = page(found)
    part = text[text.index('id="findings"') : text.index('id="figures"')]
    assert part.count("Other data: mine.") == 1
    assert part.index("finding-dual-beats-baseline") < part.index('<details class="more">')
    assert part.index('<details class="more">') < part.index('id="finding-open-1"')
    apart = dataclasses.replace(open_[1], why="One seed.")
    text = page(dataclasses.replace(found, findings=(FINDINGS[0], open_[0], apart)))
    assert text.count("Other data: mine.") == text.count(">One seed.<") == 1


def test_a_failed_seed_of_a_cell_that_is_done_is_not_hidden() -> None:
    runs = [*all_runs(), run("resnet18", "dual", seed=1, state="failed", reason="no memory")]
    said = " ".join(Page(page(contents(rows(runs)))).sections["summary"].split())
    assert "but 1 of 45 trials is not: which, and why" in said
    said = Page(page(contents(rows(all_runs())))).sections["summary"]
    assert "which, and why" not in said


def test_how_to_read_the_tables_is_said_once_above_them() -> None:
    found = contents(published=True)
    table = found.tables[0]
    tables = tuple(
        dataclasses.replace(table, spec=one.spec, rows=one.rows, notes=("How to read.", own))
        for one, own in zip(found.tables[:4], ("a own.", "b own.", "c own.", "d own."), strict=True)
    )
    text = page(dataclasses.replace(found, tables=tables))
    assert text.count("How to read.") == 1
    assert text.index("How to read.") < text.index("a own.") < text.index("b own.")


def test_what_is_still_to_come_is_not_marked_as_wrong() -> None:
    for why in ("waiting", "running", "not timed"):
        assert number_cell(Figure.missing(why), "fraction").absent
    assert not number_cell(Figure.missing("failed: NaN"), "fraction").absent


def test_without_timings_the_page_says_how_to_get_them() -> None:
    said = Page(page(contents(choices=[]))).sections["deploy"]
    assert "has been timed" in said
    assert "jetson-agent run" in said


def test_a_verdict_is_a_word_and_only_what_is_clear_is_bold(whole: Page) -> None:
    text = page(contents())
    found = text[text.index('id="findings"') : text.index('id="figures"')]
    assert "<b>mIoU +10.0 %, mAP +10.0 %</b>" in found
    assert "<b>40 % recovered" not in found
    said = " ".join(whole.sections["findings"].split())
    for words in ("✓ agrees: 1", "✗ differs: 1", "? cannot tell: 1", "one seed", "Figure 5.4"):
        assert words in said


@pytest.mark.parametrize(
    ("text", "start", "rest"),
    [
        ("short", "short", ""),
        ("a" * 100 + "; " + "b" * 150, "a" * 100 + ";", "b" * 150),
        ("all (of " + "a" * 90 + "), " + "b" * 150, "all (of " + "a" * 90 + "),", "b" * 150),
        ("a " * 120, "a " * 74 + "a", "a " * 45),
        ("a" * 300, "a" * 300, ""),
    ],
)
def test_a_long_text_is_folded_at_the_end_of_a_part(text: str, start: str, rest: str) -> None:
    assert fold(text) == (start, rest)


def test_a_folded_finding_keeps_every_word() -> None:
    words = "; ".join(f"part {number}" for number in range(60))
    finding = Finding(
        id="long",
        claim="c",
        where="w",
        published=Observation(holds=True, text="p"),
        ours=Observation(holds=True, text=words),
        verdict="agrees",
    )
    said = Page(page(dataclasses.replace(contents(), findings=(finding,)))).sections["findings"]
    assert words in " ".join(said.replace("more", " ").split())


def test_cells_say_what_they_are_sorted_by_and_why_a_number_is_missing() -> None:
    text = page(contents())
    table = text[text.index('id="table-4.14"') : text.index('id="table-4.15"')]
    failed = re.search(
        r"<td class=\"ours missing\" data-sort=\"\" title=\"([^\"]*)\">([^<]*)", table
    )
    assert failed is not None
    assert failed[1].startswith("failed: ValueError: &lt;b&gt;loss&lt;/b&gt; is NaN")
    assert failed[2] == "failed"
    assert re.search(r"data-sort=\"0\.55\d*\">0\.5500</td>", table)


def test_rows_that_share_what_they_were_timed_on_are_under_one_line() -> None:
    timings = next(t for t in contents().tables if t.spec.number == "A.2")
    found = grid(timings)
    assert found.labels == 2
    assert [body.title for body in found.bodies] == [
        "timed on: desk, 2 threads, onnxruntime, stream"
    ]
    assert {len(row) for body in found.bodies for row in body.rows} == {len(found.heads)}
    assert sum(span for _, span in found.groups) == len(found.heads) - found.labels
    scores = grid(next(t for t in contents().tables if t.spec.number == "4.4"))
    assert [body.title for body in scores.bodies] == [""]
    assert scores.groups[0] == ("mIoU", 3)


def test_numbers_behind_a_figure_share_their_decimals_and_none_is_said_to_be_missing() -> None:
    cells = picture_rows(picture("5.2", "Latency"))
    assert [[cell.text for cell in row] for row in cells] == [
        ["resnet18", "0.55", "6.00"],
        ["densenet121", "none", "12.25"],
    ]
    assert cells[1][1].sort is None
    assert cells[1][1].missing


def test_the_same_photos_stand_side_by_side_in_the_order_of_the_methods() -> None:
    found = plates(photos(2), rows())
    assert [plate.backbone for plate in found] == [
        "resnet18",
        "mobilenet_v3_large",
        "efficientnet_v2_s",
        "densenet121",
    ]
    plate = found[0]
    assert plate.methods == (
        "baseline",
        "swap-frozen",
        "swap-bias",
        "share-frozen",
        "share-bias",
        "dual",
    )
    assert [(row.image_id, row.task) for row in plate.rows] == [
        (f"{number:012d}", task) for number in range(2) for task in ("segmentation", "detection")
    ]
    seg, det = plate.rows[0].shots, plate.rows[1].shots
    assert seg[0] is not None
    assert seg[0].jpeg == jpeg("seg 0")
    assert seg[3] is not None
    assert seg[3].jpeg is None
    assert seg[6] is not None
    assert seg[6].jpeg == jpeg("resnet18/dual 0")
    assert seg[6].rows == 2
    assert det[6] is None
    assert det[4] is not None
    assert det[4].alt == "detection by resnet18/share-frozen/det on test photo 000000000000"


def test_a_truth_of_both_tasks_and_a_cell_of_another_study_have_their_places() -> None:
    photo = Photo(
        image_id="7",
        truth={"dual": jpeg("t")},
        predictions={
            "timm/own/baseline/seg": jpeg("a"),
            "timm/own/baseline/det": jpeg("b"),
            "timm/own/mine": jpeg("c"),
        },
    )
    (plate,) = plates([photo], rows())
    assert plate.backbone == "timm/own"
    assert plate.methods == ("baseline", "mine")
    first, second = plate.rows
    assert first.shots[0] is not None
    assert first.shots[0].rows == 2
    assert second.shots[0] is None
    assert second.shots[1] is not None
    assert second.shots[1].jpeg == jpeg("b")


def test_every_picture_says_what_it_shows_and_how_large_it_is(whole: Page) -> None:
    images = [named for tag, named in whole.elements if tag == "img"]
    assert all(image["alt"] for image in images)
    assert {(image["width"], image["height"]) for image in images} == {("96", "64")}
    assert base64.b64decode(images[0]["src"].partition(",")[2]) == jpeg("seg 0")


def test_a_study_without_predictions_says_so() -> None:
    text = page(contents(evidence=Evidence(notes=("resnet18/dual: its photos were deleted",))))
    said = Page(text).sections
    assert "No predictions" in said["predictions"]
    assert "its photos were deleted" in said["provenance"]
    assert "<img" not in text


def test_unfinished_cells_have_their_reasons_and_runs_the_rule_that_counts(whole: Page) -> None:
    said = " ".join(whole.sections["unfinished"].split())
    assert "failed (code)" in said
    assert "ValueError: <b>loss</b> is NaN" in said
    assert "File train.py, line 3" in said
    assert "no parent" in said
    runs = " ".join(whole.sections["runs"].split())
    assert "Learning-rate search (3)" in runs
    assert "trained on other data" in runs
    assert "of two finished ones the newer" in runs
    done = Page(page(contents(rows(all_runs()))))
    assert "Every cell of this study is done." in done.sections["unfinished"]


def test_names_with_quotes_and_markup_come_out_as_text() -> None:
    runs = [
        run(NASTY, "baseline", task="seg", data=NASTY),
        run(NASTY, "dual", data=NASTY, state="failed", kind=NASTY, reason=f"{NASTY}\n{NASTY}"),
        run(NASTY, "dual", data=NASTY, stage="lr-search", state="failed", reason=NASTY),
    ]
    photo = Photo(
        image_id=NASTY, truth={"seg": jpeg("t")}, predictions={f"{NASTY}/baseline/seg": jpeg("p")}
    )
    told = contents(
        rows(runs, study=NASTY),
        evidence=Evidence(
            photos=(photo,),
            provenance=Provenance(rows=((NASTY, (NASTY,)), ("seeds", (NASTY, "1")))),
            notes=(NASTY,),
        ),
        pictures=[picture("5.2", NASTY, NASTY)],
        choices=options(NASTY),
    )
    observation = Observation(holds=True, text=NASTY, clear=True)
    finding = Finding(
        id="nasty",
        claim=NASTY,
        where=NASTY,
        published=observation,
        ours=observation,
        verdict="agrees",
        why=NASTY,
    )
    found = Page(page(dataclasses.replace(told, findings=(finding,))))
    assert found.open == []
    assert [tag for tag, _ in found.elements].count("script") == 2
    assert "onerror" not in {name for _, named in found.elements for name in named}
    assert not [named for tag, named in found.elements if named.get("src") == "x"]
    assert "{{ 7*7 }}" in found.text
    for section in ("deploy", "summary", "findings", "figures", "unfinished", "runs", "provenance"):
        assert NASTY.split()[0] in found.sections[section], section


def test_drawn_shapes_are_never_a_result() -> None:
    said = Page(page(contents(rows(all_runs(data="synthetic")))))
    assert "never a result" in said.text
    assert "banner" in said.values("class")
    assert "never a result" not in Page(page(contents())).text


def test_an_open_page_of_a_running_study_loads_itself_again() -> None:
    running = page(contents(refresh_s=30))
    # Only without scripts: a script can wait until the reader lets it.
    assert '<noscript><meta http-equiv="refresh" content="30"></noscript>' in running
    assert 'data-refresh="30"' in running
    assert "still running" in running
    done = page(contents())
    assert "http-equiv" not in done
    assert "still running" not in done


def test_the_published_numbers_alone_have_no_runs_and_no_stamp_of_one() -> None:
    found = Page(page(contents(rows(all_runs()), published=True, evidence=Evidence())))
    for section in ("predictions", "unfinished", "runs", "provenance"):
        assert section not in found.sections
    assert "deploy" in found.sections
    assert "this study" not in found.sections["findings"]
    assert "recomputed" in found.sections["findings"]
    assert "digest" not in found.text
    assert "Nothing here was trained" in found.text
    links = [link[1:] for link in found.values("href") if link.startswith("#")]
    assert set(links) <= set(found.values("id"))


def test_a_thousand_trials_are_closed_filtered_and_small() -> None:
    text = page(large())
    found = Page(text)
    lists = [named for tag, named in found.elements if "data-filter" in named]
    assert {"Trials of the tables", "Learning-rate search"} <= {n["data-filter"] for n in lists}
    closed = [named for tag, named in found.elements if tag == "details" and "data-long" in named]
    assert len(closed) >= 2
    assert not [named for named in closed if "open" in named]
    rows_of_lists = [tag for tag, _ in found.elements].count("tr")
    assert rows_of_lists > 1000
    assert len(found.elements) < 30_000
    assert len(text) < 2_000_000


def test_the_script_is_small_and_asks_for_nothing() -> None:
    text = page(contents())
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    assert sum(map(len, scripts)) < 6_000
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|eval|innerHTML)\b", "".join(scripts))
