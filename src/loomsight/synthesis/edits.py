"""What stage 1 makes: an edit of the cloth, not a picture of it.

Of a defect four things are seen at each pixel: the tone and tint that were added to the cloth, and how much
of its weave is left. A broken yarn takes the weave away along a line, a stain adds a tone and leaves the
weave, a foreign yarn does both. Said so, one defect can be rendered into any cloth: a generator has to learn
what defects look like, not how each fabric is woven, and what it makes has the new cloth's own threads.

An edit is float32 (4, h, w): tone in R, G, B, in the units of a :class:`~loomsight.synthesis.patches.Look`,
and the share of the weave that is kept, in [0, 1]. It comes with the probability of each pixel being
defective, and is read only where that is high.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loomsight.fabric.types import Mask, Picture

_GROUND = 9  # pixels a side of the square over which the weave is averaged away
_THREADS = 5  # pixels a side of the square over which a change is averaged
_WEAKEST, _STRONGEST = 0.7, 4.0  # by how much an edit is made weaker or stronger at most
_BORDER = 3  # pixels around a mask that go with it


def rendered(cloth: Float[Tensor, "n 3 h w"], edit: Float[Tensor, "n 4 h w"]) -> Float[Tensor, "n 3 h w"]:
    """The cloth as the edit makes it everywhere, in Look units: ground + kept weave + tone."""
    ground = F.avg_pool2d(cloth, _GROUND, 1, _GROUND // 2, count_include_pad=False)
    return (ground + edit[:, 3:4] * (cloth - ground) + edit[:, :3]).clamp(-1, 1)


def strength(change: Float[Tensor, "n 3 h w"], mask: Float[Tensor, "n 1 h w"]) -> Float[Tensor, " n"]:
    """How strong a change is under its mask: root mean square over a few threads, in Look units."""
    smooth = F.avg_pool2d(change * mask, _THREADS, 1, _THREADS // 2)
    weight = F.avg_pool2d(mask, _THREADS, 1, _THREADS // 2).clamp(min=1e-3)
    square = ((smooth / weight).square() * mask).sum((1, 2, 3))
    return (square / (3 * mask.sum((1, 2, 3)).clamp(min=1))).sqrt()


def strengthened(
    cloth: Float[NDArray[np.float32], "3 h w"],
    edit: Float[NDArray[np.float32], "4 h w"],
    mask: Mask,
    wanted: float,
) -> Float[NDArray[np.float32], "4 h w"]:
    """An edit made as strong in this cloth as wanted, by up to four times: see :func:`strength`.

    A generator that must give back what it cannot know exactly gives a mean of what it may be, and a mean
    is weak. What it makes is brought to the strength that known defects have.
    """
    seen = torch.from_numpy(mask[None, None].astype(np.float32))
    edit, total = edit.copy(), 1.0
    for _ in range(2):  # lost weave adds to a tone, so once is not quite enough
        now = float(strength(torch.from_numpy(painted(cloth, edit) - cloth)[None], seen))
        factor = float(np.clip(wanted / max(now, 1e-3), _WEAKEST / total, _STRONGEST / total))
        total *= factor
        edit[:3] *= factor
        edit[3] = 1 - np.clip((1 - edit[3]) * factor, 0, 1)
    return edit


def clean_mask(probability: Float[NDArray[np.float32], "h w"], *, smallest: int = 6, most: int = 3) -> Mask:
    """The defective pixels without specks: the ``most`` largest pieces of ``smallest`` pixels or more."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((probability > 0.5).astype(np.uint8))
    areas = stats[1:count, cv2.CC_STAT_AREA]
    largest = 1 + np.argsort(-areas, kind="stable")[:most]
    keep = [int(label) for label in largest if areas[label - 1] >= smallest]
    return np.asarray(np.isin(labels, keep))


def placed(
    values: Float[NDArray[np.float32], "c h w"],
    mask: Mask,
    rng: np.random.Generator,
    room: tuple[int, int],
    *,
    span: tuple[float, float] = (0.7, 1.5),
) -> tuple[Float[NDArray[np.float32], "c i j"], Mask]:
    """What lies under a mask, resized by a factor from ``span`` and set somewhere into ``room``.

    Args:
        values: an edit, or a picture in Look units.
        mask: bool HW, not empty; the pixels around it come along.
        room: height and width of the result, in pixels; what is larger is made smaller.

    Returns:
        Values, 0 where nothing was set, and the mask in its new place.
    """
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    left, top = max(0, x - _BORDER), max(0, y - _BORDER)
    window = np.s_[..., top : y + h + _BORDER, left : x + w + _BORDER]
    cut, own = values[window], mask[window]
    scale = float(np.exp(rng.uniform(*np.log(span))))
    high, wide = (max(2, min(round(n * scale), most)) for n, most in zip(own.shape, room, strict=True))
    smaller = cv2.resize(np.ascontiguousarray(cut.transpose(1, 2, 0), np.float32), (wide, high))
    own = cv2.resize(own.astype(np.float32), (wide, high)) > 0.5
    at = [int(rng.integers(0, most - n + 1)) for n, most in zip((high, wide), room, strict=True)]
    place = np.s_[at[0] : at[0] + high, at[1] : at[1] + wide]
    out, there = np.zeros((len(values), *room), np.float32), np.zeros(room, bool)
    out[:, *place] = smaller.transpose(2, 0, 1)
    there[place] = own
    return out, there


def painted(
    cloth: Float[NDArray[np.float32], "3 h w"], edit: Float[NDArray[np.float32], "4 h w"]
) -> Float[NDArray[np.float32], "3 h w"]:
    """:func:`rendered` for one picture outside a training."""
    with torch.inference_mode():
        made: NDArray[np.float32] = rendered(torch.from_numpy(cloth)[None], torch.from_numpy(edit)[None])[
            0
        ].numpy()
    return made


def refine_mask(before: Picture, after: Picture, mask: Mask, region: Mask) -> Mask:
    """Where a defect is to be seen, from what changed.

    The change, |after − before| averaged over a yarn or two, is measured against the cloth's own variation in
    the region: a pixel of the mask around which less than a fifth of it changed is dropped, for nobody sees
    a defect there, and so is one that changed by less than a third of what the strongest tenth did, for there
    an eye sees the edge; a pixel outside the mask that changed by more than twice as much, which threads
    that lie otherwise do not, is added if it touches the defect.

    Args:
        before, after: uint8 HWC.
        mask: bool HW, the defect as it was set in.
        region: bool HW, what may have changed; the result never leaves it.
    """
    change = np.abs(after.astype(np.float32) - before).max(axis=2)
    cloth = before[region].astype(np.float32)
    own = max(6.0, float(cloth.std(axis=0).max())) if len(cloth) else 6.0
    # Where the weave is lost only its threads change: an average over them keeps the mask in one piece.
    weight = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5)
    within = cv2.GaussianBlur(change * mask, (0, 0), 1.5) / np.maximum(weight, 1e-3)
    strongest = float(np.quantile(within[mask], 0.9)) if mask.any() else 0.0
    kept = (mask & region & (within > max(3.0, own / 5, strongest / 3))).astype(np.uint8)
    kept = cv2.morphologyEx(kept, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)).astype(bool) & mask & region
    strong = region & ((cv2.GaussianBlur(change, (0, 0), 1.0) > 2 * own) | kept)
    _, labels = cv2.connectedComponents(strong.astype(np.uint8), connectivity=8)
    return np.asarray(strong & np.isin(labels, np.unique(labels[kept])), bool)
