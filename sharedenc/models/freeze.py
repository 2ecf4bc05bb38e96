"""What of an encoder trains: each freeze mode is a rule that names the parameters."""

from __future__ import annotations

from collections.abc import Callable

from sharedenc import spec
from sharedenc.errors import SpecError, check_choice
from sharedenc.models.encoders import Encoder, batch_norms

# (encoder, bias_set) -> names of the parameters that train.
FreezeRule = Callable[[Encoder, str], set[str]]


def _all_parameters(encoder: Encoder, bias_set: str) -> set[str]:
    return {name for name, _ in encoder.named_parameters()}


def _no_parameters(encoder: Encoder, bias_set: str) -> set[str]:
    return set()


def _biases(encoder: Encoder, bias_set: str) -> set[str]:
    """Every ``*.bias`` (``named``) or only those of batch normalisations (``bn_beta``).

    Source: Ben Zaken et al. (BitFit), ACL 2022, arXiv 2106.10199, for transformers.
    """
    named = {name for name, _ in encoder.named_parameters() if name.endswith(".bias")}
    if bias_set == "named":
        return named
    return named & {f"{name}.bias" for name in batch_norms(encoder)}


FREEZE_MODES: dict[str, FreezeRule] = {
    "none": _all_parameters,
    "frozen": _no_parameters,
    "bias": _biases,
}


def register_freeze(name: str, rule: FreezeRule) -> None:
    """Add a freeze mode; `sharedenc.spec` then accepts its name in cells.

    Raises:
        SpecError: the name is taken.
    """
    if name in FREEZE_MODES:
        raise SpecError(f"freeze mode {name!r} exists already; give yours another name")
    FREEZE_MODES[name] = rule
    if name not in spec.FREEZES:
        spec.FREEZES.append(name)


def apply_freeze(
    encoder: Encoder, mode: str, *, bn_mode: str = "eval", bias_set: str = "named"
) -> None:
    """Set what of the encoder takes gradients, and whether it may leave evaluation mode.

    With ``bn_mode="eval"`` an encoder that is not wholly trained keeps its running statistics and
    has no stochastic depth, in training too; with ``"train"`` batch statistics are used and the
    running ones move, hidden adaptation that no parameter count shows. ``mode="none"`` trains as
    usual in both.

    Raises:
        SpecError: unknown mode, ``bn_mode`` or ``bias_set``, or the mode trains an unknown name.
    """
    check_choice("freeze", mode, FREEZE_MODES)
    check_choice("bn_mode", bn_mode, spec.CHOICES["bn_mode"])
    check_choice("bias_set", bias_set, spec.CHOICES["bias_set"])
    trained = FREEZE_MODES[mode](encoder, bias_set)
    parameters = dict(encoder.named_parameters())
    if unknown := sorted(trained - set(parameters)):
        raise SpecError(
            f"freeze mode {mode!r} trains {', '.join(unknown[:3])}, which the encoder does not have"
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    was_training = encoder.training
    encoder.stays_in_eval = bn_mode == "eval" and trained != set(parameters)
    encoder.train(was_training)
