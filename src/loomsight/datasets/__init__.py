"""Data sets: read and write the usual layouts, split them without leaks, check them."""

from loomsight.datasets.formats import read_dataset
from loomsight.datasets.items import Item
from loomsight.datasets.outlines import boxes_to_mask, masks_to_boxes

__all__ = ["Item", "boxes_to_mask", "masks_to_boxes", "read_dataset"]
