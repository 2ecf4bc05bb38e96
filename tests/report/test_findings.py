"""Claims tested on the published numbers, against verdicts worked out by hand, and on made studies.

The expected numbers are those that the reference study prints, or one subtraction away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest

from jetson_agent.protocol import comparison_architecture
from sharedenc.report.claims.claims import CLAIMS
from sharedenc.report.collect import RunData, study_rows
from sharedenc.report.findings import Finding, findings
from sharedenc.report.published import published_backbones
from sharedenc.report.table_spec import Facts
from sharedenc.report.thesis import published_facts
from sharedenc.report.write import count_parameters
from tests.report.study import BACKBONES, METHODS, bench, count, grid, run, versions

RESNET, MOBILENET, EFFICIENTNET, DENSENET = BACKBONES

# By claim: does it hold in the published numbers, and a number that must be said.
PRINTED: dict[str, tuple[bool, str]] = {
    "baseline-best": (True, "0.6101 against 0.5103"),
    "baseline-smallest": (True, "3.22 million against 7.22 million"),
    "swap-frozen-loses": (True, "-28.33 %"),
    "swap-frozen-mIoU-least": (True, "-7.18 %"),
    "swap-frozen-mIoU-most": (True, "-16.16 %"),
    "swap-frozen-mAP-most": (True, "-28.33 %"),
    "swap-frozen-mAP-least": (True, "-18.02 %"),
    "swap-asymmetry": (True, "-7.18 % against -28.33 %"),
    "swap-strict": (True, "-25.14 % against -28.33 %"),
    "swap-mAP50-apart": (True, "-21.64 % against -22.10 %"),
    # 3.27 = 14.60 - 11.33.
    "swap-bias-seg": (True, "resnet18 mIoU: +3.27 points"),
    # 9.42 = 28.33 - 18.91.
    "swap-bias-det": (True, "efficientnet_v2_s mAP: +9.42 points"),
    # (0.1967 - 0.1970) / 0.2403 and (0.3297 - 0.3314) / 0.4024.
    "swap-bias-resnet": (True, "resnet18 mAP: -0.12 points; resnet18 mAP50: -0.42 points"),
    # The text below Table 4.8 says EfficientNetV2-S; its 7.18 - 4.21 is less than ResNet18's.
    "swap-bias-mIoU-most": (False, "resnet18 +3.27 points, efficientnet_v2_s +2.97 points"),
    "swap-bias-mAP-most": (True, "efficientnet_v2_s +9.42 points"),
    # 28.33 - 18.02 against 18.91 - 17.25 (of unrounded changes 1.65).
    "swap-bias-narrows": (True, "1.65 points, swap-frozen 10.31 points"),
    "share-frozen-loses": (True, "-39.59 %"),
    "share-frozen-mIoU-least": (True, "mobilenet_v3_large -10.62 %, densenet121 -11.08 %"),
    "share-frozen-mIoU-most": (True, "efficientnet_v2_s -23.60 %"),
    "share-frozen-mAP-most": (True, "efficientnet_v2_s -39.59 %"),
    "share-frozen-mAP-least": (True, "resnet18 -23.43 %"),
    "share-frozen-best": (True, "0.5282 against 0.4340"),
    "share-frozen-robust": (True, "-28.21 % against -39.59 %"),
    "share-bias-recovers": (True, "efficientnet_v2_s mIoU: +21.54 points"),
    "share-bias-below": (True, "mobilenet_v3_large pixel_acc: -0.90 %"),
    # 0.5455 - 0.5282 of 0.5940, and 0.2317 - 0.2066 of 0.2878.
    "share-bias-tasks": (False, "+2.91 points against +8.72 points"),
    "share-bias-mIoU-most": (True, "efficientnet_v2_s +21.54 points"),
    "share-bias-mAP-most": (True, "efficientnet_v2_s +17.89 points"),
    "share-bias-size": (True, "+21.54 points"),
    "dual-beats-baseline": (True, "resnet18 mAP: +17.44 %"),
    "dual-best": (True, "0.5613 against 0.5545"),
    "dual-mIoU-most": (True, "resnet18 +10.15 %, efficientnet_v2_s +5.75 %"),
    "dual-mAP-most": (True, "resnet18 +17.44 %, densenet121 +9.80 %"),
    "dual-mIoU-least": (True, "mobilenet_v3_large +1.23 %, densenet121 +2.64 %"),
    "dual-mAP-least": (True, "mobilenet_v3_large +5.39 %, efficientnet_v2_s +9.39 %"),
    "dual-mAP-size": (True, "resnet18 mAP change: +17.44 %"),
    "dual-mIoU-size": (True, "resnet18 mIoU change: +10.15 %"),
    # Section 5.1 overlooks mAP50 of Table 4.7.
    "efficientnet-best": (False, "0.3737 against 0.3797"),
    "mobilenet-over-resnet": (True, "0.5621 against 0.5613"),
    # 5.429 + 5.564 ms, and 22.370 + 22.395 ms.
    "dual-faster": (True, "23.831 ms against 44.765 ms"),
    "int8-faster": (True, "1.394 ms against 4.420 ms"),
    "resnet-fastest": (True, "6.684 ms against 6.998 ms"),
    "densenet-slowest": (True, "19.311 ms against 23.831 ms"),
    # Tables 4.4, 4.5 and 5.1: 11.97 + 11.31 - 11.18 = 12.10, and 8.10 + 7.22 - 6.95 = 8.37.
    "size-is-not-speed": (True, "8.37 million against 12.10 million"),
    # Table 5.1: 3.97 of 3.73 + 3.22 million. With heads of 21 classes 4.28 of 4.03 + 3.22.
    "dual-saves-parameters": (True, "mobilenet_v3_large saves: 42.8"),
    "dual-below-60": (True, "mobilenet_v3_large saves: 40.97 %"),
}

PUBLISHED = published_facts(count_parameters())


def facts_of(runs: Iterable[RunData], timings: Iterable[RunData] = ()) -> Facts:
    rows = study_rows("written", list(runs), versions(), list(timings))
    return Facts.of(rows, count)


def by_claim(facts: Facts) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings(facts, PUBLISHED)}


OF_PUBLISHED = by_claim(PUBLISHED)


def cell(
    backbone: str, method: str, task: str, metrics: Mapping[str, float], seed: int = 0
) -> RunData:
    """A finished trial with the given test metrics alone (beside its parameters)."""
    strategy, _, freeze = method.partition("-")
    made = run(backbone, strategy, freeze or "none", task, seed=seed)
    kept = {name: value for name, value in made.metrics.items() if not name.startswith("test/")}
    return replace(made, metrics=kept | {f"test/{name}": value for name, value in metrics.items()})


def study(
    factor: Callable[[str, str, str, int], float], seeds: int = 1, names: Iterable[str] = BACKBONES
) -> list[RunData]:
    """The grid with every metric 0.4 times ``factor(backbone, method, metric, seed)``."""
    made = []
    for backbone in names:
        for seed in range(seeds):
            for strategy, freeze in (*METHODS, ("dual", "none")):
                method = strategy if freeze == "none" else f"{strategy}-{freeze}"
                for task in ("",) if strategy == "dual" else ("seg", "det"):
                    metrics = {"seg": ("mIoU", "pixel_acc"), "det": ("mAP", "mAP50")}
                    names_of = [m for t, ms in metrics.items() if task in ("", t) for m in ms]
                    scores = {m: 0.4 * factor(backbone, method, m, seed) for m in names_of}
                    made.append(cell(backbone, method, task, scores, seed))
    return made


def test_every_claim_is_worked_out_here_and_has_its_own_name() -> None:
    assert [claim.id for claim in CLAIMS] == list(PRINTED)
    assert all(claim.claim.endswith(".") and claim.where for claim in CLAIMS)


@pytest.mark.parametrize("claim", PRINTED)
def test_the_published_numbers_say_what_was_worked_out_by_hand(claim: str) -> None:
    holds, number = PRINTED[claim]
    finding = OF_PUBLISHED[claim]
    assert finding.published.holds is holds
    assert number in finding.published.text
    assert finding.published.clear is False
    assert ("do not bear the claim out" in finding.why) is not holds
    assert finding.verdict == ("agrees" if holds else "differs")
    # Where it is read as a study, the same numbers are "ours".
    assert finding.ours == finding.published


def test_the_published_seeds_are_said() -> None:
    found = OF_PUBLISHED
    assert "one seed: no interval" in found["dual-mAP-most"].published.text
    assert "medians: no interval" in found["dual-faster"].published.text
    assert "seed" not in found["dual-below-60"].published.text
    assert len(found["dual-beats-baseline"].published.details) == 16


def test_one_seed_decides_by_its_sign_and_is_never_clear() -> None:
    def factor(backbone: str, method: str, metric: str, seed: int) -> float:
        return (
            0.99
            if (backbone, method, metric) == (DENSENET, "dual", "mAP")
            else 1.1
            if (method == "dual")
            else 1.0
        )

    found = by_claim(facts_of(study(factor)))["dual-beats-baseline"]
    assert (found.verdict, found.ours.clear) == ("differs", False)
    assert found.ours.text == (
        "not for densenet121 mAP: -1.00 %; 15 of 16 hold (one seed: no interval)"
    )


def drifting(seed: int) -> float:
    """What a seed does to every cell alike."""
    return (0.9, 1.0, 1.1)[seed]


def test_a_difference_above_the_noise_of_every_seed_is_clear() -> None:
    def factor(backbone: str, method: str, metric: str, seed: int) -> float:
        gain = 1.1 + 0.001 * seed if method == "dual" else 1.0
        return drifting(seed) * gain

    found = by_claim(facts_of(study(factor, seeds=3)))["dual-beats-baseline"]
    assert (found.verdict, found.ours.holds, found.ours.clear) == ("agrees", True, True)
    assert "(3 seeds)" in found.ours.text


def test_one_comparison_within_the_noise_leaves_the_claim_open() -> None:
    def factor(backbone: str, method: str, metric: str, seed: int) -> float:
        if method != "dual":
            return 1.0
        if (backbone, metric) == (RESNET, "mAP"):
            return (1.3, 0.9, 1.1)[seed]
        return 1.1 + 0.001 * seed

    found = by_claim(facts_of(study(factor, seeds=3)))["dual-beats-baseline"]
    assert (found.verdict, found.ours.holds, found.ours.clear) == ("cannot tell", None, False)
    # Differences +30, -10, +10 percent: mean 10, deviation 20, t(2) = 4.303: half width 49.68.
    assert "within the noise between seeds: resnet18 mAP: ≈ +10.00 % [-39.68, +59.68]" in (
        found.ours.text
    )
    assert "15 of 16 hold" in found.ours.text


def test_a_clear_loss_on_one_backbone_refutes_whatever_the_noise_elsewhere() -> None:
    def factor(backbone: str, method: str, metric: str, seed: int) -> float:
        if method != "dual":
            return 1.0
        return (1.3, 0.9, 1.1)[seed] if backbone != DENSENET else 0.9 + 0.001 * seed

    found = by_claim(facts_of(study(factor, seeds=3)))["dual-beats-baseline"]
    assert (found.verdict, found.ours.clear) == ("differs", True)
    assert found.ours.text.startswith("not for densenet121 ")


def gains(by_backbone: Mapping[str, float]) -> Callable[[str, str, str, int], float]:
    """A study where dual multiplies every metric of a backbone by a chosen factor."""
    return lambda backbone, method, metric, seed: by_backbone[backbone] if method == "dual" else 1.0


@pytest.mark.parametrize(
    ("factors", "verdict", "text"),
    [
        ((1.3, 1.1, 1.2, 1.1), "agrees", "resnet18 is ahead of efficientnet_v2_s by +10.00 points"),
        ((1.2, 1.1, 1.3, 1.1), "differs", "resnet18 is behind efficientnet_v2_s by +10.00 points"),
        ((1.2, 1.1, 1.2, 1.1), "cannot tell", "equal: mIoU change, resnet18 against eff"),
    ],
)
def test_the_first_of_the_backbones_is_compared_with_the_next(
    factors: tuple[float, ...], verdict: str, text: str
) -> None:
    made = study(gains(dict(zip(BACKBONES, factors, strict=True))))
    found = by_claim(facts_of(made))["dual-mIoU-most"]
    assert found.verdict == verdict
    assert text in found.ours.text


def test_a_first_that_the_seeds_cannot_tell_from_the_next_is_open() -> None:
    def factor(backbone: str, method: str, metric: str, seed: int) -> float:
        if method != "dual":
            return 1.0
        return {RESNET: (1.5, 1.4, 1.45)[seed], EFFICIENTNET: 1.42}.get(backbone, 1.0)

    found = by_claim(facts_of(study(factor, seeds=3)))
    assert found["dual-mIoU-most"].verdict == "cannot tell"
    assert "within the noise between seeds: mIoU change, resnet18 against efficientnet_v2_s" in (
        found["dual-mIoU-most"].ours.text
    )


def test_the_first_is_clear_when_paired_seeds_tell_it_from_every_other() -> None:
    def factor(backbone: str, method: str, metric: str, seed: int) -> float:
        if method != "dual":
            return 1.0
        # Both move by 0.2 from seed to seed, their difference by 0.002.
        shift = 0.1 * seed
        return {RESNET: 1.5 + shift, EFFICIENTNET: 1.4 + 1.01 * shift}.get(backbone, 1.0 + shift)

    found = by_claim(facts_of(study(factor, seeds=3)))["dual-mIoU-most"]
    assert (found.verdict, found.ours.clear) == ("agrees", True)


def test_missing_cells_are_named_with_their_reason() -> None:
    made = [row for row in grid() if row.name != f"{RESNET}/dual"]
    made.append(run(RESNET, "dual", state="failed", reason="loss is NaN"))
    found = by_claim(facts_of(made))
    for claim in ("dual-beats-baseline", "dual-mIoU-most", "dual-below-60"):
        assert found[claim].verdict == "cannot tell"
        assert "loss is NaN" in found[claim].ours.text
    assert found["dual-beats-baseline"].ours.text.startswith("cannot tell: no number for resnet18 ")
    assert found["share-frozen-loses"].verdict == "agrees"


def test_a_metric_that_is_no_number_is_said_and_breaks_nothing() -> None:
    made = [
        replace(row, metrics=dict.fromkeys(row.metrics, float("nan")))
        if row.name == f"{MOBILENET}/dual"
        else row
        for row in grid()
    ]
    found = by_claim(facts_of(made))
    assert found["dual-beats-baseline"].verdict == "cannot tell"
    assert "NaN: the run's test/mIoU is not a number" in found["dual-beats-baseline"].ours.text
    everything = "".join(finding.ours.text for finding in found.values())
    assert "nan" not in everything


def test_a_part_of_the_backbones_is_what_a_claim_is_tested_on() -> None:
    factors = {RESNET: 1.3, DENSENET: 1.1}
    found = by_claim(facts_of(study(gains(factors), names=factors)))
    assert found["dual-beats-baseline"].verdict == "agrees"
    assert "this study has no mobilenet_v3_large, efficientnet_v2_s" in (
        found["dual-beats-baseline"].ours.text
    )
    assert found["dual-mIoU-most"].verdict == "agrees"
    # What names a backbone that is not here has no answer.
    assert found["dual-mIoU-least"].verdict == "cannot tell"
    assert "not in this study" in found["dual-mIoU-least"].ours.text


def test_one_backbone_alone_is_neither_first_nor_last() -> None:
    found = by_claim(facts_of(study(gains({RESNET: 1.3}), names=[RESNET])))
    assert found["dual-mIoU-most"].verdict == "cannot tell"
    assert "nothing to compare in this study (resnet18)" in found["dual-mIoU-most"].ours.text
    assert found["dual-beats-baseline"].verdict == "agrees"


def test_another_backbone_counts_where_every_one_does_and_is_no_rival() -> None:
    factors = {**dict.fromkeys(BACKBONES, 1.1), RESNET: 1.3, "own_<b>net": 1.9}
    found = by_claim(facts_of(study(gains(factors), names=factors)))
    assert found["dual-mIoU-most"].verdict == "agrees"
    assert any(line.startswith("own_<b>net") for line in found["dual-beats-baseline"].ours.details)
    assert set(BACKBONES) == set(published_backbones())


@pytest.mark.parametrize(
    ("largest", "verdict", "text"),
    [
        (1.20, "agrees", "resnet18 mAP change: +20.00 %"),
        (1.16, "differs", "at most resnet18 mAP change: +16.00 %"),
    ],
)
def test_an_uplift_is_as_large_as_its_largest(largest: float, verdict: str, text: str) -> None:
    factors = {**dict.fromkeys(BACKBONES, 1.05), RESNET: largest}
    found = by_claim(facts_of(study(gains(factors))))["dual-mAP-size"]
    assert (found.verdict, found.ours.clear) == (verdict, False)
    assert found.ours.text.startswith(text)


def test_an_uplift_within_the_noise_of_its_bound_is_open() -> None:
    def factor(backbone: str, method: str, metric: str, seed: int) -> float:
        if method != "dual":
            return 1.0
        return (1.1, 1.2, 1.3)[seed] if backbone == RESNET else 1.05 + 0.001 * seed

    found = by_claim(facts_of(study(factor, seeds=3)))["dual-mAP-size"]
    assert found.verdict == "cannot tell"
    # Mean 20, deviation 10: half width 24.84.
    assert "+20.00 % [-4.84, +44.84]" in found.ours.text


def test_losses_that_come_closer_together() -> None:
    # Frozen changes -10, -20, -30, -40; with biases -10, -15, -12, -11: spreads 30 and 5 points.
    frozen = dict(zip(BACKBONES, (0.9, 0.8, 0.7, 0.6), strict=True))
    bias = dict(zip(BACKBONES, (0.9, 0.85, 0.88, 0.89), strict=True))
    tables = {"swap-frozen": frozen, "swap-bias": bias}

    def factor(backbone: str, method: str, metric: str, seed: int) -> float:
        return tables[method][backbone] if method in tables else 1.0

    found = by_claim(facts_of(study(factor)))["swap-bias-narrows"]
    assert found.verdict == "agrees"
    assert "5.00 points, swap-frozen 30.00 points (+25.00 points narrower)" in found.ours.text
    tables["swap-frozen"], tables["swap-bias"] = bias, frozen
    assert by_claim(facts_of(study(factor)))["swap-bias-narrows"].verdict == "differs"


def timings(
    dual_ms: float, int8_ms: float = 3.0, verdict: str = "valid", reasons: str = ""
) -> list[RunData]:
    """All graphs of all backbones: seg and det 5 ms each, dual as given; INT8 of the dual."""
    made = []
    for backbone in BACKBONES:
        times = {"seg": ("fp32", 5.0), "det": ("fp32", 5.0), "dual": ("fp32", dual_ms)}
        for graph, (precision, ms) in {**times, "dual trt": ("int8", int8_ms)}.items():
            told = bench(f"{backbone} {graph}", ms, precision=precision, verdict=verdict)
            made.append(replace(told, tags={**told.tags, "sharedenc.reasons": reasons}))
    return made


@pytest.mark.parametrize(("dual_ms", "verdict"), [(9.0, "agrees"), (11.0, "differs")])
def test_one_network_is_faster_than_two_in_turn(dual_ms: float, verdict: str) -> None:
    found = by_claim(facts_of(grid(), timings(dual_ms)))["dual-faster"]
    assert found.verdict == verdict
    assert f"{dual_ms:.3f} ms against 10.000 ms" in found.ours.text
    assert "Timed on another device" in found.why


@pytest.mark.parametrize(("int8_ms", "verdict"), [(3.0, "agrees"), (7.0, "differs")])
def test_int8_is_compared_with_fp32_of_the_same_setup(int8_ms: float, verdict: str) -> None:
    found = by_claim(facts_of(grid(), timings(6.0, int8_ms)))["int8-faster"]
    assert found.verdict == verdict
    assert f"{int8_ms:.3f} ms against 6.000 ms" in found.ours.text
    other_board = [bench(f"{b} dual trt", 9.0, precision="int8", device="nano") for b in BACKBONES]
    both = by_claim(facts_of(grid(), [*timings(6.0, int8_ms), *other_board]))["int8-faster"]
    assert both.verdict == verdict


@pytest.mark.parametrize(("ratio", "verdict"), [(0.8, "agrees"), (1.2, "differs")])
def test_where_all_three_were_timed_in_one_run_that_run_counts(ratio: float, verdict: str) -> None:
    # By themselves the medians say the opposite of the run that timed them together.
    apart = timings(11.0 if ratio < 1 else 9.0)
    together = [
        bench(
            comparison_architecture([f"{b} seg", f"{b} det", f"{b} dual"]),
            8.0,
            **{"ratio/p50": ratio},  # type: ignore[arg-type]
        )
        for b in BACKBONES
    ]
    found = by_claim(facts_of(grid(), [*apart, *together]))["dual-faster"]
    assert found.verdict == verdict
    assert f"{100 * (ratio - 1):+.1f} % in one run" in found.ours.text


def test_a_suspect_timing_counts_and_says_so_and_a_failed_one_is_missing() -> None:
    suspect = by_claim(facts_of(grid(), timings(9.0, verdict="suspect", reasons="hot")))
    assert "[suspect]" in suspect["dual-faster"].ours.text
    failed = by_claim(facts_of(grid(), timings(9.0, verdict="failed", reasons="no memory")))
    assert failed["dual-faster"].verdict == "cannot tell"
    assert "failed: no memory" in failed["dual-faster"].ours.text


def test_without_timings_nothing_is_said_on_speed() -> None:
    found = by_claim(facts_of(grid()))
    for claim in ("dual-faster", "int8-faster", "resnet-fastest", "size-is-not-speed"):
        assert found[claim].verdict == "cannot tell"
        assert "not timed" in found[claim].ours.text


def test_equal_latencies_have_no_first() -> None:
    found = by_claim(facts_of(grid(), timings(6.0)))
    assert found["resnet-fastest"].verdict == "cannot tell"
    assert "equal: " in found["resnet-fastest"].ours.text


def test_other_data_is_said_beside_the_verdict() -> None:
    here = by_claim(facts_of(grid()))["dual-beats-baseline"]
    assert (here.verdict, here.why) == ("agrees", "")
    drawn = by_claim(facts_of(grid(data="synthetic", classes=("a", "b"))))["dual-beats-baseline"]
    assert drawn.verdict == "agrees"
    assert drawn.why == (
        "Other data: synthetic with 2 classes, not the published data set and classes."
    )


def test_a_study_with_nothing_finished_has_no_findings_to_tell() -> None:
    waiting = [run(backbone, "dual", state="planned") for backbone in BACKBONES]
    found = by_claim(facts_of(waiting))
    # What a network weighs is known before it is trained.
    assert found.pop("dual-saves-parameters").verdict == "agrees"
    assert {finding.verdict for finding in found.values()} == {"cannot tell"}
    assert all(finding.ours.text.startswith("cannot tell: ") for finding in found.values())
