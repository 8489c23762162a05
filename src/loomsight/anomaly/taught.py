"""What lessons left in a memory, each row with the lesson that it is from, so that one can be taken back.

A row that a later lesson contradicts is silent, not lost: where that lesson is taken back, it speaks again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

_SAME = 1e-2  # of a feature that is computed again; neighbours lie a hundred times as far apart

_AT_ONCE = 1024  # features compared at a time


class Taught:
    """Features that lessons taught, of defects or of good cloth, at one scale.

    Args:
        vectors: all of them; of: the lesson that each is from, 0 for none that can be taken back.
        silenced: pairs of a row and a lesson that contradicts it.
    """

    def __init__(
        self,
        vectors: Float[Tensor, "n c"],
        of: Int[Tensor, " n"] | None = None,
        silenced: Int[Tensor, "k 2"] | None = None,
    ) -> None:
        self.vectors = vectors
        self._of = torch.zeros(len(vectors), dtype=torch.long) if of is None else of
        self._silenced = torch.zeros(0, 2, dtype=torch.long) if silenced is None else silenced

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def live(self) -> Float[Tensor, "m c"]:
        """Those that no lesson contradicts."""
        live = torch.ones(len(self), dtype=torch.bool)
        live[self._silenced[:, 0]] = False
        return self.vectors[live.to(self.vectors.device)]

    def add(self, vectors: Float[Tensor, "n c"], lesson: int) -> None:
        """Take over what a lesson shows."""
        self.vectors = torch.cat([self.vectors, vectors])
        self._of = torch.cat([self._of, torch.full((len(vectors),), lesson)])

    def contradict(self, same: Float[Tensor, "m c"], lesson: int) -> None:
        """Silence what is as exactly the same as features of one place that are computed again."""
        rows = torch.zeros(len(self), dtype=torch.bool)
        for part in torch.split(same, _AT_ONCE):
            away = torch.cdist(self.vectors, part, compute_mode="donot_use_mm_for_euclid_dist")
            rows |= (away < _SAME).any(1).cpu()
        self.silence(rows, lesson)

    def silence(self, rows: Bool[Tensor, " n"], lesson: int) -> None:
        """Let these say nothing as long as a lesson holds; with lesson 0 they are lost."""
        if not lesson:
            self._keep(~rows)
            return
        at = rows.nonzero()
        self._silenced = torch.cat([self._silenced, torch.cat([at, torch.full_like(at, lesson)], 1)])

    def forget(self, lessons: Collection[int]) -> None:
        """Lose what lessons taught, and let what they contradicted speak again."""
        gone = torch.tensor(sorted(lessons), dtype=torch.long)
        self._silenced = self._silenced[~torch.isin(self._silenced[:, 1], gone)]
        self._keep(~torch.isin(self._of, gone))

    def settle(self, lessons: Collection[int]) -> None:
        """Let what lessons taught, and what they contradicted, be so for good."""
        gone = torch.tensor(sorted(lessons), dtype=torch.long)
        lost = torch.zeros(len(self), dtype=torch.bool)
        lost[self._silenced[torch.isin(self._silenced[:, 1], gone), 0]] = True
        self._of = torch.where(torch.isin(self._of, gone), 0, self._of)
        self._keep(~lost)

    def thin(self, size: int, choose: Callable[[Float[Tensor, "n c"]], Int[Tensor, " m"]]) -> None:
        """Of those of no lesson keep the chosen, where they are more than ``size``."""
        settled = (self._of == 0).nonzero().flatten()
        if len(settled) > size:
            rows = self._of != 0
            rows[settled[choose(self.vectors[settled])]] = True
            self._keep(rows)

    def _keep(self, rows: Bool[Tensor, " n"]) -> None:
        self._silenced = self._silenced[rows[self._silenced[:, 0]]]
        self._silenced[:, 0] = (rows.cumsum(0) - 1)[self._silenced[:, 0]]
        self.vectors, self._of = self.vectors[rows.to(self.vectors.device)], self._of[rows]

    def projected(self, vectors: Float[Tensor, "n c"]) -> Taught:
        """The same rows with other features."""
        return Taught(vectors, self._of.clone(), self._silenced.clone())

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All rows, as plain arrays; ``""`` are the features."""
        parts = ("", self.vectors), (".of", self._of), (".silenced", self._silenced)
        return {name: part.cpu().numpy().astype(np.float32) for name, part in parts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str, device: torch.device) -> Self:
        """The same again; what was written before lessons were told apart is of none.

        Raises:
            KeyError: these are not its arrays.
        """
        vectors = torch.from_numpy(np.ascontiguousarray(arrays[name], np.float32)).to(device)
        if f"{name}.of" not in arrays:
            return cls(vectors)
        of, silenced = (
            torch.from_numpy(arrays[f"{name}.{what}"].astype(np.int64)) for what in ("of", "silenced")
        )
        return cls(vectors, of, silenced)
