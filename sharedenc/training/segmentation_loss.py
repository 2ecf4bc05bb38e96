"""Pixel-wise cross-entropy of logits that still lie on the segmentation head's own grid.

At 320 px and 21 classes the logits of one picture are 8.6 MB: written, read and differentiated as
a whole they cost more than a small encoder. On a CPU the upsampling is therefore part of the loss
and both run over bands of rows that stay in a core's cache; the gradient is that of the grid, a
sixty-fourth of the size, and is made in the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = 255
# Of one band's logits in float32. With 21 classes at 320 px: 32 rows, which measured best.
BAND_BYTES = 900_000


def segmentation_loss(logits: Tensor, masks: Tensor, *, compiled: bool = False) -> Tensor:
    """Mean cross-entropy over all pixels that are not 255; 0 when there is none. In float32.

    Args:
        logits: ``[B, C, h, w]``. Where they are not of the masks' size, their bilinear upsampling
            (``align_corners=False``) is scored.
        masks: Class of each pixel, or 255, uint8 ``[B, H, W]``.
        compiled: Let torch.compile fuse upsampling and loss, which rounds differently.
    """
    loss: Tensor
    if compiled:
        return _compiled_loss(logits, masks)
    if logits.device.type == "cpu":
        loss = _GridCrossEntropy.apply(logits, masks)
        return loss
    return whole_loss(logits, masks)


def segment(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The loss above, and the class of each pixel, uint8 ``[B, H, W]``: one pass for scoring.

    Of equal logits the first class is taken. There is no gradient. Arguments as above.
    """
    if logits.device.type == "cpu":
        return _score(logits.detach(), masks)
    full = upsampled(logits.detach(), masks)
    return whole_loss(full, masks), full.argmax(dim=1).to(torch.uint8)


def upsampled(logits: Tensor, masks: Tensor) -> Tensor:
    """The logits in float32 at the masks' size, ``[B, C, H, W]``."""
    size = masks.shape[-2:]
    if logits.shape[-2:] == size:
        return logits.float()
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def whole_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """`segmentation_loss` by torch's own functions on whole tensors: what GPUs run."""
    labelled = (masks != IGNORE).sum().clamp(min=1)
    full = upsampled(logits, masks)
    total = F.cross_entropy(full, masks.long(), ignore_index=IGNORE, reduction="sum")
    return total / labelled


def _compiled_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """`whole_loss`, compiled for each shape, type and setting that comes.

    torch keeps a few of those, after which it no longer compiles but runs the plain code, and a
    process that is used again for other trials gets there. Then they are all forgotten, so that no
    trial's rounding and speed depend on which came before it.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit

    loss: Tensor
    try:
        loss = _compiled()(logits, masks)
    except FailOnRecompileLimitHit:
        torch._dynamo.reset()
        _compiled.cache_clear()
        loss = _compiled()(logits, masks)
    return loss


@cache
def _compiled() -> Any:
    # A whole graph, or an error: only then is it one that no more are kept.
    return torch.compile(whole_loss, dynamic=False, fullgraph=True)


@dataclass(frozen=True)
class _Band:
    """Output rows ``first:last`` and the grid rows ``top:bottom`` that they are made of."""

    first: int
    last: int
    top: int
    bottom: int
    weights: Tensor  # [last - first, bottom - top]


@lru_cache(maxsize=8)
def _axis(grid: int, size: int) -> Tensor:
    """Weights of linear upsampling along one axis, ``[size, grid]``: torch's own, read off."""
    # The scorer runs in inference mode, and a tensor made there could not be used outside.
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(grid)[None]
        return F.interpolate(unit, size=size, mode="linear", align_corners=False)[0].T.contiguous()


@lru_cache(maxsize=8)
def _bands(grid: int, size: int, rows: int) -> tuple[_Band, ...]:
    """The rows of an axis in bands of ``rows``, the last one shorter."""
    bands = []
    with torch.inference_mode(False), torch.no_grad():
        weights = _axis(grid, size)
        for first in range(0, size, rows):
            last = min(first + rows, size)
            used = weights[first:last].any(dim=0).nonzero().flatten().tolist()
            top, bottom = used[0], used[-1] + 1
            band = weights[first:last, top:bottom].contiguous()
            bands.append(_Band(first, last, top, bottom, band))
    return tuple(bands)


class _Upsampler:
    """Bands of one picture's upsampled logits, and the way back for their gradient.

    Bilinear upsampling is linear in rows and in columns: two matrix products, whose transposes take
    the gradient to the grid. Logits that have the masks' size are taken as they are.
    """

    def __init__(self, logits: Tensor, masks: Tensor) -> None:
        _, self.classes, self.h, self.w = logits.shape
        self.height, self.width = masks.shape[-2:]
        self.same = (self.h, self.w) == (self.height, self.width)
        rows = max(1, BAND_BYTES // (4 * self.classes * self.width))
        self.columns = _axis(self.w, self.width)
        self.bands = _bands(self.h, self.height, rows)
        self._band = torch.empty(self.classes, min(rows, self.height), self.width)
        self._wide_gradient = torch.empty(self.classes, self.h, self.width)

    def widen(self, picture: Tensor) -> Tensor:
        """The picture ``[C, h, w]`` in float32, upsampled along its rows: ``[C, h, W]``."""
        picture = picture.float()
        if self.same:
            return picture
        wide = picture.reshape(-1, self.w) @ self.columns.T
        return wide.view(self.classes, self.h, self.width)

    def band(self, wide: Tensor, band: _Band) -> Tensor:
        """Logits of the band's pixels, ``[C, rows * W]``, in memory that the next one reuses."""
        values = self._band[:, : band.last - band.first]
        if self.same:
            values.copy_(wide[:, band.first : band.last])
        else:
            torch.matmul(band.weights, wide[:, band.top : band.bottom], out=values)
        return values.view(self.classes, -1)

    def start_gradient(self) -> None:
        """Begin with a new picture's gradient."""
        self._wide_gradient.zero_()

    def add_gradient(self, band: _Band, gradient: Tensor) -> None:
        """Add the gradient of the band's pixels, ``[C, rows * W]``."""
        gradient = gradient.view(self.classes, -1, self.width)
        if self.same:
            self._wide_gradient[:, band.first : band.last].copy_(gradient)
        else:
            rows = self._wide_gradient[:, band.top : band.bottom]
            rows += torch.matmul(band.weights.T, gradient)

    def end_gradient(self, out: Tensor) -> None:
        """Write the picture's gradient on the grid to ``out [C, h, w]``."""
        if self.same:
            out.copy_(self._wide_gradient)
        else:
            wide = self._wide_gradient.view(-1, self.width)
            out.copy_((wide @ self.columns).view(out.shape))


def _targets(masks: Tensor, picture: int, band: _Band) -> tuple[Tensor, Tensor]:
    """Class of each pixel of a band, int64 ``[1, n]``, 0 where there is none; and where that is."""
    mask = masks[picture, band.first : band.last].reshape(1, -1)
    ignored = mask == IGNORE
    return mask.masked_fill(ignored, 0).long(), ignored


def _losses(values: Tensor, target: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a band's losses, and each pixel's sum of exponentials ``[1, n]``.

    Logits ``[C, n]`` whose largest is 0 become their exponentials in place.
    """
    right = values.gather(0, target)
    total = values.exp_().sum(dim=0, keepdim=True)
    return total.log().sub_(right).masked_fill_(ignored, 0).sum(), total


class _GridCrossEntropy(torch.autograd.Function):
    """The loss on a CPU. The gradient is made with it: the logits of a band are there only once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        upsampler = _Upsampler(logits, masks)
        labelled = (masks != IGNORE).sum().clamp(min=1)
        share = labelled.reciprocal()
        gradient = torch.empty(logits.shape if wanted else 0)
        sums = []
        for number, picture in enumerate(logits):
            wide = upsampler.widen(picture)
            upsampler.start_gradient()
            for band in upsampler.bands:
                target, ignored = _targets(masks, number, band)
                values = upsampler.band(wide, band)
                values.sub_(values.amax(dim=0, keepdim=True))
                loss, total = _losses(values, target, ignored)
                sums.append(loss)
                if wanted:
                    # softmax - one_hot, over the number of labelled pixels
                    weight = torch.where(ignored, 0, share)
                    values.mul_(weight / total)
                    values.scatter_add_(0, target, -weight)
                    upsampler.add_gradient(band, values)
            if wanted:
                upsampler.end_gradient(gradient[number])
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return torch.stack(sums).sum() / labelled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0]).to(ctx.dtype), None


def _score(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    upsampler = _Upsampler(logits, masks)
    classes = upsampler.classes
    # Bytes are compared 64 at a time: of classes that share the maximum, the first ranks highest.
    ranks = torch.arange(classes, 0, -1, dtype=torch.uint8)[:, None]
    found = torch.empty_like(masks)
    labelled = (masks != IGNORE).sum().clamp(min=1)
    sums = []
    for number, picture in enumerate(logits):
        wide = upsampler.widen(picture)
        for band in upsampler.bands:
            target, ignored = _targets(masks, number, band)
            values = upsampler.band(wide, band)
            values.sub_(values.amax(dim=0, keepdim=True))
            # NaN has no rank; it is a class nevertheless.
            rank = (values == 0).view(torch.uint8).mul_(ranks).amax(dim=0).clamp_(min=1)
            found[number, band.first : band.last] = (classes - rank).view(-1, upsampler.width)
            sums.append(_losses(values, target, ignored)[0])
    return torch.stack(sums).sum() / labelled, found
