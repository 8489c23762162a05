"""The loss of RT-DETR, for rare defects of many types.

As transformers computes it: queries are matched to defects one to one, and every layer and the denoised
queries pay for classes, L1 and generalised IoU. Two things differ, both in the classes:

* Every defect is also of class 0, *any defect*. This class alone matches and ranks. A step holds a dozen
  defects of thirty types: without it the network must tell the types apart before it learns where to look.
* A matched query's target is IoU^1.5 at full weight (matchability-aware loss; Huang et al., *DEIM*, CVPR
  2025). Varifocal weighs by the IoU, so the boxes of thin threads, poor at first, hardly teach anything.

What each is worth here stands in docs/experiments.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import RTDetrConfig
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import box_iou
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher, RTDetrLoss

_POWER = 1.5
Labels = Sequence[Mapping[str, Tensor]]
Indices = Sequence[tuple[Tensor, Tensor]]


class _AnyDefectMatcher(RTDetrHungarianMatcher):  # type: ignore[misc]
    """Matches by place, extent and the probability of any defect, not by type."""

    def forward(self, outputs: Mapping[str, Tensor], targets: Labels) -> Indices:
        any_defect = {"logits": outputs["logits"][..., :1], "pred_boxes": outputs["pred_boxes"]}
        one_class = [{**own, "class_labels": torch.zeros_like(own["class_labels"])} for own in targets]
        matched: Indices = super().forward(any_defect, one_class)
        return matched


class _DefectLoss(RTDetrLoss):  # type: ignore[misc]
    def __init__(self, config: RTDetrConfig) -> None:
        super().__init__(config)
        self.matcher = _AnyDefectMatcher(config)

    def loss_labels_vfl(
        self,
        outputs: Mapping[str, Tensor],
        targets: Labels,
        indices: Indices,
        num_boxes: float,
        log: bool = True,
    ) -> dict[str, Tensor]:
        """In place of varifocal, under its name; an overridden method, hence the signature."""
        matched = self._get_source_permutation_idx(indices)
        boxes = outputs["pred_boxes"][matched].detach()
        true = torch.cat([own["boxes"][which] for own, (_, which) in zip(targets, indices, strict=True)])
        types = torch.cat(
            [own["class_labels"][which] for own, (_, which) in zip(targets, indices, strict=True)]
        )
        iou = box_iou(center_to_corners_format(boxes), center_to_corners_format(true))[0].diagonal()
        logits = outputs["logits"]
        target, positive = torch.zeros_like(logits), torch.zeros_like(logits)
        for kind in (torch.zeros_like(types), types):
            target[(*matched, kind)] = iou.clamp(0, 1).pow(_POWER)
            positive[(*matched, kind)] = 1.0
        weight = logits.detach().sigmoid().pow(_POWER) * (1 - positive) + positive
        loss = F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
        return {"loss_vfl": loss / num_boxes}


def rtdetr_loss(  # noqa: PLR0917 — called by transformers
    logits: Tensor,
    labels: Labels,
    device: torch.device,
    boxes: Tensor,
    config: RTDetrConfig,
    layer_logits: Tensor,
    layer_boxes: Tensor,
    *,
    enc_topk_logits: Tensor,
    enc_topk_bboxes: Tensor,
    denoising_meta_values: Mapping[str, Any] | None = None,
    **_: Any,
) -> tuple[Tensor, dict[str, Tensor], None]:
    """A ``loss_function`` of ``RTDetrForObjectDetection``, which calls it.

    Args:
        logits, boxes: of the last layer, which ``layer_logits`` and ``layer_boxes`` hold too: (b, layers, q,
            classes) and (b, layers, q, 4). With denoising the denoised queries come first.
        labels: for each tile the ``class_labels`` (n,), from 1 on, and ``boxes`` (n, 4) cx cy w h in [0, 1].

    Returns:
        the sum of all losses, each of them, and nothing for the layers' outputs, which nobody reads.
    """
    outputs: dict[str, Any] = {}
    if denoising_meta_values is not None:
        parts = denoising_meta_values["dn_num_split"]
        noised_logits, layer_logits = torch.split(layer_logits, parts, 2)
        noised_boxes, layer_boxes = torch.split(layer_boxes, parts, 2)
        outputs["dn_auxiliary_outputs"] = _layers(noised_logits, noised_boxes)
        outputs["denoising_meta_values"] = denoising_meta_values
    *earlier, last = _layers(layer_logits, layer_boxes)
    encoder = {"logits": enc_topk_logits, "pred_boxes": enc_topk_bboxes}
    losses = _DefectLoss(config).to(device)(
        {**last, **outputs, "auxiliary_outputs": [*earlier, encoder]}, labels
    )
    return sum(losses.values()), losses, None


def _layers(logits: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
    pairs = zip(logits.unbind(1), boxes.unbind(1), strict=True)
    return [{"logits": own, "pred_boxes": at} for own, at in pairs]
