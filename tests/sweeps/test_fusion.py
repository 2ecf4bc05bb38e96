"""Who trains together: hand-worked cases, and rules that hold for any sweep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedenc.spec import BACKBONES
from sweeps.fusion import (
    MARGIN,
    MOST_TOGETHER,
    SHARED,
    UNKNOWN_SHARED,
    Load,
    Part,
    alone_s,
    ends,
    gather,
    seconds,
    shared_part,
)

FREE = Load(work_s=1e9, chain_s=0.0, slots=3)


def part(name: str, work: float = 100.0, shared: float = 0.8, **more: object) -> Part:
    return Part(id=name, work=work, shared=shared, **{"key": "k", **more})  # type: ignore[arg-type]


def names(groups: list[list[Part]]) -> list[list[str]]:
    return [[part.id for part in group] for group in groups]


def test_parts_side_by_side_end_one_after_the_other() -> None:
    # 80 + 20 seconds and 40 + 10: at half of the long one's way the short one is through, after
    # 40 common seconds, 10 of its own and half of the other's 20. Then 40 + 10 are left.
    both = [part("long", 100), part("short", 50)]
    assert ends(both) == pytest.approx([110, 60])
    assert seconds(both) == pytest.approx(110)
    assert ends([part("only", 100)]) == pytest.approx([100])


@settings(max_examples=60, deadline=None)
@given(
    epochs=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    own=st.lists(st.floats(0.1, 3), min_size=5, max_size=5),
    common=st.floats(0.1, 5),
)
def test_ends_are_those_of_epochs_counted_one_by_one(
    epochs: list[int], own: list[float], common: float
) -> None:
    count = len(epochs)
    parts = [
        Part(id=str(i), work=n * (common + own[i]), shared=common / (common + own[i]))
        for i, n in enumerate(epochs)
    ]
    now, counted = 0.0, [0.0] * count
    for epoch in range(1, max(epochs) + 1):
        now += common + sum(own[i] for i in range(count) if epochs[i] >= epoch)
        for i in range(count):
            if epochs[i] == epoch:
                counted[i] = now
    assert ends(parts) == pytest.approx(counted)
    assert seconds(parts) == pytest.approx(now)


def test_a_members_part_of_an_epoch_says_what_it_takes_alone() -> None:
    # 8 common and 2 own seconds; of three members each is charged 2 + 8/3.
    assert alone_s(2 + 8 / 3, 0.8, 3) == pytest.approx(10)
    assert alone_s(10, 0.8, 1) == pytest.approx(10)


def test_what_finds_no_slot_joins_the_one_of_its_encoder_that_starts() -> None:
    starts = [part("a"), part("b", key="other"), part("c", key=None)]
    waiting = [part("d"), part("e", key="other"), part("f", key=None), part("g", key="third")]
    groups = gather(starts, waiting, FREE)
    assert names(groups) == [["a", "d"], ["b", "e"], ["c"]]


def test_groups_of_one_encoder_stay_equally_long() -> None:
    starts = [part("a", 100), part("b", 300)]
    groups = gather(starts, [part(name) for name in "cdef"], FREE)
    # b takes 300 alone, and a hundred seconds beside others cost 20 more each.
    assert names(groups) == [["a", "c", "d", "e", "f"], ["b"]]
    even = gather([part("a"), part("b")], [part(name) for name in "cdef"], FREE)
    assert sorted(map(len, even)) == [3, 3]


def test_nobody_joins_where_the_whole_sweep_would_end_later() -> None:
    # Two slots and 370 seconds of work. Together two hundred take 120, which saves 80 and leaves
    # the other slot 170 to do: less than 120 with the margin. 100 beside 20 take 104.
    load = Load(work_s=370, chain_s=0.0, slots=2, free_s=0.0)
    assert names(gather([part("a")], [part("b")], load)) == [["a"]]
    assert names(gather([part("a")], [part("b"), part("c", 20)], load)) == [["a", "c"]]
    more = replace(load, work_s=381)
    assert names(gather([part("a")], [part("b")], more)) == [["a", "b"]]
    # A chain that takes longer anyway leaves the time for it.
    long = replace(load, chain_s=120 * MARGIN)
    assert names(gather([part("a")], [part("b")], long)) == [["a", "b"]]


def test_nobody_joins_for_whom_others_wait_too_long() -> None:
    # 100 beside 50 take 110, of which the short one 60: the other slot has 330 - 40 - 110 = 180.
    load = Load(work_s=330, chain_s=0.0, slots=2, free_s=0.0)
    short = part("b", 50, tail=100.0)
    assert ends([part("a"), short])[1] == pytest.approx(60)
    assert names(gather([part("a")], [short], load)) == [["a"]]
    assert names(gather([part("a")], [replace(short, tail=80.0)], load)) == [["a", "b"]]


def test_who_would_only_start_later_joins_at_the_end_of_a_sweep_too() -> None:
    # Nothing else is left to do: alone the second one ends 100 seconds after the next free slot.
    last = Load(work_s=200, chain_s=100.0, slots=2, free_s=30.0)
    assert names(gather([part("a")], [part("b")], last)) == [["a", "b"]]
    assert names(gather([part("a")], [part("b")], replace(last, free_s=10.0))) == [["a"]]
    # On a single slot there is nothing that a group could hold up.
    one = replace(last, free_s=0.0, slots=1)
    assert names(gather([part("a")], [part("b")], one)) == [["a", "b"]]


def test_groups_have_limits() -> None:
    many = [part(str(i)) for i in range(20)]
    assert len(gather(many[:1], many[1:], FREE)[0]) == MOST_TOGETHER
    assert len(gather(many[:1], many[1:], FREE, most=3)[0]) == 3
    narrow = gather(many[:1], many[1:], FREE, fits=lambda parts: len(parts) <= 2)
    assert names(narrow) == [["0", "1"]]
    # What has nothing to share gains nothing.
    assert names(gather([part("a")], [part("b", shared=0.0)], FREE)) == [["a"]]


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[Part], list[Part], Load]:
    parts = [
        Part(
            id=str(i),
            key=draw(st.sampled_from(["k", "l", None])),
            work=draw(st.floats(1, 100)),
            shared=draw(st.floats(0.1, 0.95)),
            tail=draw(st.floats(0, 50)),
        )
        for i in range(draw(st.integers(1, 12)))
    ]
    slots = draw(st.integers(1, len(parts)))
    work = sum(p.work for p in parts) * draw(st.floats(1, 3))
    chain = max(p.work + p.tail for p in parts)
    return parts[:slots], parts[slots:], Load(work_s=work, chain_s=chain, slots=slots)


@settings(max_examples=100, deadline=None)
@given(given_load=loads())
def test_every_group_keeps_the_rules(given_load: tuple[list[Part], list[Part], Load]) -> None:
    starts, waiting, load = given_load
    groups = gather(starts, waiting, load)
    assert [group[0] for group in groups] == starts
    members = [p.id for group in groups for p in group]
    assert len(members) == len(set(members))
    assert set(members) <= {p.id for p in (*starts, *waiting)}
    assert all(len({p.key for p in group}) == 1 for group in groups)
    assert all(len(group) == 1 for group in groups if group[0].key is None)
    alone = sum(p.work for group in groups for p in group)
    assert sum(map(seconds, groups)) <= alone + 1e-9


def test_the_shares_are_those_of_the_backbones_that_there_are() -> None:
    assert set(SHARED) == set(BACKBONES)
    assert all(0 < share < 1 for share in SHARED.values())
    assert shared_part("of a plugin") == UNKNOWN_SHARED == SHARED["mobilenet_v3_large"]
