"""RT-DETR: boxes and types of defects in one pass, without non-maximum suppression.

Zhao et al., *DETRs Beat YOLOs on Real-time Object Detection* (CVPR 2024), as transformers builds it. Three
forms: ``lite0`` is the default, on the same frozen EfficientNet-Lite0 as the segmenter and as small as a
line PC needs; its levels have strides 4, 8 and 16, because most defects are a few pixels wide. ``resnet18``
and ``resnet50`` are the published networks; their weights come from a user's file in transformers' layout.

The network sees tiles of one size at the camera's own resolution. Its boxes are relative to the tile, so
tiles of another size change what a box of n pixels looks like to it: train and inspect with the same.

Each query answers twice: how surely there is a defect of any type, and of which. So a defect of a type that
nobody has labelled is boxed too, and what is rare need not be named before it is found.

transformers initialises for weights that are loaded afterwards: its batch norms begin at a hundredth, and
from there nothing is learned in ten thousand steps. What is not loaded begins here as its authors let it.

A tile without any defect is the usual case here, so batches without boxes must train: nothing is divided
by their number, and every parameter takes part in every loss, so that no process of several waits for a
gradient that never comes.

``discrete`` sampling is that of RT-DETRv2 (Lv et al., 2024): the nearest cell is read in place of four, so
that an exported graph needs no GridSample.

Read top to bottom: backbone, sampling, network, building, targets and training step. The loss stands in
:mod:`~loomsight.detection.rtdetr_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.backbones import efficientnet_lite
from loomsight.errors import WeightsError
from loomsight.fabric.types import UNKNOWN

if TYPE_CHECKING:
    from loomsight.training.loop import Context

DetectorForm = Literal["lite0", "resnet18", "resnet50"]
Sampling = Literal["bilinear", "discrete"]
QUERIES = 300
"""Boxes that a published form gives for a tile; ``lite0`` gives a third, which is plenty for 160 pixels."""
_RARE = 0.01  # what a defect's probability begins with
_TIE = 1e-3  # of a cell: what lies on an edge, as many points do, is in the same cell in every runtime
LEAST = 1.0
"""Pixels: a box is made at least this long and high, so that no area is zero."""


class Lite0Levels(nn.Module):
    """Frozen EfficientNet-Lite0, strides 4, 8 and 16, as transformers asks a backbone."""

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        self.body = efficientnet_lite.build("lite0", pretrained=pretrained, stages=5)
        self.body.requires_grad_(False)
        self.channels = self.body.channels[1:]

    def train(self, mode: bool = True) -> Lite0Levels:
        """As ever, but its batch norm keeps ImageNet's statistics."""
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> SimpleNamespace:
        with torch.no_grad():
            return SimpleNamespace(feature_maps=self.body(x)[1:])


class DiscreteSampling(nn.Module):
    """In place of transformers' MultiScaleDeformableAttention: the nearest cell, by plain indexing."""

    def forward(
        self,
        value: Float[Tensor, "b s heads d"],
        _shapes: Tensor,
        shapes: Sequence[tuple[int, int]],
        _starts: Tensor,
        at: Float[Tensor, "b q heads levels points 2"],
        weights: Float[Tensor, "b q heads levels points"],
        _step: int,
    ) -> Float[Tensor, "b q c"]:
        batch, _, heads, wide = value.shape
        queries, points = at.shape[1], at.shape[4]
        read = []
        for level, (part, (height, width)) in enumerate(
            zip(torch.split(value, [h * w for h, w in shapes], 1), shapes, strict=True)
        ):
            x = (at[:, :, :, level, :, 0] * width + _TIE).floor().clamp(0, width - 1).long()
            y = (at[:, :, :, level, :, 1] * height + _TIE).floor().clamp(0, height - 1).long()
            cell = (y * width + x).permute(0, 2, 1, 3).reshape(batch, heads, queries * points, 1)
            cells = part.permute(0, 2, 1, 3).gather(2, cell.expand(-1, -1, -1, wide))
            read.append(cells.view(batch, heads, queries, points, wide))
        seen = torch.stack(read, 3)  # b heads q levels points d
        mixed = (seen * weights.permute(0, 2, 1, 3, 4)[..., None]).sum((3, 4))
        return mixed.permute(0, 2, 1, 3).reshape(batch, queries, heads * wide)


class Detector(nn.Module):
    """RT-DETR for the given types.

    Attributes:
        types: what it tells apart; type k is ``types[k]``.
        form: which network it is.
    """

    def __init__(
        self, types: Sequence[str], form: DetectorForm = "lite0", *, pretrained: bool = True
    ) -> None:
        from transformers import RTDetrConfig, RTDetrForObjectDetection

        from loomsight.detection.rtdetr_loss import rtdetr_loss

        super().__init__()
        self.types, self.form = tuple(types), form
        self.sampling: Sampling = "bilinear"
        config = RTDetrConfig(**_settings(form), num_labels=1 + len(self.types))  # class 0: any defect
        self.network = RTDetrForObjectDetection(config)
        _initialise(self.network)
        if form == "lite0":
            self.network.model.backbone.model = Lite0Levels(pretrained=pretrained)
        self.network.loss_function = _in_float32(rtdetr_loss)

    def forward(
        self, x: Float[Tensor, "b 3 h w"], labels: list[Boxes] | None = None
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q types"], Float[Tensor, "b q 4"]] | Float[Tensor, ""]:
        """Look at RGB pictures in [0, 1].

        Returns:
            without labels, of each query the logit of any defect, those of each type, and the box, xyxy as
            shares of the tile; with labels, the loss.
        """
        if labels is not None:
            shifted = [{"class_labels": own["class_labels"] + 1, "boxes": own["boxes"]} for own in labels]
            loss: Tensor = self.network(pixel_values=x, labels=shifted).loss
            return loss + sum(0.0 * p.sum() for p in self._idle_without_boxes)
        out = self.network(pixel_values=x)
        middle, half = out.pred_boxes[..., :2], 0.5 * out.pred_boxes[..., 2:]
        return out.logits[..., 0], out.logits[..., 1:], torch.cat([middle - half, middle + half], -1)

    @property
    def _idle_without_boxes(self) -> list[nn.Parameter]:
        """What takes no part in the loss of a batch without boxes: another process would wait for it."""
        return [self.network.model.denoising_class_embed.weight]

    def sample(self, how: Sampling) -> None:
        """Read the features between cells, or the nearest cell: for an export without GridSample."""
        from transformers.models.rt_detr.modeling_rt_detr import MultiScaleDeformableAttention

        self.sampling = how
        for layer in self.network.model.decoder.layers:
            layer.encoder_attn.attn = (
                DiscreteSampling() if how == "discrete" else MultiScaleDeformableAttention()
            )


def _initialise(network: nn.Module) -> None:
    """As RT-DETR's authors begin a training; see the top of this module."""
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrMultiscaleDeformableAttention

    model: Any = network.model
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm | nn.Embedding):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, RTDetrMultiscaleDeformableAttention):
            model._init_weights(module)  # its sampling points begin as a star
    for head in (model.enc_score_head, *model.decoder.class_embed):
        nn.init.constant_(head.bias, -math.log(1 / _RARE - 1))
    for head in (model.enc_bbox_head, *model.decoder.bbox_embed):
        nn.init.zeros_(head.layers[-1].weight)  # a box begins as its anchor


def _in_float32(loss_of: Callable[..., Any]) -> Callable[..., Any]:
    """The loss outside of mixed precision: in bfloat16 a box of two pixels has no sides left."""

    def loss(*outputs: Any, **more: Any) -> Any:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return loss_of(*map(_float32, outputs), **{name: _float32(value) for name, value in more.items()})

    return loss


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _settings(form: DetectorForm) -> dict[str, Any]:
    from transformers import RTDetrResNetConfig

    common: dict[str, Any] = {
        "num_queries": QUERIES,
        "freeze_backbone_batch_norms": True,
    }
    if form == "resnet50":
        return {**common, "backbone_config": RTDetrResNetConfig(out_features=["stage2", "stage3", "stage4"])}
    if form == "resnet18":
        body = RTDetrResNetConfig(
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        return {
            **common,
            "backbone_config": body,
            "encoder_in_channels": [128, 256, 512],
            "hidden_expansion": 0.5,
            "decoder_layers": 3,
        }
    levels = [24, 40, 112]
    return {  # the body here is a stand-in of the right widths, which Lite0Levels replaces
        **common,
        "backbone_config": RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=levels,
            depths=[1, 1, 1],
            layer_type="basic",
            out_features=["stage1", "stage2", "stage3"],
        ),
        "encoder_in_channels": levels,
        "feat_strides": [4, 8, 16],
        "encoder_hidden_dim": 64,
        "encoder_ffn_dim": 256,
        "hidden_expansion": 0.5,
        "d_model": 64,
        "decoder_in_channels": [64, 64, 64],
        "decoder_ffn_dim": 256,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "num_queries": 100,
        "num_denoising": 30,
        "attn_implementation": "eager",  # of a hundred queries: quicker on a CPU than the fused kernel
    }


def build(
    form: DetectorForm = "lite0",
    types: Sequence[str] = (UNKNOWN,),
    *,
    pretrained: bool = True,
    weights: Path | None = None,
) -> Detector:
    """A detector.

    Args:
        form: "lite0", "resnet18" or "resnet50".
        types: what it is to tell apart, at least one.
        pretrained: for ``lite0``, load ImageNet's backbone; false when a profile's weights follow.
        weights: for the others, safetensors in transformers' layout, as PekingU/rtdetr_r18vd has it. What
            depends on the number of types is left out; without a file all weights are random.

    Raises:
        WeightsError: the file is missing, unreadable, or of another network.
    """
    network = Detector(types, form, pretrained=pretrained)
    if weights is not None:
        _load(network, weights)
    return network


_OF_TYPES = ("class_embed", "enc_score_head", "denoising_class_embed")  # their size is the number of types


def _load(network: Detector, path: Path) -> None:
    import safetensors
    import safetensors.torch

    if network.form == "lite0":
        raise WeightsError("weights refused", where=path, why="lite0 takes none: its backbone comes along")
    if not path.is_file():
        raise WeightsError("weights missing", where=path, do="give the model.safetensors of the detector")
    try:
        given = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError("weights refused", where=path, why="it is no whole safetensors file") from error
    weights, missing, others = _as_named_now(network.network, given)
    for key in missing:
        if not _of_types(key):
            raise WeightsError("weights refused", where=path, why=f"no {key} in it: not {network.form}")
    for key, theirs, ours in others:
        if not _of_types(key):
            why = f"{key} is {tuple(theirs)}, {network.form} has {tuple(ours)}"
            raise WeightsError("weights refused", where=path, why=why)
    own = {key: value for key, value in weights.items() if not _of_types(key)}
    network.network.load_state_dict(own, strict=False)


def _of_types(key: str) -> bool:
    return any(part in key for part in _OF_TYPES)


def _as_named_now(
    network: nn.Module, given: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[tuple[str, Sequence[int], Sequence[int]]]]:
    """Weights by the names that transformers has for them in memory: its files keep older ones.

    Returns:
        all the network's weights, those that were not given, and those that have another shape: theirs, ours.
    """
    from transformers import RTDetrForObjectDetection
    from transformers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded, told = RTDetrForObjectDetection.from_pretrained(
            None,
            config=network.config,
            state_dict=given,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(said)
        logging.enable_progress_bar()
    return loaded.state_dict(), sorted(told["missing_keys"]), sorted(told["mismatched_keys"])


def start_from(network: Detector, weights: Mapping[str, Tensor], types: Sequence[str]) -> None:
    """Take over the weights of a detector of the same form that tells ``types`` apart.

    Types that both know keep what was learned of them, new ones start afresh; any defect is known to both.

    Raises:
        RuntimeError: they are of another form.
    """
    own = network.state_dict()
    for key, value in own.items():
        given = weights.get(key)
        if given is None:
            raise RuntimeError(f"no {key} in the weights")
        if not any(part in key for part in _OF_TYPES):
            if given.shape != value.shape:
                raise RuntimeError(f"{key} is {tuple(given.shape)}, not {tuple(value.shape)}")
            own[key] = given
            continue
        filled = value.clone()
        filled[0] = given[0]
        for k, name in enumerate(network.types, 1):
            if name in types:
                filled[k] = given[1 + types.index(name)]
        if len(value) > 1 + len(network.types):  # the row of no defect at all, of the denoised queries
            filled[-1] = given[-1]
        own[key] = filled
    network.load_state_dict(own)


class Boxes(TypedDict):
    """The defects of one tile."""

    class_labels: Int[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]  # middle, width and height, as shares of the tile: cx cy w h


class DetectorBatch(TypedDict):
    """What a training step takes."""

    image: Float[Tensor, "b 3 h w"]  # uint8, or float in [0, 1]
    labels: list[Boxes]


def targets(
    boxes: Float[NDArray[np.float32], "n 4"], classes: Int[NDArray[np.int64], " n"], size: tuple[int, int]
) -> Boxes:
    """The targets of a tile from its boxes.

    Args:
        boxes: xyxy pixels; cut at the tile's border, and made :data:`LEAST` pixels long and high at least.
        classes: the class of each.
        size: height and width of the tile, pixels.
    """
    height, width = size
    room = np.array([width, height, width, height], np.float32)
    cut = np.clip(boxes.reshape(-1, 4).astype(np.float32), 0, room)
    extent = np.maximum(cut[:, 2:] - cut[:, :2], LEAST)
    middle = np.clip(0.5 * (cut[:, :2] + cut[:, 2:]), 0.5 * extent, room[:2] - 0.5 * extent)
    relative = np.concatenate([middle, extent], 1) / room
    return {"class_labels": torch.from_numpy(classes.astype(np.int64)), "boxes": torch.from_numpy(relative)}


class DetectorTask:
    """How the training loop trains a detector: AdamW on what is not frozen, RT-DETR's own loss."""

    def __init__(self, network: Detector, *, lr: float = 1e-3, weight_decay: float = 1e-4) -> None:
        self.networks: Mapping[str, nn.Module] = {"detector": network}
        learning = [p for p in network.parameters() if p.requires_grad]
        self.optimizers = {
            "detector": torch.optim.AdamW(learning, lr=lr, weight_decay=weight_decay, fused=True)
        }
        self._network = network

    def step(self, batch: DetectorBatch, context: Context) -> dict[str, Tensor]:
        image = batch["image"]
        x = image.float() / 255 if image.dtype == torch.uint8 else image
        loss = detection_loss(self._network, x, batch["labels"], context.autocast())
        context.update(loss)
        return {"loss": loss}


def detection_loss(
    network: nn.Module,
    x: Float[Tensor, "b 3 h w"],
    labels: list[Boxes],
    autocast: AbstractContextManager[object] | None = None,
) -> Float[Tensor, ""]:
    """RT-DETR's loss: classes, L1 and generalised IoU, of every layer and of the denoised queries.

    Args:
        network: a :class:`Detector`, or one wrapped for several processes.
    """
    with autocast or nullcontext():
        loss: Tensor = network(x, labels)
    return loss
