"""Tables as LaTeX: they compile as they are, whatever stands in them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sharedenc.report.changes import Figure
from sharedenc.report.collect import study_rows
from sharedenc.report.latex import escape, latex
from sharedenc.report.table_spec import Facts, Table
from sharedenc.report.tables import build_tables
from sharedenc.report.thesis import published_facts
from tests.report.study import bench, benches, count, grid, run, versions

ODD = r"""it's "A&B" 100% of_all #1 <b>x</b> $5 ~^{}\ [b]*|`"""
STRANGE = "größe ≈ 5 µm \u00d7 中文 \u2013 “naïve” \u200b"


def odd_facts(seeds: int = 1) -> Facts:
    """A study whose name, backbone, device and reasons are full of markup."""
    trials = [trial for seed in range(seeds) for trial in grid(seed=seed)]
    trials += [run(ODD, "baseline", "none", task) for task in ("seg", "det")]
    trials += [run(f"[{STRANGE}", "dual"), run("*", "dual", state="failed", reason=ODD)]
    odd = bench(
        "resnet18 dual",
        6.0,
        verdict="suspect",
        reasons=ODD,
        device=f"orin {ODD}",
        backend="tensorrt",
        runtime="10.3",
    )
    timed = [*benches(), odd]
    return facts_of(study_rows(f"{ODD} {STRANGE}", trials, versions(), timed))


def facts_of(rows: object) -> Facts:
    return Facts.of(rows, count)  # type: ignore[arg-type]


def document(texts: list[str]) -> str:
    lines = [r"\documentclass{article}", r"\usepackage{booktabs,graphicx}", r"\begin{document}"]
    for text in texts:
        several = "outside of a float" in text
        around = ("{", r"\par}") if several else (r"\begin{table}", r"\end{table}")
        lines += [around[0], r"\small", text, around[1], r"\clearpage"]
    return "\n".join([*lines, r"\end{document}", ""])


def compiled(folder: Path, texts: list[str]) -> str:
    """Compile tables in one document; the log."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed: apt-get install texlive-latex-recommended")
    (folder / "all.tex").write_text(document(texts))
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "all.tex"],
        cwd=folder,
        capture_output=True,
        timeout=300,
        check=False,
    )
    log = (folder / "all.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    assert (folder / "all.pdf").stat().st_size > 0
    return log


def too_large(log: str) -> list[str]:
    """What sticks out of the text or of the page."""
    return [
        line for line in log.splitlines() if line.startswith(("Overfull", "LaTeX Warning: Float"))
    ]


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_table_of_a_study_with_odd_names_compiles_and_fits(
    tmp_path: Path, seeds: int
) -> None:
    facts = odd_facts(seeds)
    tables = build_tables(facts)
    assert len(tables) >= 20
    assert not too_large(compiled(tmp_path, [latex(table, facts.rows) for table in tables]))


def test_the_published_tables_compile_and_fit(tmp_path: Path) -> None:
    facts = published_facts(count)
    tables = build_tables(facts, published=True)
    assert not too_large(compiled(tmp_path, [latex(table, facts.rows) for table in tables]))


def table(number: str, facts: Facts) -> Table:
    return next(table for table in build_tables(facts) if table.spec.number == number)


def test_a_wide_table_is_cut_between_quantities_and_each_part_has_the_labels() -> None:
    facts = facts_of(study_rows("written", grid(), [], []))
    text = latex(table("A.1", facts), facts.rows)
    parts = text.split(r"\medskip")
    assert f"% {len(parts)} parts: outside of a float they go over pages." in text
    assert len(parts) > 1
    for part in parts:
        assert part.count("mobilenet\\_v3\\_large & dual & ") == 1
        assert part.count(r"\toprule") == part.count(r"\end{tabular}") == 1
    heads = re.findall(r"\\multicolumn\{(\d)\}\{c\}\{(.*?)\}", "".join(parts))
    assert [name for _, name in heads][:4] == ["mIoU", "pixel\\_acc", "mAP", "mAP50"]
    assert len(heads) == 13
    assert {span for span, _ in heads} == {"3"}


def test_one_head_spans_ours_the_published_number_and_the_difference() -> None:
    facts = facts_of(study_rows("written", grid(), [], []))
    lines = latex(table("4.4", facts), facts.rows).splitlines()
    assert lines[2] == r"% Needs \usepackage{booktabs} and \usepackage{graphicx}"
    assert r"\cmidrule(lr){2-4}\cmidrule(lr){5-7}\cmidrule(lr){8-10}" in lines
    row = next(line for line in lines if line.startswith("resnet18"))
    assert row.startswith(r"resnet18 & 0.5000 & 0.5103 & $-$0.0103 & 0.8000")


def test_special_letters_are_printed_and_unknown_ones_are_numbered() -> None:
    assert escape("a_b & 5 % <b>") == r"a\_b \& 5 \% \textless{}b\textgreater{}"
    assert escape("[x]*") == "{[}x{]}{*}"
    assert escape("größe\n中") == "größe {[}U+4E2D{]}"


def test_only_what_is_told_apart_is_bold() -> None:
    facts = facts_of(study_rows("written", grid(), [], []))
    filled = table("4.14", facts)
    assert r"\textbf" not in latex(filled, facts.rows)
    entry = replace(filled.rows[0].entries[0], ours=Figure(-1.0, None, -2.0, -0.5, 3, True))
    row = replace(filled.rows[0], entries=(entry, *filled.rows[0].entries[1:]))
    assert r"\textbf{$-$1.0000" in latex(replace(filled, rows=(row,)), facts.rows)
