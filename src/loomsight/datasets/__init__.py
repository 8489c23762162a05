"""Data sets: read and write the usual layouts, split them without leaks, check them."""

from loomsight.datasets.formats import read_dataset
from loomsight.datasets.items import Item
from loomsight.datasets.outlines import boxes_to_mask, masks_to_boxes
from loomsight.datasets.splits import Fold, new_fabric_fold, split
from loomsight.datasets.writers import write_dataset

__all__ = [
    "Fold",
    "Item",
    "boxes_to_mask",
    "masks_to_boxes",
    "new_fabric_fold",
    "read_dataset",
    "split",
    "write_dataset",
]
