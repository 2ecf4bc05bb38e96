"""The page's pictures: score by method, and what a deployment costs in time.

Drawn with matplotlib on its own canvas, so that no display and no global state are needed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from sharedenc.report.changes import HEADLINE, NOT_IN_STUDY, Scores, task_of
from sharedenc.report.summary import Deployment

# Colours that stay apart in print and for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def score_bars(scores: Scores, beside: dict[tuple[str, str, str], float], head: str) -> bytes:
    """Bars of test mIoU and mAP per method and backbone; a line marks the published score.

    Args:
        beside: Published score by backbone, method name and metric.
        head: What the published scores are; a mere reference is drawn pale.

    Returns:
        A PNG.
    """
    metrics = list(HEADLINE.values())
    ink = "#222" if head == "published" else "#aaa"
    figure = _figure(9.0, 3.0 * len(metrics))
    axes = figure.subplots(len(metrics), 1)
    names, methods = scores.backbones, scores.methods
    width = 0.8 / max(1, len(names))
    for axis, metric in zip(axes, metrics, strict=True):
        ticks: list[tuple[float, float]] = []
        for i, backbone in enumerate(names):
            offset = (i - (len(names) - 1) / 2) * width
            for j, method in enumerate(methods):
                score = scores.score(backbone, method, metric)
                place = j + offset
                if score.value is None or score.low is None or score.high is None:
                    if score.why == NOT_IN_STUDY:
                        continue
                    axis.text(place, 0.0, "x", ha="center", va="bottom", color=_COLOURS[i % 7])
                else:
                    spread = [[score.value - score.low], [score.high - score.value]]
                    error = {"yerr": spread, "capsize": 2} if score.runs > 1 else {}
                    axis.bar(place, score.value, 0.9 * width, color=_COLOURS[i % 7], **error)
                known = beside.get((backbone, method.name, metric))
                if known is not None:
                    ticks.append((place, known))
        for place, known in ticks:
            axis.plot([place - width / 2, place + width / 2], [known] * 2, color=ink, lw=1.4)
        axis.set_xticks(range(len(methods)), [method.name for method in methods])
        axis.set_ylabel(f"test {metric}")
        axis.set_ylim(bottom=0)
        axis.set_title("Segmentation" if task_of(metric) == "seg" else "Detection", loc="left")
    handles = [_patch(_COLOURS[i % 7], name) for i, name in enumerate(names)]
    if ticks:
        handles.append(_line(ink, head))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return _png(figure)


def cost_scatter(deployments: Sequence[Deployment], timed: str) -> bytes | None:
    """Scores of the deployments over the time for both tasks; None when nothing was timed."""
    if not deployments:
        return None
    figure = _figure(9.0, 4.2)
    axes = figure.subplots(1, 2)
    backbones = list(dict.fromkeys(d.backbone for d in deployments))
    ways = list(dict.fromkeys(d.name for d in deployments))
    for axis, metric in zip(axes, HEADLINE.values(), strict=True):
        for deployment in deployments:
            axis.plot(
                deployment.latency_ms,
                getattr(deployment, metric),
                marker=_MARKERS[ways.index(deployment.name) % len(_MARKERS)],
                color=_COLOURS[backbones.index(deployment.backbone) % len(_COLOURS)],
                linestyle="",
                markersize=8,
                alpha=0.85,
                fillstyle="none" if deployment.suspect else "full",
            )
        axis.set_xlabel("ms per picture, both tasks (p50)")
        axis.set_ylabel(f"test {metric}")
        axis.set_xlim(0, 1.1 * max(d.latency_ms for d in deployments))
        axis.set_ylim(0, 1.1 * max(getattr(d, metric) for d in deployments) or 1.0)
        axis.grid(alpha=0.3)
    handles = [_patch(_COLOURS[i % 7], name) for i, name in enumerate(backbones)]
    handles += [_point(_MARKERS[i % 6], name) for i, name in enumerate(ways)]
    figure.suptitle(timed, fontsize=10)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return _png(figure)


def _figure(width_in: float, height_in: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width_in, height_in), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _line(colour: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, lw=1.4, label=label)


def _point(marker: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color="#555", marker=marker, linestyle="", markersize=8, label=label)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
