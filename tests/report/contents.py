"""Whole contents of a report, made by hand: what the page is tested with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw

from sharedenc.report.changes import Figure, Scores
from sharedenc.report.collect import RunData, StudyRows, study_rows
from sharedenc.report.contents import Contents
from sharedenc.report.deployments import Deployment, Model, Option
from sharedenc.report.evidence import Evidence, Photo, Provenance
from sharedenc.report.findings import Finding, Observation
from sharedenc.report.pictures import Picture
from sharedenc.report.summary import summarise
from sharedenc.report.table_spec import Facts
from sharedenc.report.tables import build_tables
from tests.report.study import BACKBONES, METHODS, benches, cell_name, count, grid, run, versions

# Whatever a name may hold: each must come out as text.
NASTY = (
    """</script><script>alert("x")</script> & 'quotes' "doubled" """
    "<img src=x onerror=y> ]]> {{ 7*7 }} {% raise %}"
)


def picture(number: str, title: str, caption: str = "What it shows.") -> Picture:
    """A figure with two rows behind it, one of them missing."""
    return Picture(
        number=number,
        title=title,
        caption=caption,
        columns=("backbone", "mIoU", "latency (ms)"),
        rows=(("resnet18", 0.55, 6.0), ("densenet121", None, 12.25)),
        notes=("densenet121: failed: loss is NaN",),
        svg=(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 240" role="img" '
            'aria-label="bars"><rect x="80" y="40" width="120" height="160" '
            'style="fill: var(--series-1)"/><rect x="260" y="80" width="120" height="120" '
            'style="fill: var(--series-2)"/><text x="80" y="225" '
            'style="fill: var(--ink); font-size: 14px">resnet18</text></svg>'
        ),
        png=b"",
    )


@cache
def jpeg(text: str) -> bytes:
    """A small photo with a shape whose colour hangs on the text."""
    image = Image.new("RGB", (96, 64), (96, 120, 140))
    tone = sum(text.encode()) % 200
    ImageDraw.Draw(image).rectangle((20, 12, 70, 50), fill=(tone, 90, 255 - tone))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def photos(number: int = 2, backbones: Sequence[str] = BACKBONES) -> tuple[Photo, ...]:
    """Every cell's prediction on the same photos, but for one that is missing."""
    cells = [
        cell_name(backbone, *method, task)
        for backbone in backbones
        for method in METHODS
        for task in ("det", "seg")
    ]
    cells += [f"{backbone}/dual" for backbone in backbones]
    cells.remove("resnet18/swap-bias/seg")
    return tuple(
        Photo(
            image_id=f"{at:012d}",
            truth={task: jpeg(f"{task} {at}") for task in ("seg", "det")},
            predictions={cell: jpeg(f"{cell} {at}") for cell in cells},
        )
        for at in range(number)
    )


def option(
    backbone: str, strategy: str, ms: float, miou: float, ap: float, *, front: bool, device: str
) -> Option:
    """A deployment timed in INT8 on a device."""
    passes = 1 if strategy == "dual" else 2
    deployment = Deployment(
        name=f"{backbone}/{strategy}",
        backbone=backbone,
        strategy=strategy,
        freeze="none",
        passes=passes,
        graphs=("dual",) if passes == 1 else ("seg", "det"),
        cells={"seg": f"{backbone}/{strategy}", "det": f"{backbone}/{strategy}"},
        mIoU=Figure.of([miou]),
        mAP=Figure.of([ap]),
        parameters=Figure.of([12.5 if passes == 1 else 23.0]),
    )
    return Option(
        deployment=deployment,
        device=device,
        mode="15 W",
        board=f"{device}, 15 W, tensorrt 10",
        precision="int8",
        stat="p99-single",
        latency=Figure.of([ms], mark="suspect: clocks changed" if ms > 8 else ""),
        mIoU=Figure.of([miou - 0.01]),
        mAP=Figure.of([ap - 0.01]),
        drop_mIoU=Figure.of([-100 * 0.01 / miou]),
        drop_mAP=Figure.missing("no INT8 file: not calibrated"),
        models=(Model(model=f"voc20-{backbone}-dual", version=3),) if passes == 1 else (),
        on_front=front,
    )


def options(device: str = "Orin") -> tuple[Option, ...]:
    """Two backbones, each with a dual network on the front and a pair behind it or on it."""
    return (
        option("resnet18", "baseline", 7.25, 0.50, 0.20, front=False, device=device),
        option("resnet18", "dual", 4.5, 0.55, 0.22, front=True, device=device),
        option("densenet121", "dual", 9.75, 0.60, 0.25, front=True, device=device),
    )


FINDINGS = (
    Finding(
        id="dual-beats-baseline",
        claim="One dual network beats two baselines on every backbone.",
        where="Tables 4.14, 4.15",
        published=Observation(holds=True, text="mIoU +1.2 to +4.9 %, mAP +2.2 to +9.8 %"),
        ours=Observation(holds=True, text="mIoU +10.0 %, mAP +10.0 %", clear=True),
        verdict="agrees",
    ),
    Finding(
        id="bias-recovers",
        claim="Training biases recovers most on EfficientNetV2-S.",
        where="Figure 5.4",
        published=Observation(holds=True, text="89 % recovered"),
        ours=Observation(holds=False, text="40 % recovered, ResNet18 66 %"),
        verdict="differs",
        why="one seed",
    ),
    Finding(
        id="resnet-gains",
        claim="ResNet18 gains most from the dual network.",
        where="Table 5.1",
        published=Observation(holds=True, text="+9.8 %"),
        ours=Observation(holds=None, text="no dual cell is done"),
        verdict="cannot tell",
    ),
)

PROVENANCE = Provenance(
    rows=(
        ("data set", ("coco2017",)),
        ("digest", ("ab" * 32,)),
        ("seeds", ("0", "1", "2")),
        ("versions", ("sharedenc 0.1", "torch 2.9")),
    )
)


def rows(runs: Sequence[RunData] | None = None, study: str = "written") -> StudyRows:
    """A study with a failed and a skipped cell, a search and a run that does not count."""
    if runs is None:
        failed = run(
            "resnet18",
            "dual",
            state="failed",
            kind="code",
            reason="ValueError: <b>loss</b> is NaN\n  File train.py, line 3",
        )
        skipped = run("densenet121", "swap", "bias", "seg", state="skipped", reason="no parent")
        gone = {failed.name, skipped.name}
        runs = [found for found in grid() if found.name not in gone]
        runs += [failed, skipped]
        runs += [run("resnet18", "dual", stage="lr-search", lr=lr) for lr in (1e-4, 2e-4, 1e-3)]
        runs.append(run("resnet18", "baseline", task="seg", digest="cd" * 32, end_ms=1))
    return study_rows(study, runs, versions(), benches())


def contents(
    found: StudyRows | None = None,
    *,
    evidence: Evidence | None = None,
    published: bool = False,
    refresh_s: int | None = None,
    pictures: Sequence[Picture] | None = None,
    choices: Sequence[Option] | None = None,
) -> Contents:
    """All parts of a report; those left out are made up."""
    found = found or rows()
    facts = Facts(found, Scores(found), count)
    if evidence is None:
        evidence = Evidence(photos=photos(), provenance=PROVENANCE, notes=("a note on evidence",))
    if pictures is None:
        pictures = [
            picture("front", "Accuracy against latency"),
            picture("5.2", "Latency against parameters"),
            picture("curves", "Training curves"),
        ]
    return Contents(
        facts=facts,
        tables=tuple(build_tables(facts)),
        summary=summarise(facts),
        findings=FINDINGS,
        options=options() if choices is None else tuple(choices),
        pictures=tuple(pictures),
        evidence=evidence,
        published=published,
        refresh_s=refresh_s,
    )


def search(number: int) -> list[RunData]:
    """Trials of a learning-rate search over every backbone."""
    return [
        run(
            BACKBONES[at % 4],
            "baseline",
            task="seg",
            stage="lr-search",
            lr=1e-4 * (1 + (at * 7919) % number),
            end_ms=at,
        )
        for at in range(number)
    ]


def large(number: int = 1000) -> Contents:
    """A study of the whole grid, with so many trials of a search and their seeds."""
    seeds = [found for seed in range(5) for found in grid(seed=seed)]
    return contents(rows([*seeds, *search(number - len(seeds))]))
