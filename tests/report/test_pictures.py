"""The figures: the numbers behind them, and what is drawn and written of them."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace

import pytest

from sharedenc.report.collect import RunData, StudyRows, study_rows
from sharedenc.report.deployments import options
from sharedenc.report.evidence import Curve
from sharedenc.report.figures.canvas import MISSING, WIDTH_PT, fit, text_width, wrapped
from sharedenc.report.figures.changes import changes_sheet, recovery_sheet
from sharedenc.report.figures.curves import MOST_LINES, MOST_POINTS, curves_sheet, lines
from sharedenc.report.figures.dual_cost import dual_cost_sheet, timed_setups
from sharedenc.report.figures.front import front_sheet, panel_front
from sharedenc.report.figures.parameters import parameters_sheet
from sharedenc.report.figures.radar import radar_sheet, shares
from sharedenc.report.figures.scores import scores_sheet
from sharedenc.report.figures.table import Sheet
from sharedenc.report.pictures import Picture, pictures
from sharedenc.report.published import published
from sharedenc.report.table_spec import Facts
from sharedenc.report.theme import LIGHT, standalone
from sharedenc.report.thesis import published_facts
from tests.report.study import bench, benches, count, grid, run, versions

SVG = "{http://www.w3.org/2000/svg}"
BACKBONES = ["resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121"]
ODD = '</g><b>"x"&$a$'


def facts_of(runs: Sequence[RunData], *timed: RunData) -> Facts:
    return of_rows(study_rows("written", runs, versions(), timed))


def of_rows(rows: StudyRows) -> Facts:
    return Facts.of(rows, count)


@pytest.fixture(scope="module")
def thesis() -> Facts:
    return published_facts(count)


@pytest.fixture(scope="module")
def drawn(thesis: Facts) -> dict[str, Picture]:
    return {picture.number: picture for picture in pictures(thesis, options(thesis), None)}


@pytest.fixture(scope="module")
def partial(thesis: Facts) -> dict[str, Picture]:
    """Two backbones beside the published numbers: one has an odd name, one a failed cell."""
    runs = [
        run("resnet18", "baseline", task="det", seed=0),
        run("resnet18", "baseline", task="seg", seed=0),
        run("resnet18", "dual", state="failed", reason='no memory: "12 GB" & more', kind="oom"),
        run(ODD, "baseline", task="det"),
        run(ODD, "dual"),
    ]
    facts = facts_of(runs, *benches())
    curve = Curve(cell=f"{ODD}/dual", seed=0, metric="val/mIoU", points=((1, 0.2), (2, 0.4)))
    found = pictures(facts, options(facts), thesis, [curve])
    return {picture.number: picture for picture in found}


def texts(picture: Picture) -> list[str]:
    root = ET.fromstring(picture.svg)
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def column(sheet: Sheet, name: str) -> list[float | None]:
    heads, rows = sheet.flat()
    return [row[heads.index(name)] for row in rows]  # type: ignore[misc]


class TestNumbers:
    """Hand-worked from the published tables, or another table of theirs."""

    def test_a_dual_network_saves_what_table_5_1_says(self, thesis: Facts) -> None:
        sheet = parameters_sheet(thesis, None, is_published=True)
        assert sheet.labels(0) == BACKBONES
        # 100 * (1 - 11.89 / (11.31 + 11.76)) and so on.
        saved = [48.46, 42.88, 48.56, 46.49]
        assert column(sheet, "saved (%)") == pytest.approx(saved, abs=0.005)

    def test_counts_stand_beside_the_printed_ones(self, thesis: Facts) -> None:
        sheet = parameters_sheet(facts_of(grid()), thesis)
        # The stand-in counts 13.000003 of 23.000006 million; the dual cells say 12.5 of 23.
        assert column(sheet, "saved (%)") == pytest.approx([43.478] * 4, abs=0.001)
        assert column(sheet, "saved (%) published")[0] == pytest.approx(48.46, abs=0.005)
        assert column(sheet, "saved (%) difference")[0] == pytest.approx(-4.98, abs=0.005)
        assert column(sheet, "saved as trained (%)") == pytest.approx([45.652] * 4, abs=0.001)

    @pytest.mark.parametrize(
        ("strategy", "metric", "points"),
        [
            ("share", "mIoU", [10.19, 5.57, 21.54, 2.91]),
            ("share", "mAP", [3.45, 7.86, 17.89, 8.72]),
            ("swap", "mIoU", [3.27, 2.54, 2.97, 1.31]),
            ("swap", "mAP", [-0.12, 4.39, 9.42, 3.51]),
        ],
    )
    def test_biases_recover_percentage_points_of_the_baseline(
        self, thesis: Facts, strategy: str, metric: str, points: list[float]
    ) -> None:
        sheet = recovery_sheet(thesis, None)
        at = ("mIoU", "mAP").index(metric)
        rows = [sheet.row(name, strategy) for name in BACKBONES]
        found = [row.values[at].number for row in rows if row is not None]
        assert found == pytest.approx(points, abs=0.005)

    def test_changes_are_those_that_are_printed_beside_the_scores(self, thesis: Facts) -> None:
        sheet = changes_sheet(thesis, None)
        tables = {
            "swap-frozen": ("4.6", "4.7"),
            "swap-bias": ("4.8", "4.9"),
            "share-frozen": ("4.10", "4.11"),
            "share-bias": ("4.12", "4.13"),
            "dual": ("4.14", "4.15"),
        }
        assert sheet.labels(1) == list(tables)
        for row in sheet.rows:
            pairs = zip(tables[row.labels[1]], ("mIoU_rel", "mAP_rel"), row.values, strict=True)
            for table, name, value in pairs:
                printed = published().value(table, row.labels[:1], name)
                # What is printed was rounded from scores with more digits.
                assert value.number == pytest.approx(printed, abs=0.03)

    def test_the_changes_of_a_study_are_its_own(self, thesis: Facts) -> None:
        runs = [*grid(seed=0), *grid(seed=1)]
        sheet = changes_sheet(facts_of(runs), thesis)
        assert sheet.row("resnet18", "dual") is not None
        assert column(sheet, "mIoU change (%)")[4] == pytest.approx(10.0)
        assert column(sheet, "mIoU change (%) 95 % low")[4] == pytest.approx(10.0)
        # resnet18's dual mIoU: 0.5621 against 0.5103.
        assert column(sheet, "mIoU change (%) published")[4] == pytest.approx(10.15, abs=0.005)
        assert column(sheet, "mIoU change (%) difference")[4] == pytest.approx(-0.15, abs=0.005)

    def test_scores_are_those_of_table_a_1(self, thesis: Facts) -> None:
        sheet = scores_sheet(thesis, None)
        assert len(sheet.rows) == 24
        row = sheet.row("efficientnet_v2_s", "swap-bias")
        assert row is not None
        assert [value.number for value in row.values] == [0.5844, 0.2548]

    def test_dual_networks_are_timed_and_counted(self, thesis: Facts) -> None:
        (setup,) = timed_setups(thesis)
        sheet = dual_cost_sheet(thesis, None, setup)
        assert sheet.labels(1) == ["fp32", "int8-unscaled"]
        # 11.31 + 11.97 - 11.18 million, 6.684 and 3.280 ms.
        assert column(sheet, "parameters (M)")[0] == pytest.approx(12.10)
        assert column(sheet, "latency p50 (ms)")[0] == 6.684
        assert column(sheet, "latency p50 (ms)")[4] == 3.28

    def test_baselines_are_two_networks(self, thesis: Facts) -> None:
        found = options(thesis, precision="fp32")
        sheet = radar_sheet(thesis, found, None, [], is_published=True)
        assert sheet.columns[:4] == ("mIoU", "pixel accuracy", "mAP", "mAP50")
        # 5.429 + 5.564 ms, 11.31 + 11.97 million.
        assert column(sheet, "latency (ms)")[0] == pytest.approx(10.993)
        assert column(sheet, "parameters (M)")[0] == pytest.approx(23.28)
        assert any("training" in note and "did not print it" in note for note in sheet.notes)

    def test_training_speed_is_the_mean_of_both_baselines(self) -> None:
        runs = [
            replace(
                r, metrics={**r.metrics, "images_per_s": 300.0 if r.name[-3:] == "seg" else 100}
            )
            for r in grid()
        ]
        sheet = radar_sheet(facts_of(runs), [], None, [])
        assert column(sheet, "training (images/s)") == [200.0] * 4
        assert any(note.startswith("latency (ms) is left out: not timed") for note in sheet.notes)

    def test_a_share_is_of_the_best(self) -> None:
        assert shares([1.0, None, 4.0], less_is_better=False) == [0.25, None, 1.0]
        assert shares([2.0, None, 8.0], less_is_better=True) == [1.0, None, 0.25]
        assert shares([None, 0.0], less_is_better=True) == [None, None]

    def test_deployments_cost_their_passes(self, thesis: Facts) -> None:
        sheet = front_sheet(options(thesis, precision="fp32"), [], "")
        by_name = {row.labels[:2]: row for row in sheet.rows}
        two, one = (by_name["resnet18", kind] for kind in ("baseline", "dual"))
        assert (two.labels[2], one.labels[2]) == ("2", "1")
        assert two.values[0].number == pytest.approx(10.993)
        assert one.values[0].number == 6.684
        # Nothing is faster, and no other of its speed scores as well.
        assert (two.labels[3], one.labels[3]) == ("no", "yes")

    def test_a_front_has_what_no_other_beats(self) -> None:
        points = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.1), (1.0, 0.3), (4.0, 0.5), (2.0, 0.4)]
        assert panel_front(points) == [(1.0, 0.3), (2.0, 0.4), (3.0, 0.5)]


class TestMissing:
    def test_what_failed_is_a_cross_and_a_note_and_never_zero(
        self, partial: dict[str, Picture]
    ) -> None:
        picture = partial["5.1"]
        row = next(row for row in picture.rows if row[:2] == ("resnet18", "dual"))
        assert row[2] is None
        assert MISSING in texts(picture)
        assert any(
            'failed: no memory: "12 GB" & more' in note and "resnet18 dual mIoU" in note
            for note in picture.notes
        )
        assert any(text == f"{MISSING} failed" for text in texts(partial["5.3"]))

    def test_methods_that_are_in_no_cell_are_named_once(self, partial: dict[str, Picture]) -> None:
        (note,) = [note for note in partial["5.1"].notes if "share-bias" in note]
        assert note == "swap-frozen, swap-bias, share-frozen, share-bias: not in this study"
        assert any("swap, share: not with both" in note for note in partial["5.4"].notes)

    def test_a_score_that_is_no_number_is_none(self) -> None:
        runs = grid()
        nan = [
            replace(r, metrics={**r.metrics, "test/mIoU": float("nan")})
            if r.name == "resnet18/dual"
            else r
            for r in runs
        ]
        sheet = scores_sheet(facts_of(nan), None)
        row = sheet.row("resnet18", "dual")
        assert row is not None
        assert row.values[0].number is None
        assert row.values[0].why

    def test_what_is_not_timed_yet_says_so(self, thesis: Facts) -> None:
        facts = facts_of(grid())
        assert timed_setups(facts) == []
        sheet = dual_cost_sheet(facts, thesis, "")
        assert sheet.beside.startswith("reference")
        assert column(sheet, "latency p50 (ms)") == [None] * 8
        assert any("not timed yet" in note for note in sheet.all_notes())

    def test_a_timing_in_doubt_is_drawn_hollow_and_says_why(self) -> None:
        hot = bench("resnet18 dual", 6.0, verdict="suspect", reasons="clocks fell")
        facts = facts_of(grid(), hot)
        sheet = dual_cost_sheet(facts, None, timed_setups(facts)[0])
        assert "resnet18 fp32 latency p50 (ms): suspect: clocks fell" in sheet.all_notes()

    def test_a_study_without_a_finished_cell_is_drawn(self) -> None:
        facts = facts_of([run("resnet18", "dual", state="running")])
        found = {picture.number for picture in pictures(facts, options(facts), None)}
        assert {"4.1", "5.1", "5.2", "5.3", "5.4", "5.5"} <= found


class TestPublished:
    def test_other_data_is_a_pale_reference(self, thesis: Facts) -> None:
        facts = facts_of([run("resnet18", "baseline", task="seg", data="mine")])
        sheet = scores_sheet(facts, thesis)
        assert sheet.is_reference
        assert "mIoU reference (other data)" in sheet.flat()[0]
        (picture,) = [p for p in pictures(facts, [], thesis) if p.number == "5.1"]
        assert "pale because they cannot be compared: other data." in picture.caption
        assert f"var(--reference, {LIGHT['reference']})" in picture.svg

    def test_the_same_data_is_beside(self, partial: dict[str, Picture]) -> None:
        assert "published" in texts(partial["5.1"])
        row = partial["5.1"].rows[0]
        where = partial["5.1"].columns.index("mIoU published")
        assert row[where] == 0.5103
        assert row[where + 1] == pytest.approx(0.5 - 0.5103)

    def test_nothing_is_beside_the_published_numbers(self, drawn: dict[str, Picture]) -> None:
        for picture in drawn.values():
            assert not [name for name in picture.columns if "published" in name], picture.number
            assert "difference" not in " ".join(picture.columns)

    def test_the_published_front_is_on_another_device_a_reference(
        self, partial: dict[str, Picture]
    ) -> None:
        assert any("reference" in name for name in partial["front"].columns)


class TestCurves:
    def test_each_trial_has_its_best_epoch(self) -> None:
        curves = [
            Curve(cell="resnet18/dual", seed=0, metric="val/mIoU", points=((1, 0.2), (2, 0.1))),
            Curve(cell="resnet18/dual", seed=0, metric="val/loss", points=((1, 3.0), (2, 2.0))),
            Curve(cell="resnet18/dual", seed=0, metric="lr", points=((1, 0.1),)),
        ]
        sheet = curves_sheet(facts_of(grid()), curves)
        heads, rows = sheet.flat()
        assert heads[:4] == ("backbone", "method", "task", "seed")
        assert rows == (("resnet18", "dual", "both", "0", 2.0, 0.2, 1.0, None, None, 2.0, None),)
        assert sheet.all_notes() == ()

    def test_many_lines_and_long_ones_are_thinned_and_that_is_said(self) -> None:
        points = tuple((epoch, float(epoch)) for epoch in range(1, 1001))
        seeds = MOST_LINES + 5
        curves = [
            Curve(cell="resnet18/dual", seed=seed, metric="val/mIoU", points=points)
            for seed in range(seeds)
        ]
        facts = facts_of(grid())
        kept, dropped = lines(facts, curves)
        assert (len(kept), dropped) == (MOST_LINES, 5)
        assert len(kept[0].points) <= MOST_POINTS + 1
        assert kept[0].points[-1] == (1000, 1000.0)
        sheet = curves_sheet(facts, curves)
        assert len(sheet.rows) == seeds
        assert f"5 of {seeds} lines are left out" in sheet.notes[0]

    def test_what_is_no_number_is_not_drawn(self) -> None:
        curve = Curve(
            cell="resnet18/dual", seed=0, metric="val/loss", points=((1, 2.0), (2, float("nan")))
        )
        kept, _ = lines(facts_of(grid()), [curve])
        assert [line.points for line in kept] == [((1, 2.0),)]

    def test_a_cell_that_the_rows_do_not_have_is_read_from_its_name(self) -> None:
        curve = Curve(cell="other/share-bias/seg", seed=1, metric="val/mIoU", points=((1, 0.5),))
        sheet = curves_sheet(facts_of(grid()), [curve])
        assert sheet.rows[0].labels == ("other", "share-bias", "seg", "1")


class TestDrawing:
    def test_every_figure_of_the_thesis_is_there(self, drawn: dict[str, Picture]) -> None:
        assert {"4.1", "5.1", "5.2", "5.3", "5.4", "5.5", "front", "front-parameters"} <= set(drawn)

    def test_text_is_text_and_in_no_font_of_the_printer(self, drawn: dict[str, Picture]) -> None:
        for picture in drawn.values():
            assert "resnet18" in " ".join(texts(picture)), picture.number
            assert "DejaVu" not in picture.svg
            assert "<style" not in picture.svg
        assert "swap-frozen" in texts(drawn["5.3"])
        assert "\N{MINUS SIGN}48.5 %" in texts(drawn["5.5"])

    def test_colours_are_variables(self, drawn: dict[str, Picture]) -> None:
        for picture in drawn.values():
            rest = re.sub(r"var\(--[a-z0-9-]+, #[0-9a-f]{6}\)", "", picture.svg)
            rest = re.sub(r'(href="|url\()#[^")]*', "", rest)
            assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgb\(|black|white", rest), picture.number

    def test_ids_are_unique_on_one_page_and_every_reference_has_its_own(
        self, drawn: dict[str, Picture]
    ) -> None:
        seen: set[str] = set()
        for picture in drawn.values():
            root = ET.fromstring(picture.svg)
            ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
            assert len(ids) == len(set(ids))
            assert not seen & set(ids)
            seen |= set(ids)
            used = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', picture.svg)
            assert {a or b for a, b in used} <= set(ids)
            assert used or picture.number == "5.5"

    def test_it_is_named_for_those_who_do_not_see_it(self, drawn: dict[str, Picture]) -> None:
        picture = drawn["5.3"]
        root = ET.fromstring(picture.svg)
        assert root.attrib["role"] == "img"
        title, told = (root.find(f"{SVG}{tag}") for tag in ("title", "desc"))
        assert title is not None
        assert told is not None
        assert title.text == picture.title
        assert root.attrib["aria-labelledby"] == f"{title.attrib['id']} {told.attrib['id']}"

    def test_it_is_as_wide_as_its_place_and_asks_nothing_of_others(
        self, drawn: dict[str, Picture]
    ) -> None:
        for picture in drawn.values():
            assert picture.svg.startswith("<svg ")
            root = ET.fromstring(picture.svg)
            assert root.attrib["width"] == "100%"
            assert "height" not in root.attrib
            assert float(root.attrib["viewBox"].split()[2]) == pytest.approx(WIDTH_PT, abs=0.1)
            addresses = set(re.findall(r"https?://[^\"' ]*", picture.svg))
            assert addresses == {"http://www.w3.org/2000/svg"}

    def test_names_with_markup_are_names(self, partial: dict[str, Picture]) -> None:
        for number in ("5.1", "5.3", "5.5", "4.1", "front-parameters", "curves"):
            assert ODD in texts(partial[number]), number
            assert "<b>" not in partial[number].svg
            ET.fromstring(standalone(partial[number].svg))

    def test_a_png_is_of_print_size(self, drawn: dict[str, Picture]) -> None:
        from PIL import Image

        for picture in drawn.values():
            image = Image.open(io.BytesIO(picture.png))
            # 16 cm at 300 dots per inch.
            assert image.size[0] == pytest.approx(1890, abs=1)
            assert image.info["dpi"][0] == pytest.approx(300, abs=0.1)
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
            assert "Software" not in image.info

    def test_no_text_is_smaller_than_8_points_in_print(self, drawn: dict[str, Picture]) -> None:
        for picture in drawn.values():
            sizes = re.findall(r"(?:font-size|font): (?:\w+ )?([\d.]+)px", picture.svg)
            assert sizes
            assert min(map(float, sizes)) >= 8.0

    def test_no_text_leaves_the_picture(self, partial: dict[str, Picture]) -> None:
        for picture in partial.values():
            root = ET.fromstring(picture.svg)
            _, _, width, height = map(float, root.attrib["viewBox"].split())
            for element in root.iter(f"{SVG}text"):
                if "transform" in element.attrib:
                    continue
                x, y = (float(element.attrib[name]) for name in ("x", "y"))
                wide = text_width("".join(element.itertext()), 8.0)
                style = element.attrib["style"]
                left = x - wide if "end" in style else x - wide / 2 if "middle" in style else x
                assert left > -2, (picture.number, element.text)
                assert left + wide < width + 2, (picture.number, element.text)
                assert 0 < y < height

    def test_the_same_input_gives_the_same_bytes(self) -> None:
        facts = facts_of([run("resnet18", "baseline", task="seg"), run("resnet18", "dual")])
        first, second = (pictures(facts, [], None) for _ in range(2))
        assert first == second

    def test_drawing_leaves_no_trace_in_matplotlib(self) -> None:
        import matplotlib as mpl

        before = dict(mpl.rcParams)
        pictures(facts_of([run("resnet18", "dual")]), [], None)
        assert dict(mpl.rcParams) == before

    def test_signs_that_the_print_font_lacks_and_control_signs_are_no_error(self) -> None:
        facts = facts_of([run("\u7f51\u7edc\x07net", "dual"), run("_hidden", "dual")])
        found = {picture.number: picture for picture in pictures(facts, [], None)}
        assert "\u7f51\u7edc net" in texts(found["5.1"])
        assert "_hidden" in texts(found["5.1"])

    def test_more_setups_than_figures_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sharedenc.report.pictures.MOST_SETUPS", 2)
        timed = [
            bench(f"resnet18 {graph}", 5.0, device=f"board {at}")
            for at in range(4)
            for graph in ("seg", "det", "dual")
        ]
        facts = facts_of(
            [
                run("resnet18", "dual"),
                *(run("resnet18", "baseline", task=t) for t in ("det", "seg")),
            ],
            *timed,
        )
        found = pictures(facts, options(facts), None)
        numbers = [picture.number for picture in found]
        assert len(set(numbers)) == len(numbers)
        assert sum(number.startswith("5.2") for number in numbers) == 2
        for first in ("5.2", "front"):
            picture = found[numbers.index(first)]
            assert any("board 3" in note for note in picture.notes)


class TestNames:
    def test_a_long_name_gives_way_in_its_middle(self) -> None:
        name = "convnext_tiny.in12k_ft_in1k_384"
        short = fit(name, 8.0, 80.0)
        assert text_width(short, 8.0) <= 80.0
        start, _, end = short.partition("\N{HORIZONTAL ELLIPSIS}")
        assert name.startswith(start)
        assert name.endswith(end)
        assert len(start) > len(end) > 2
        assert fit("resnet18", 8.0, 80.0) == "resnet18"

    def test_a_method_takes_two_lines_where_one_is_too_narrow(self) -> None:
        assert wrapped("share-frozen", 8.0, 100.0) == "share-frozen"
        assert wrapped("share-frozen", 8.0, 36.0) == "share-\nfrozen"


def test_memory_has_a_figure_where_a_board_tells_it() -> None:
    board = {"device": "agx", "backend": "tensorrt", "runtime": "10.3.0"}
    timed = [
        bench(f"resnet18 {graph}", 5.0, **board, engine_mib=10.0, context_mib=mib)
        for graph, mib in (("seg", 1.0), ("det", 2.0), ("dual", 3.0))
    ]
    facts = facts_of(grid(), *timed, *benches())
    found = {picture.number: picture for picture in pictures(facts, options(facts), None)}
    shown = [number for number in found if number.startswith("front-memory")]
    assert shown == ["front-memory"]
    heads = found["front-memory"].columns
    at, name = heads.index("memory (MiB)"), heads.index("deployment")
    sizes = {row[name]: row[at] for row in found["front-memory"].rows if row[0] == "resnet18"}
    assert sizes["dual"] == sizes["share-frozen"] == 13.0
    assert sizes["baseline"] == 23.0
    untold = facts_of(grid(), *benches())
    numbers = [picture.number for picture in pictures(untold, options(untold), None)]
    assert not [number for number in numbers if number.startswith("front-memory")]
