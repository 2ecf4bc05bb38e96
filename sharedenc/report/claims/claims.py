"""What the reference study claims, in our words, each with the check that tests it.

Source: C. Schuster, master thesis, TU Wien, 2025; `where` is its section. No number of a result is
here: a check computes what it says, on the published numbers as on a study's own.

To add a claim, add an entry to `CLAIMS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sharedenc.report.changes import HEADLINE, METHODS, SCORES, Method
from sharedenc.report.claims.checks import (
    Check,
    ahead,
    at_least,
    changes,
    every,
    leads,
    more,
    narrower,
    recoveries,
    some,
    winner,
    within,
)
from sharedenc.report.claims.quantities import (
    Basis,
    Quantity,
    change,
    parameters,
    recovery,
    saved,
    saved_of_three_classes,
    score,
)
from sharedenc.report.claims.timing_checks import (
    int8_is_faster,
    latency_leads,
    sharing_is_faster,
    smaller_but_slower,
)

RESNET, MOBILENET = "resnet18", "mobilenet_v3_large"
EFFICIENTNET, DENSENET = "efficientnet_v2_s", "densenet121"
BASELINE, SWAP_FROZEN, SWAP_BIAS, SHARE_FROZEN, SHARE_BIAS, DUAL = METHODS
SEG, DET, ALL = SCORES[:2], SCORES[2:], SCORES
_RECOVERY = "Recovery: score with trained biases less frozen, in percentage points of the baseline."


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of the reference study.

    Attributes:
        basis: What it is about: test scores, latencies, or parameter counts.
        note: How it is tested, where the claim itself leaves that open.
    """

    id: str
    claim: str
    where: str
    check: Check
    basis: Basis = "scores"
    note: str = ""


def _scores(*methods: Method, metrics: tuple[str, ...] = ALL) -> dict[str, Quantity]:
    return {
        f"{method.name} {metric}": score(method, metric) for method in methods for metric in metrics
    }


def _most_change(method: Method, metric: str, backbone: str, *, largest: bool) -> Check:
    quantity = change(method, metric)
    return winner(f"{metric} change", quantity, backbone, "percent", largest=largest)


def _recovers_most(strategy: str, metric: str) -> Check:
    name = f"{metric} recovery"
    return winner(name, recovery(strategy, metric), EFFICIENTNET, "points", largest=True)


_BASELINES = (
    Claim(
        id="baseline-best",
        claim=f"{EFFICIENTNET} has the highest baseline scores.",
        where="4.2",
        check=every(leads(_scores(BASELINE), EFFICIENTNET, "score")),
    ),
    Claim(
        id="baseline-smallest",
        claim=f"{MOBILENET} has the fewest parameters in both baselines.",
        where="4.2",
        check=every(
            leads(
                {task: parameters(BASELINE, task) for task in ("seg", "det")},
                MOBILENET,
                "million",
                largest=False,
            )
        ),
        basis="counts",
    ),
)

_SWAP = (
    Claim(
        id="swap-frozen-loses",
        claim="A frozen encoder of the other task costs every backbone score in every metric.",
        where="4.3",
        check=every(changes([SWAP_FROZEN], ALL, up=False)),
    ),
    Claim(
        id="swap-frozen-mIoU-least",
        claim=f"{EFFICIENTNET} loses least mIoU on the detector's frozen encoder.",
        where="4.3",
        check=_most_change(SWAP_FROZEN, "mIoU", EFFICIENTNET, largest=True),
    ),
    Claim(
        id="swap-frozen-mIoU-most",
        claim=f"{MOBILENET} loses most mIoU on the detector's frozen encoder.",
        where="4.3",
        check=_most_change(SWAP_FROZEN, "mIoU", MOBILENET, largest=False),
    ),
    Claim(
        id="swap-frozen-mAP-most",
        claim=f"{EFFICIENTNET} loses most mAP on the segmenter's frozen encoder.",
        where="4.3",
        check=_most_change(SWAP_FROZEN, "mAP", EFFICIENTNET, largest=False),
    ),
    Claim(
        id="swap-frozen-mAP-least",
        claim=f"{RESNET} loses least mAP on the segmenter's frozen encoder.",
        where="4.3",
        check=_most_change(SWAP_FROZEN, "mAP", RESNET, largest=True),
    ),
    Claim(
        id="swap-asymmetry",
        claim="Detection encoders serve segmentation better than the reverse, on every backbone.",
        where="4.3, 5.2",
        check=every(
            *(
                more(
                    f"{method.name}, change of mIoU against mAP",
                    change(method, "mIoU"),
                    change(method, "mAP"),
                    "percent",
                )
                for method in (SWAP_FROZEN, SWAP_BIAS)
            )
        ),
        note="Better: a smaller relative loss against the baseline, frozen and with biases.",
    ),
    Claim(
        id="swap-strict",
        claim="Swapping costs the strict mAP more than mAP50, on every backbone.",
        where="4.3",
        check=every(
            *(
                more(
                    f"{method.name}, change of mAP50 against mAP",
                    change(method, "mAP50"),
                    change(method, "mAP"),
                    "percent",
                )
                for method in (SWAP_FROZEN, SWAP_BIAS)
            )
        ),
    ),
    Claim(
        id="swap-mAP50-apart",
        claim=f"On a swapped frozen encoder {DENSENET} loses more mAP than {MOBILENET}, but less "
        "mAP50.",
        where="4.3",
        check=every(
            ahead({"mAP change": change(SWAP_FROZEN, "mAP")}, MOBILENET, DENSENET, "percent"),
            ahead({"mAP50 change": change(SWAP_FROZEN, "mAP50")}, DENSENET, MOBILENET, "percent"),
        ),
    ),
    Claim(
        id="swap-bias-seg",
        claim="Training the biases of a swapped encoder improves segmentation on every backbone.",
        where="4.3",
        check=every(recoveries("swap", SEG)),
    ),
    Claim(
        id="swap-bias-det",
        claim="Training the biases of a swapped encoder improves detection on every backbone but "
        f"{RESNET}.",
        where="4.3",
        check=every(recoveries("swap", DET, but=RESNET)),
    ),
    Claim(
        id="swap-bias-resnet",
        claim=f"{RESNET} detects slightly worse when its swapped encoder's biases are trained.",
        where="4.3, 5.2.1, 6.1",
        check=every(recoveries("swap", DET, up=False, only=RESNET)),
    ),
    Claim(
        id="swap-bias-mIoU-most",
        claim=f"{EFFICIENTNET} recovers most mIoU when a swapped encoder's biases are trained.",
        where="4.3",
        check=_recovers_most("swap", "mIoU"),
        note=_RECOVERY,
    ),
    Claim(
        id="swap-bias-mAP-most",
        claim=f"{EFFICIENTNET} recovers most mAP when a swapped encoder's biases are trained.",
        where="4.3",
        check=_recovers_most("swap", "mAP"),
        note=_RECOVERY,
    ),
    Claim(
        id="swap-bias-narrows",
        claim="Trained biases bring the backbones' losses of mAP by swapping closer together.",
        where="4.3",
        check=every(narrower("mAP", SWAP_FROZEN, SWAP_BIAS)),
    ),
)

_SHARE = (
    Claim(
        id="share-frozen-loses",
        claim="A frozen pretrained encoder costs every backbone score in every metric.",
        where="4.4",
        check=every(changes([SHARE_FROZEN], ALL, up=False)),
    ),
    Claim(
        id="share-frozen-mIoU-least",
        claim=f"{MOBILENET} loses least mIoU on the frozen pretrained encoder.",
        where="4.4",
        check=_most_change(SHARE_FROZEN, "mIoU", MOBILENET, largest=True),
    ),
    Claim(
        id="share-frozen-mIoU-most",
        claim=f"{EFFICIENTNET} loses most mIoU on the frozen pretrained encoder.",
        where="4.4",
        check=_most_change(SHARE_FROZEN, "mIoU", EFFICIENTNET, largest=False),
    ),
    Claim(
        id="share-frozen-mAP-most",
        claim=f"{EFFICIENTNET} loses most mAP on the frozen pretrained encoder.",
        where="4.4, 6.1",
        check=_most_change(SHARE_FROZEN, "mAP", EFFICIENTNET, largest=False),
    ),
    Claim(
        id="share-frozen-mAP-least",
        claim=f"{RESNET} loses least mAP on the frozen pretrained encoder.",
        where="4.4",
        check=_most_change(SHARE_FROZEN, "mAP", RESNET, largest=True),
    ),
    Claim(
        id="share-frozen-best",
        claim=f"{DENSENET} scores highest of all on the frozen pretrained encoder.",
        where="4.4",
        check=every(leads(_scores(SHARE_FROZEN), DENSENET, "score")),
    ),
    Claim(
        id="share-frozen-robust",
        claim=f"{DENSENET} loses less on the frozen pretrained encoder than the larger "
        f"{EFFICIENTNET}.",
        where="6.1",
        check=every(
            ahead(
                {f"{metric} change": change(SHARE_FROZEN, metric) for metric in ALL},
                DENSENET,
                EFFICIENTNET,
                "percent",
            )
        ),
    ),
    Claim(
        id="share-bias-recovers",
        claim="Training the biases of a pretrained encoder improves every backbone in every "
        "metric.",
        where="4.4",
        check=every(recoveries("share", ALL)),
    ),
    Claim(
        id="share-bias-below",
        claim="With trained biases the pretrained encoder still stays below the baseline.",
        where="4.4",
        check=every(changes([SHARE_BIAS], ALL, up=False)),
    ),
    Claim(
        id="share-bias-tasks",
        claim="Training the biases of a pretrained encoder recovers less mAP than mIoU, on every "
        "backbone.",
        where="4.4",
        check=every(
            more(
                "recovery of mIoU against mAP",
                recovery("share", "mIoU"),
                recovery("share", "mAP"),
                "points",
            )
        ),
        note=_RECOVERY,
    ),
    *(
        Claim(
            id=f"share-bias-{metric}-most",
            claim=f"{EFFICIENTNET} recovers most {metric} when the biases of a pretrained encoder "
            "are trained.",
            where="4.4, 5.2.1",
            check=_recovers_most("share", metric),
            note=_RECOVERY,
        )
        for metric in HEADLINE.values()
    ),
    Claim(
        id="share-bias-size",
        claim="Training the biases of a pretrained encoder recovers up to 21 percentage points.",
        where="abstract, 5.2.1",
        check=some(at_least("mIoU recovery", recovery("share", "mIoU"), 21.0, "points")),
        note=f"Holds where a backbone recovers at least 21 points of mIoU. {_RECOVERY}",
    ),
)

_DUAL = (
    Claim(
        id="dual-beats-baseline",
        claim="The dual network beats the baseline on every backbone in every metric.",
        where="4.5, 6.1",
        check=every(changes([DUAL], ALL, up=True)),
    ),
    Claim(
        id="dual-best",
        claim="The dual network beats every other method on every backbone.",
        where="5.2",
        check=every(
            *(
                more(f"{metric}, dual against {method.name}", score(DUAL, metric), other, "score")
                for metric in HEADLINE.values()
                for method in METHODS
                if method != DUAL
                for other in [score(method, metric)]
            )
        ),
    ),
    *(
        Claim(
            id=f"dual-{metric}-most",
            claim=f"{RESNET} gains most {metric} from the dual network.",
            where="4.5, 5.2",
            check=_most_change(DUAL, metric, RESNET, largest=True),
        )
        for metric in HEADLINE.values()
    ),
    *(
        Claim(
            id=f"dual-{metric}-least",
            claim=f"{MOBILENET} gains least {metric} from the dual network.",
            where="4.5",
            check=_most_change(DUAL, metric, MOBILENET, largest=False),
        )
        for metric in HEADLINE.values()
    ),
    *(
        Claim(
            id=f"dual-{metric}-size",
            claim=f"The dual network gains up to {bound:g} % {metric}.",
            where="abstract, 5.2",
            check=some(at_least(f"{metric} change", change(DUAL, metric), bound, "percent")),
            note=f"Holds where a backbone gains at least {bound:g} %.",
        )
        for metric, bound in (("mAP", 17.0), ("mIoU", 10.0))
    ),
)

_BACKBONES = (
    Claim(
        id="efficientnet-best",
        claim=f"{EFFICIENTNET} scores highest with every method but share-frozen.",
        where="5.1, 6.1",
        check=every(
            leads(
                _scores(BASELINE, SWAP_FROZEN, SWAP_BIAS, SHARE_BIAS, DUAL), EFFICIENTNET, "score"
            )
        ),
    ),
    Claim(
        id="mobilenet-over-resnet",
        claim=f"The smaller {MOBILENET} outscores {RESNET} with every method but dual, where "
        f"{RESNET} is ahead.",
        where="5.1, 6.1",
        check=every(
            ahead(
                _scores(*METHODS[:-1], metrics=tuple(HEADLINE.values())),
                MOBILENET,
                RESNET,
                "score",
            ),
            ahead(_scores(DUAL, metrics=tuple(HEADLINE.values())), RESNET, MOBILENET, "score"),
        ),
    ),
)

_COST = (
    Claim(
        id="dual-faster",
        claim="The dual network is faster than both networks one after the other, at every "
        "backbone and precision.",
        where="4.6",
        check=every(sharing_is_faster),
        basis="timings",
        note="Where both were timed in one run, that run counts.",
    ),
    Claim(
        id="int8-faster",
        claim="INT8 is faster than FP32 on every backbone.",
        where="4.6",
        check=every(int8_is_faster),
        basis="timings",
    ),
    Claim(
        id="resnet-fastest",
        claim=f"{RESNET} has the fastest dual network.",
        where="5.1",
        check=every(latency_leads(RESNET, largest=False)),
        basis="timings",
    ),
    Claim(
        id="densenet-slowest",
        claim=f"{DENSENET} has the slowest dual network.",
        where="5.1",
        check=every(latency_leads(DENSENET, largest=True)),
        basis="timings",
    ),
    Claim(
        id="size-is-not-speed",
        claim=f"Fewer parameters are no shorter latency: {DENSENET} is smaller than {RESNET} and "
        f"{EFFICIENTNET}, and slower.",
        where="5.1",
        check=every(
            smaller_but_slower(DENSENET, RESNET), smaller_but_slower(DENSENET, EFFICIENTNET)
        ),
        basis="timings",
        note="Of the dual networks.",
    ),
    Claim(
        id="dual-saves-parameters",
        claim="The dual network saves 42 to 48 % of the parameters of two networks.",
        where="5.2.2",
        check=every(within("saves", saved_of_three_classes, 42.0, 49.0, "share")),
        basis="counts",
        note="Whole percents, cut off, with heads of 3 classes, as in Table 5.1; heads of more "
        "classes save less.",
    ),
    Claim(
        id="dual-below-60",
        claim="The dual network has less than 60 % of the parameters of two networks.",
        where="6.1",
        check=every(at_least("saves", saved, 40.0, "share")),
        basis="counts",
        note="Of the networks as trained.",
    ),
)

CLAIMS: tuple[Claim, ...] = (*_BASELINES, *_SWAP, *_SHARE, *_DUAL, *_BACKBONES, *_COST)
