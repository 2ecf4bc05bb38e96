"""The front as it is drawn: nothing is cut off, and only what is in doubt is hollow."""

from __future__ import annotations

from dataclasses import replace

from sharedenc.report.boards import IN_ONE_RUN
from sharedenc.report.changes import Figure
from sharedenc.report.deployments import options
from sharedenc.report.figures.canvas import PAPER, drawing
from sharedenc.report.figures.front import draw_front, front_sheet
from sharedenc.report.figures.table import Sheet
from sharedenc.report.thesis import published_facts
from tests.report.study import count


def sheet(mark: str = "") -> Sheet:
    """Two deployments whose scores lie so close together that ticks need four decimals."""
    found = options(published_facts(count), precision="fp32")[:2]
    near = [
        replace(
            option,
            latency=Figure.of([8.0 + at], mark=mark),
            mIoU=Figure.of([0.5501 + at / 2000]),
            mAP=Figure.of([0.2201 + at / 2000]),
        )
        for at, option in enumerate(found)
    ]
    return front_sheet(near, (), "")


def test_the_name_of_an_axis_stays_on_the_paper() -> None:
    with drawing():
        figure = draw_front(sheet())
        figure.draw_without_rendering()
        for axis in figure.axes:
            assert len(axis.get_yticklabels()[0].get_text()) >= 5
            assert axis.yaxis.label.get_window_extent().x0 >= 0


def test_what_was_timed_in_one_run_is_not_hollow() -> None:
    for mark, hollow in ((IN_ONE_RUN, False), ("suspect: hot", True)):
        with drawing():
            figure = draw_front(sheet(mark))
        faces = {line.get_mfc() for line in figure.axes[0].lines if line.get_marker() != "None"}
        assert (PAPER in faces) is hollow
        texts = " ".join(text.get_text() for text in figure.texts)
        assert ("cost in doubt" in texts) is hollow
