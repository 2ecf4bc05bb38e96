"""Two studies side by side, against differences worked out by hand; what is written is escaped."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sharedenc.errors import SharedencError
from sharedenc.report.collect import RunData, StudyRows, VersionData, study_rows
from sharedenc.report.compare import (
    compare,
    csv_text,
    markdown,
    page,
    summary_lines,
    write_comparison,
)
from sharedenc.report.comparison import CellPair, Comparison, Pair
from tests.report.study import bench, benches, grid, run, versions

SEG = ("resnet18", "baseline", "none", "seg")


def study(
    runs: Iterable[RunData],
    timings: Iterable[RunData] = (),
    name: str = "first",
    registered: Sequence[VersionData] | None = None,
) -> StudyRows:
    exports = versions() if registered is None else registered
    return study_rows(name, list(runs), exports, list(timings))


def seeds(*factors: float, **told: str) -> list[RunData]:
    """One cell with a trial per factor; mIoU is half of it."""
    return [run(*SEG, seed=seed, factor=f, **told) for seed, f in enumerate(factors)]  # type: ignore[arg-type]


def score(comparison: Comparison, metric: str = "mIoU", cell: str = "") -> Pair:
    found = next(c for c in comparison.cells if cell in ("", c.cell))
    return next(pair for pair in found.scores if pair.name == metric)


def cell_of(comparison: Comparison, name: str) -> CellPair:
    return next(cell for cell in comparison.cells if cell.cell == name)


class Rows(HTMLParser):
    """The rows of a page's tables with rowspans filled in, and what the page loads or runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self._spans: dict[int, int] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.loaded += [str(told[name]) for name in ("src", "href", "data") if told.get(name)]
        assert tag not in ("script", "link", "iframe", "img", "b", "u")
        assert not [name for name in told if name.startswith("on")]
        if tag == "table":
            assert not self._spans
        if tag == "tr":
            self.rows.append(len(self._spans))
            self._spans = {key: left - 1 for key, left in self._spans.items() if left > 1}
        if tag in ("td", "th"):
            self.rows[-1] += int(told.get("colspan") or 1)
            span = int(told.get("rowspan") or 1)
            if span > 1:
                self._spans[len(self.rows) * 100 + self.rows[-1]] = span - 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_same_study_twice_changed_nothing(tmp_path: Path) -> None:
    rows = study(grid(), benches())
    found = compare(rows, rows)
    assert not found.changed
    assert (len(found.cells), found.settings, found.same_data) == (44, (), True)
    assert {cell.where for cell in found.cells} == {"both"}
    assert {pair.difference.value for cell in found.cells for pair in cell.scores} == {0.0}
    assert {pair.latency.difference.value for pair in found.timings} == {0.0}
    assert all(pair.latency.difference.mark.startswith("one timing") for pair in found.timings)
    assert summary_lines(found) == [
        "Nothing changed: the same cells, scores, settings, timings and exports."
    ]
    assert write_comparison(found, tmp_path).to_dict()["changed"] is False


def test_one_seed_gives_a_difference_without_an_interval() -> None:
    pair = score(compare(study(seeds(1.0)), study(seeds(1.1))))
    assert pair.difference.value == pytest.approx(0.05)
    assert (pair.difference.runs, pair.difference.apart) == (1, None)
    assert "**" not in markdown(compare(study(seeds(1.0)), study(seeds(1.1))))
    assert "<strong>+" not in page(compare(study(seeds(1.0)), study(seeds(1.1))))


def test_several_seeds_give_the_interval_of_paired_differences() -> None:
    # mIoU differences 0.05, 0.06, 0.04: mean 0.05, deviation 0.01, half width 4.303 / sqrt(3) %.
    found = compare(study(seeds(1.0, 0.8, 1.2)), study(seeds(1.1, 0.92, 1.28)))
    pair = score(found)
    assert pair.difference.value == pytest.approx(0.05)
    ends = (pair.difference.low, pair.difference.high)
    assert ends == pytest.approx((0.02516, 0.07484), abs=1e-5)
    assert (pair.difference.runs, pair.difference.apart) == (3, True)
    assert "**+0.0500 [+0.0252, +0.0748]**" in markdown(found).replace("\\", "")
    assert "Every score is of 3 seeds." in markdown(found)
    assert "<strong>+0.0500" in page(found)
    assert "mIoU: of 1 compared, 1 higher in B, 0 lower; 1 of 1 told apart from noise." in (
        summary_lines(found)
    )


def test_what_the_noise_can_explain_is_never_bold() -> None:
    # Differences 0.10, -0.05, 0.05 of mIoU.
    found = compare(study(seeds(1.0, 1.0, 1.0)), study(seeds(1.2, 0.9, 1.1)))
    assert score(found).difference.apart is False
    assert "**" not in markdown(found)
    assert "≈ +0.0333" in markdown(found)
    assert "0 of 1 told apart from noise" in " ".join(summary_lines(found))


def test_seeds_that_only_one_side_has_do_not_enter_the_difference() -> None:
    found = compare(study(seeds(1.0, 1.0)), study(seeds(1.1, 1.1, 9.0)))
    assert score(found).difference.value == pytest.approx(0.05)
    assert score(found).difference.runs == 2
    settings = {s.name: (s.a, s.b) for s in found.cells[0].settings}
    assert settings == {"seeds": ("0, 1", "0, 1, 2")}
    assert "(3 seeds)" in page(found)
    assert "Every score is of" not in page(found)


def test_without_a_common_seed_the_means_are_compared_and_it_says_so() -> None:
    other = [run(*SEG, seed=7, factor=1.2)]
    pair = score(compare(study(seeds(1.0)), study(other)))
    assert pair.difference.value == pytest.approx(0.1)
    assert (pair.difference.runs, pair.difference.apart) == (0, None)
    assert pair.difference.mark.startswith("unpaired: ")


def test_cells_of_one_study_alone_say_where_they_are() -> None:
    a = study([run(*SEG), run("resnet18", "dual")])
    b = study([run("densenet121", "dual"), run(*SEG)])
    found = compare(a, b)
    assert {cell.cell: cell.where for cell in found.cells} == {
        "resnet18/baseline/seg": "both",
        "resnet18/dual": "only A",
        "densenet121/dual": "only B",
    }
    dual = cell_of(found, "resnet18/dual")
    assert (dual.state_a, dual.state_b, dual.settings) == ("done", "", ())
    assert [pair.name for pair in dual.scores] == ["mIoU", "pixel_acc", "mAP", "mAP50"]
    assert score(found, "mAP", "resnet18/dual").difference.why == "not in this study"
    assert "Cells: 1 in both (0 changed, 0 in another state), 1 only A, 1 only B." in (
        summary_lines(found)
    )


def test_cells_stand_in_the_order_of_the_tables() -> None:
    names = ["resnet18", "densenet121", "a_net"]
    made = [run(name, "dual") for name in names] + [
        run(*SEG),
        run("resnet18", "swap", "bias", "seg"),
    ]
    found = compare(study(made), study(made))
    assert [cell.cell for cell in found.cells] == [
        "resnet18/baseline/seg",
        "resnet18/swap-bias/seg",
        "resnet18/dual",
        "densenet121/dual",
        "a_net/dual",
    ]


def test_a_cell_that_failed_on_one_side_shows_its_state_and_reason() -> None:
    failed = study([run(*SEG, state="failed", reason="loss is NaN")])
    found = compare(failed, study(seeds(1.0)))
    assert (found.cells[0].state_a, found.cells[0].state_b) == ("failed: loss is NaN", "done")
    assert score(found).difference.why == "failed: loss is NaN"
    assert found.changed
    assert "1 in another state" in " ".join(summary_lines(found))


def test_a_score_that_is_no_number_is_missing_with_its_reason() -> None:
    [made] = seeds(1.0)
    broken = replace(made, metrics={**made.metrics, "test/mIoU": float("nan")})
    found = compare(study([made]), study([broken]))
    assert score(found).b.why == "NaN: the run's test/mIoU is not a number"
    assert score(found).difference.value is None
    assert score(found, "pixel_acc").difference.value == 0.0
    assert "nan" not in markdown(found)
    assert "nan" not in csv_text(found)


@pytest.mark.parametrize("told", [{"digest": "cd" * 32}, {"classes": ("a", "b")}])
def test_on_other_data_scores_stand_side_by_side_and_are_not_compared(
    told: dict[str, str],
) -> None:
    found = compare(study(seeds(1.0)), study(seeds(1.1, **told)))
    pair = score(found)
    assert pair.a.value == 0.5
    assert pair.b.value == pytest.approx(0.55)
    assert pair.difference.why == "not comparable: other data or classes"
    assert not found.same_data
    assert "not comparable" in page(found)
    assert summary_lines(found)[0].startswith("Not the same data or classes")


def test_what_was_set_differently_everywhere_stands_once() -> None:
    a = study(grid(recipe={"recipe.epochs": "30", "recipe.balance": "none"}))
    runs = grid(recipe={"recipe.epochs": "60", "recipe.balance": "none", "recipe.ema": "0.9"})
    slower = run("resnet18", "dual", lr=1e-4, recipe={**runs[0].params})
    kept = {k: v for k, v in runs[0].params.items() if k.startswith("recipe.")}
    slower = run("resnet18", "dual", lr=1e-4, recipe=kept)
    b = study([row for row in runs if row.name != "resnet18/dual"] + [slower])
    found = compare(a, b)
    everywhere = {s.name: (s.a, s.b) for s in found.settings}
    assert everywhere == {"epochs": ("30", "60"), "ema": ("", "0.9")}
    own = found.own_settings(cell_of(found, "resnet18/dual"))
    assert [(s.name, s.a, s.b) for s in own] == [("learning rate", "0.0002", "0.0001")]
    assert found.own_settings(cell_of(found, "densenet121/dual")) == []
    assert markdown(found).count("| epochs | 30 | 60 |") == 1


def test_latencies_are_compared_in_percent_of_a() -> None:
    a = study(grid(), [bench("resnet18 dual", 8.0), bench("resnet18 seg", 5.0)])
    b = study(grid(), [bench("resnet18 dual", 6.0), bench("resnet18 seg", 5.0, device="nano")])
    found = {(pair.graph, pair.setup): pair for pair in compare(a, b).timings}
    dual = found["dual", "desk, 2 threads, onnxruntime, stream"]
    assert dual.latency.difference.value == pytest.approx(-25.0)
    assert dual.where == "both"
    seg = found["seg", "nano, 2 threads, onnxruntime, stream"]
    assert (seg.where, seg.latency.difference.why) == ("only B", "not timed")
    assert "-25.00 %" in page(compare(a, b))
    assert "Latency: of 1 compared, 0 longer in B, 1 shorter." in summary_lines(compare(a, b))


def test_latencies_of_other_architectures_are_not_compared() -> None:
    wider = [
        replace(
            version,
            tags={
                **version.tags,
                "sharedenc.architecture": f"{version.model} wide",
                "sharedenc.architectures": "{}",
            },
        )
        for version in versions()
    ]
    a = study(grid(), [bench("resnet18 dual", 8.0)])
    b = study(grid(), [bench("voc20-resnet18-dual wide", 9.0)], registered=wider)
    [pair] = compare(a, b).timings
    assert (pair.latency.a.value, pair.latency.b.value) == (8.0, 9.0)
    assert pair.latency.difference.why == "not comparable: another architecture"


def test_exports_stand_beside_each_other_with_the_scores_of_their_files() -> None:
    told = {"images": 8, "split": "test", "float": {"mIoU": 0.6, "mAP": 0.25}}
    newer = [
        replace(v, version=2, tags={**v.tags, "sharedenc.accuracy": json.dumps(told)})
        if v.model == "voc20-resnet18-dual"
        else v
        for v in versions()
        if v.model != "voc20-resnet18-seg"
    ]
    found = compare(study(grid()), study(grid(), registered=newer))
    exports = {(e.backbone, e.graph): e for e in found.exports}
    dual = exports["resnet18", "dual"]
    assert (dual.model_a, dual.model_b) == ("voc20-resnet18-dual/1", "voc20-resnet18-dual/2")
    scores = {pair.name: pair.difference for pair in dual.scores}
    assert scores["float mIoU"].value == pytest.approx(0.1)
    assert scores["int8-trt mIoU"].why == "not scored"
    assert exports["resnet18", "seg"].where == "only A"
    fewer = json.dumps({**told, "images": 4})
    short = [replace(v, tags={**v.tags, "sharedenc.accuracy": fewer}) for v in versions()]
    again = compare(study(grid()), study(grid(), registered=short))
    pairs = next(e for e in again.exports if (e.backbone, e.graph) == ("resnet18", "dual")).scores
    assert pairs[0].difference.why == "not comparable: 8 test photos and 4 test photos"


def test_drawn_data_is_never_a_result() -> None:
    drawn = study(seeds(1.0, data="synthetic-shapes"))
    assert summary_lines(compare(drawn, drawn))[0].startswith("A and B: Synthetic data: ")


HOSTILE = '<u onclick="x">"quoted" | pipe & </td>'


def hostile() -> Comparison:
    a = study([run(*SEG), run(HOSTILE, "dual")], name=HOSTILE)
    failed = run(HOSTILE, "dual", state="failed", reason=HOSTILE, recipe={"recipe.x": HOSTILE})
    return compare(a, study([run(*SEG), failed], name="b\nc"))


def test_names_with_markup_are_escaped_everywhere() -> None:
    made = page(hostile())
    parsed = Rows(made)
    assert HOSTILE not in made
    assert parsed.text.count(HOSTILE) >= 4
    text = markdown(hostile())
    assert "<u" not in text.replace("\\<u", "")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    columns = {line.replace("\\|", "").count("|") for line in lines}
    # A table of 7 columns and one of 8.
    assert columns == {8, 9}
    told = [line["what"] for line in csv.DictReader(csv_text(hostile()).splitlines())]
    assert told.count(f"{HOSTILE}/dual") == 4


@pytest.mark.parametrize(
    "found",
    [
        compare(study(grid(), benches()), study(grid(factor=0.9), benches())),
        compare(study([run(*SEG)]), study([run("densenet121", "dual")])),
        hostile(),
    ],
    ids=["whole", "disjoint", "hostile"],
)
def test_the_page_is_whole_and_loads_nothing(found: Comparison) -> None:
    parsed = Rows(page(found))
    assert parsed.loaded == []
    assert set(parsed.rows) <= {3, 7, 8}
    assert "prefers-color-scheme: dark" in page(found)


def test_csv_has_a_line_for_every_score_and_latency() -> None:
    found = compare(study(seeds(1.0, 0.8, 1.2)), study(seeds(1.1, 0.92, 1.28)))
    lines = list(csv.DictReader(csv_text(found).splitlines()))
    first = lines[0]
    assert (first["kind"], first["what"], first["metric"]) == (
        ("cell", "resnet18/baseline/seg", "mIoU")
    )
    assert float(first["difference"]) == pytest.approx(0.05)
    assert (first["pairs"], first["apart"], first["A seeds"]) == ("3", "yes", "3")
    whole = compare(study(grid(), benches()), study(grid(), benches()))
    kinds = [line["kind"] for line in csv.DictReader(csv_text(whole).splitlines())]
    # 20 single-task cells of each task with 2 metrics, 4 dual ones with 4; 16 networks timed.
    assert (kinds.count("cell"), kinds.count("latency")) == (2 * 40 + 4 * 4, 16)


def test_files_are_written_and_told(tmp_path: Path) -> None:
    found = compare(study(seeds(1.0)), study(seeds(1.1)))
    paths = write_comparison(found, tmp_path / "out")
    told = json.loads(json.dumps(paths.to_dict(), allow_nan=False))
    assert Path(told["index"]).read_text().startswith("<!doctype html>")
    assert Path(told["overview"]).read_text() == markdown(found)
    assert Path(told["table"]).read_text() == csv_text(found)
    assert told["comparison"]["cells"][0]["scores"][0]["difference"]["value"] == pytest.approx(0.05)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("compare.csv", "compare.md", "index.html")
    ]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SharedencError, match=r"cannot be written to .*file.*--out DIR"):
        write_comparison(compare(study(seeds(1.0)), study(seeds(1.0))), tmp_path / "file")
