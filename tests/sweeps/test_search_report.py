"""The account of a search: what was tried, stopped and chosen, and what stopping cost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sharedenc.spec import Recipe, Trial
from sweeps.graph import Facts
from sweeps.search_report import chosen_rates, curves, markdown, read, report, search_trials
from sweeps.study import Study
from tests.sweeps.searching import run

# Scores after epochs 1, 2, 3, 4 by rate; rungs 1 and 2.
CURVES = {
    1e-3: [0.2, 0.3, 0.4, 0.4],
    2e-3: [0.1, 0.2, 0.5, 0.6],  # stopped at epoch 1, and would have been the best
    4e-3: [0.3, 0.2, 0.2, 0.2],
    8e-3: [0.3, 0.4, 0.5, 0.5],
}


def score(trial: Trial, epoch: int) -> float:
    return CURVES[trial.lr][epoch - 1]


def account(facts: Facts, **settings: Any) -> tuple[dict[str, Any], Any]:
    study = Study(
        kind="lr-search",
        only=("resnet18/share-frozen/seg",),
        recipe=Recipe(epochs=4, batch_size=2, image_px=64),
        lr={"*": 1e-3},
        search_lrs=tuple(CURVES),
        **settings,
    )
    rows = run(study, facts, score)
    return report(search_trials(rows.values())), rows


def test_the_report_says_what_was_stopped_where_and_against_what(facts: Facts) -> None:
    values, _ = account(facts, search_rungs=(1, 2))
    (search,) = values["searches"]
    lines = {line["lr"]: line for line in search["trials"]}
    assert [line["lr"] for line in search["trials"]] == [1e-3, 2e-3, 4e-3, 8e-3]
    assert lines[2e-3]["stopped"] == {"epoch": 1, "score": 0.1, "better": [0.2], "of": 2}
    assert lines[2e-3]["at_rungs"] == {"1": 0.1}
    # At epoch 2 it ranks by its best so far, 0.3, as the first trial does.
    assert lines[4e-3]["at_rungs"] == {"1": 0.3, "2": 0.3}
    assert (lines[4e-3]["state"], lines[8e-3]["state"]) == ("done", "done")
    assert search["winner"] == {"name": lines[8e-3]["name"], "lr": 8e-3, "score": 0.5}
    assert (search["stopped"], search["epochs_trained"], search["epochs_saved"]) == (1, 13, 3)
    assert search["verdict"] is None
    text = markdown(values)
    assert "stopped at epoch 1 with 0.1 against 0.2 (1 of 2 were better)" in text
    assert "Whether one of them would have won is not known" in text


def test_full_curves_say_whether_the_winner_was_right_and_what_was_lost(facts: Facts) -> None:
    _, rows = account(facts, search_rungs=(1, 2))
    whole, _ = account(facts, search_rungs=(9,), search_factor=2)
    assert whole["searches"][0]["stopped"] == 0
    judged = report(search_trials(rows.values()), full=curves(whole))
    (search,) = judged["searches"]
    assert search["verdict"]["best"]["lr"] == 2e-3
    assert search["verdict"]["right"] is False
    assert search["verdict"]["lost"] == pytest.approx(0.1)
    assert search["verdict"]["lost_relative"] == pytest.approx(1 / 6)
    text = markdown(judged)
    assert "Run to the end, 0.002 is best with 0.6: stopping it lost 0.1 (16.7 %" in text
    assert "best, run to the end" in text


def test_a_right_winner_is_said_so(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CURVES, 2e-3, [0.1, 0.2, 0.3, 0.3])
    _, rows = account(facts, search_rungs=(1, 2))
    whole, _ = account(facts, search_rungs=(9,))
    judged = report(search_trials(rows.values()), full=curves(whole))
    assert judged["searches"][0]["verdict"]["right"] is True
    assert judged["searches"][0]["verdict"]["lost"] == 0
    assert "none of them beats the winner" in markdown(judged)


def test_a_stored_report_can_be_judged_later(facts: Facts) -> None:
    values, _ = account(facts, search_rungs=(1, 2))
    whole, _ = account(facts, search_rungs=(9,))
    stored = json.loads(json.dumps(values))
    assert report(read(stored)) == values
    again = report(read(stored), full=curves(json.loads(json.dumps(whole))))
    assert again["searches"][0]["verdict"]["best"]["lr"] == 2e-3


def test_failures_are_listed_with_their_reason_and_never_win(facts: Facts) -> None:
    _, rows = account(facts, search_rungs=(9,))
    best = max(rows.values(), key=lambda row: row.score)
    best.state, best.reason = "failed", "the loss | is nan"
    values = report(search_trials(rows.values()))
    assert values["searches"][0]["winner"]["lr"] == 8e-3
    assert "failed: the loss / is nan |" in markdown(values)
    for row in rows.values():
        row.state = "failed"
    none = report(search_trials(rows.values()))
    assert none["searches"][0]["winner"] is None
    assert "No trial gave a score." in markdown(none)


def test_the_rates_that_final_trials_were_given_are_listed(facts: Facts) -> None:
    study = Study(
        kind="full-grid",
        only=("resnet18/share-frozen/seg",),
        recipe=Recipe(epochs=4, batch_size=2, image_px=64),
        lr_search="cell",
        search_lrs=tuple(CURVES),
        search_rungs=(9,),
    )
    rows = run(study, facts, score)
    rates = chosen_rates(rows)
    assert rates == {"resnet18/share-frozen/seg": "0.002, plateau"}
    text = markdown(report(search_trials(rows.values()), rates=rates))
    assert "- resnet18/share-frozen/seg: 0.002, plateau" in text
