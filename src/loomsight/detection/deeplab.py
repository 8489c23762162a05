"""DeepLabV3 in two forms: where in a picture is the cloth defective?

``paper`` is the detector of *Multistage GAN for Fabric Defect Detection* (TIP 2020): ResNet-50 at output
stride 8, atrous spatial pyramid pooling with four branches and a global one (Chen et al., Rethinking
Atrous Convolution, 2017), background : defect weighted 1 : 9.

``lite`` is the default: EfficientNet-Lite0 up to stride 16, a light pyramid, and a decoder that returns
through strides 8 and 4 to 2, so that a defect three pixels wide survives. **Its backbone stays as ImageNet
left it; only pyramid and decoder learn.** A network that is trained through soon knows its few pictures by
heart, and gets worse on new cloth with every step; this one does not (docs/experiments.md), and a step
costs a third.

Read top to bottom: blocks, the two networks, building, loss and training step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.backbones import efficientnet_lite, resnet

if TYPE_CHECKING:
    from loomsight.training.loop import Context

Form = Literal["lite", "paper"]
STEP = 16
"""Pixels: the sides of what an exported graph looks at are multiples of it."""


class Segmenter(nn.Module):
    """What both forms share.

    Attributes:
        defect_weight: a defect pixel's weight in the loss; a background pixel has 1.
        types: the types of defects that it tells apart; none: it says only where.
    """

    defect_weight: float
    types: tuple[str, ...] = ()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Logits of "defective" for RGB pictures or tiles in [0, 1], at least 32 pixels a side."""
        raise NotImplementedError

    def with_types(
        self, x: Float[Tensor, "b 3 h w"], places: Bool[Tensor, "b i j"]
    ) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "n types"] | None]:
        """The same, and the logits of each type at some places; None where it tells none apart.

        Args:
            places: which pixels at half the resolution: few have a type, and all would cost twice the rest.
        """
        return self(x), None


def _conv(inp: int, out: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    pad = dilation * (kernel // 2)
    conv = nn.Conv2d(inp, out, kernel, padding=pad, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _separable(inp: int, out: int, dilation: int = 1) -> nn.Sequential:
    depthwise = nn.Conv2d(inp, inp, 3, padding=dilation, dilation=dilation, groups=inp, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inp), *_conv(inp, out))


def _resize(x: Float[Tensor, "b c h w"], like: Tensor) -> Float[Tensor, "b c i j"]:
    if (
        torch.compiler.is_exporting()
    ):  # one graph for all sizes: sides that :data:`STEP` divides have whole factors
        factor = like.shape[-1] // x.shape[-1]
        return (
            _doubled(x) if x.shape[1] == 1 else F.interpolate(x, scale_factor=float(factor), mode="bilinear")
        )
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _doubled(x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h2 w2"]:
    """Bilinear interpolation to twice the size, as a convolution: runtimes are slow with a single channel."""
    near, far = torch.tensor([0.25, 0.75, 0.0]), torch.tensor([0.0, 0.75, 0.25])
    weight = torch.stack([torch.outer(a, b) for a in (near, far) for b in (near, far)])[:, None]
    return F.pixel_shuffle(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight), 2)


_NAMES = "naming.3."
"""The last layer of what :func:`_naming` builds, in a state dict."""


def _naming(channels: int, types: int) -> nn.Sequential:
    alike = nn.BatchNorm2d(channels)  # the levels of a backbone have scales of their own
    return nn.Sequential(alike, nn.Conv2d(channels, 96, 1), nn.ReLU(inplace=True), nn.Conv2d(96, types, 1))


class DeepLabLite(Segmenter):
    """Frozen EfficientNet-Lite0, light pyramid, decoder to stride 2."""

    defect_weight = 3.0

    def __init__(self, *, pretrained: bool = True, types: Sequence[str] = ()) -> None:
        super().__init__()
        self.types = tuple(types)
        self.backbone = efficientnet_lite.build("lite0", pretrained=pretrained, stages=5)
        self.backbone.requires_grad_(False)
        two, four, eight, sixteen = self.backbone.channels
        self.pyramid = nn.ModuleList(
            [_conv(sixteen, 64), *(_separable(sixteen, 64, rate) for rate in (2, 4, 8))]
        )
        self.project = nn.Sequential(_conv(4 * 64, 64), nn.Dropout2d(0.1))
        self.skips = nn.ModuleList([_conv(eight, 32), _conv(four, 24), _conv(two, 16)])
        self.decoder = nn.ModuleList(
            [_separable(64 + 32, 48), _separable(48 + 24, 32), _separable(32 + 16, 32)]
        )
        self.head = nn.Conv2d(32, 1, 1)
        nn.init.constant_(self.head.bias, -3.0)  # type: ignore[arg-type]  # defects are rare: begin by saying so
        with torch.random.fork_rng(devices=[]):  # whether it names types or not, it learns the same places
            self.naming = _naming(32 + 64 + eight + sixteen, len(self.types)) if self.types else None

    def train(self, mode: bool = True) -> DeepLabLite:
        """As ever, but the backbone's batch norm keeps ImageNet's statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        return _resize(self.head(self._decoded(x)[0]), x)

    def with_types(
        self, x: Float[Tensor, "b 3 h w"], places: Bool[Tensor, "b i j"]
    ) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "n types"] | None]:
        """Where, and of which type. The types are read off what tells where, and do not change it."""
        fine, *coarse = self._decoded(x)
        where = _resize(self.head(fine), x)
        if self.naming is None:
            return where, None
        with torch.no_grad():
            levels = [fine, *(_resize(level, fine) for level in coarse)]
            seen = torch.cat([level.permute(0, 2, 3, 1)[places] for level in levels], 1)
        self.naming.train(self.training and len(seen) > 1)  # one place has no deviation to divide by
        return where, self.naming(seen[..., None, None])[..., 0, 0]

    def _decoded(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of the decoder (stride 2), the pyramid (16), and the backbone at strides 8 and 16."""
        with torch.no_grad():
            *fine, coarse = self.backbone(x)
        around = y = self.project(torch.cat([branch(coarse) for branch in self.pyramid], 1))
        for skip, refine, level in zip(self.skips, self.decoder, fine[::-1], strict=True):
            y = refine(torch.cat([_resize(y, level), skip(level)], 1))
        return y, around, fine[-1], coarse


class DeepLabPaper(Segmenter):
    """ResNet-50 at output stride 8, pyramid of 1×1, rates 12, 24, 36 and a global branch."""

    defect_weight = 9.0

    def __init__(self, *, weights: Path | None = None) -> None:
        super().__init__()
        self.backbone = resnet.build(50, weights=weights, output_stride=8)
        deep = self.backbone.channels[-1]
        self.pyramid = nn.ModuleList(
            [_conv(deep, 256), *(_conv(deep, 256, 3, rate) for rate in (12, 24, 36))]
        )
        # The global branch has no batch norm: one value a picture has no deviation to divide by.
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(deep, 256, 1), nn.ReLU(inplace=True))
        self.overall = nn.Sequential(*pooled)
        self.head = nn.Sequential(
            _conv(5 * 256, 256), nn.Dropout(0.1), _conv(256, 256, 3), nn.Conv2d(256, 1, 1)
        )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        deep = self.backbone(x)[-1]
        branches = [branch(deep) for branch in self.pyramid]
        branches.append(self.overall(deep).expand(-1, -1, *deep.shape[-2:]))
        return _resize(self.head(torch.cat(branches, 1)), x)


def build(
    form: Form = "lite",
    *,
    pretrained: bool = True,
    resnet_weights: Path | None = None,
    types: Sequence[str] = (),
) -> Segmenter:
    """A segmenter.

    Args:
        form: ``"lite"`` or ``"paper"``.
        types: what ``lite`` is to tell apart; ``paper`` tells none, as in the paper.
        pretrained: for ``lite``, load ImageNet's backbone; false when a profile's weights follow.
        resnet_weights: for ``paper``, a ResNet-50 state dict; without it the backbone is random.

    Raises:
        WeightsError: weights are missing or not the known file.
    """
    if form == "paper":
        return DeepLabPaper(weights=resnet_weights)
    return DeepLabLite(pretrained=pretrained, types=types)


def start_from(network: Segmenter, weights: Mapping[str, Tensor], types: Sequence[str] = ()) -> None:
    """Take over the weights of a segmenter that tells ``types`` apart.

    Types that both know keep what was learned of them, new ones start afresh.
    """
    own = {key: value for key, value in weights.items() if not key.startswith("naming.")}
    both = [name for name in network.types if name in types]
    if both:
        fresh = network.state_dict()
        rows = [network.types.index(name) for name in both], [types.index(name) for name in both]
        for key in (key for key in fresh if key.startswith("naming.")):
            if key.startswith(_NAMES):  # a row for each type
                own[key] = fresh[key].clone()
                own[key][rows[0]] = weights[key][rows[1]]
            else:
                own[key] = weights[key]
    missing = network.load_state_dict(own, strict=False).missing_keys
    wrong = [key for key in missing if not key.startswith("naming.")]
    if wrong:
        raise RuntimeError(f"no {wrong[0]} in the weights")


class Batch(TypedDict):
    """What a training step takes."""

    image: Float[Tensor, "b 3 h w"]  # uint8, or float in [0, 1]
    target: Float[Tensor, "b 1 h w"]  # 1 on a defect
    weight: Float[Tensor, "b 1 h w"]  # 0 where the label is unknown
    boxes: NotRequired[list[NDArray[np.int64]]]  # xyxy, of each tile's defects of which no pixel is known
    types: NotRequired[Int[Tensor, "b i j"]]  # at half the resolution: the type's number, IGNORED elsewhere


IGNORED = -100
"""In a batch's types: good cloth, or a defect whose type nobody knows."""


def segmentation_loss(
    logits: Float[Tensor, "b 1 h w"],
    target: Float[Tensor, "b 1 h w"],
    weight: Float[Tensor, "b 1 h w"],
    defect_weight: float,
) -> Float[Tensor, ""]:
    """Binary cross-entropy, a defect pixel counting ``defect_weight`` times, over the known pixels."""
    each = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    known = weight * (1 + (defect_weight - 1) * target)
    return (each * known).sum() / weight.sum().clamp(min=1)


def box_loss(
    logits: Float[Tensor, "b 1 h w"],
    boxes: Sequence[Int[NDArray[np.int64], "n 4"]],
    weight: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, ""]:
    """What a box alone tells of its pixels: each of its rows and columns holds some of the defect.

    The surest pixel of each answers for it (the projection term of Tian et al., *BoxInst*, CVPR 2021). What
    fills a row of a box that reaches the tile's left or right border may lie beyond it: then only its columns
    are asked, and at the upper or lower border its rows.

    Args:
        boxes: of each tile's defects, xyxy pixels, far edge excluded.
        weight: 0 where the label is unknown; of a box only such pixels are asked.

    Returns:
        binary cross-entropy, the sum over rows and columns.
    """
    height, width = logits.shape[-2:]
    asked = logits.float().masked_fill(weight > 0, -torch.inf)[:, 0]
    lines = [logits.new_zeros(0, dtype=torch.float32)]
    for tile, own in zip(asked, boxes, strict=True):
        for x0, y0, x1, y1 in own.tolist():
            inside = tile[y0:y1, x0:x1]
            lines += [inside.amax(1)] if x0 > 0 and x1 < width else []
            lines += [inside.amax(0)] if y0 > 0 and y1 < height else []
    surest = torch.cat(lines)
    loss: Tensor = F.softplus(-surest[surest > -torch.inf]).sum()
    return loss


def naming_loss(logits: Float[Tensor, "n types"], types: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Cross-entropy over the pixels whose type is known, each type weighing the same in a batch."""
    if not len(types):
        return 0.0 * logits.sum()
    counts = torch.bincount(types, minlength=logits.shape[1])
    each = F.cross_entropy(logits.float(), types, reduction="none") / counts[types]
    loss: Tensor = each.sum() / (counts > 0).sum()
    return loss


class SegmenterTask:
    """How the training loop trains a segmenter: AdamW on what is not frozen, one loss, one step."""

    def __init__(self, network: Segmenter, *, lr: float = 2e-3, weight_decay: float = 1e-2) -> None:
        self.networks: Mapping[str, nn.Module] = {"segmenter": network}
        naming = list(getattr(network, "naming", None).parameters()) if network.types else []  # type: ignore[union-attr]
        apart = {id(p) for p in naming}
        learning = [p for p in network.parameters() if p.requires_grad and id(p) not in apart]
        self.optimizers = {"segmenter": torch.optim.AdamW(learning, lr=lr, weight_decay=weight_decay)}
        if naming:
            self.optimizers["naming"] = torch.optim.AdamW(naming, lr=lr, weight_decay=weight_decay)
        self._network = network

    def step(self, batch: Batch, context: Context) -> dict[str, Tensor]:
        image = batch["image"]
        x = image.float() / 255 if image.dtype == torch.uint8 else image
        types = batch.get("types")
        with context.autocast():
            if types is None:
                logits, named = self._network(x), None
            else:
                logits, named = self._network.with_types(x, types != IGNORED)
        loss = segmentation_loss(logits, batch["target"], batch["weight"], self._network.defect_weight)
        if "boxes" in batch:
            boxed = box_loss(logits, batch["boxes"], batch["weight"])
            loss = loss + boxed / batch["weight"].sum().clamp(min=1)
        context.update(loss, "segmenter")
        if named is None or types is None:
            return {"loss": loss}
        naming = naming_loss(named, types[types != IGNORED])
        context.update(naming, "naming")
        return {"loss": loss, "naming": naming}
