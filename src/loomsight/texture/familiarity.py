"""Familiarity: is this cloth one of the known fabrics, which one, and with what confidence?

A code is compared with the codes of the known fabrics in a learned metric. Pictures of one fabric differ by
light, distance and skew; directions in which they differ within their fabric are shrunk (within-class
whitening, the metric half of linear discriminant analysis, with shrinkage as in Friedman, Regularized
Discriminant Analysis, 1989), all others stay, so that a fabric never seen has room to be different. The
distance to the nearest picture of a fabric is measured in that fabric's own spread: a quiet grey twill is
left sooner than a hairy wool that looks different in every picture.

From which distance a cloth counts as unknown follows from the known fabrics alone: each of their pictures is
held back in turn, and the limit is where the wanted share of them would be flagged (a conformal quantile).

No network and no torch in here: codes in, judgements out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist

from loomsight.errors import UsageError

_FOLDS = 5  # in how many parts the known pictures are held back
_SHRINKAGE = 0.3  # how much of the within-class covariance is replaced by a sphere
_PRIOR = 5.0  # a fabric's own spread counts as its number of pictures, the mean of all spreads as this many
_OUTSIDE = 0.03  # weight of what no known code spans, against a spanned direction in which no fabric varies
_MOST = 512  # directions that are kept
_BREAK = 3.0  # joins this many times the usual one lead to other cloth

Codes = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is said of one code.

    Attributes:
        fabric: the nearest known fabric, also when the cloth is unknown.
        confidence: in [0, 1], that the cloth is that fabric: 0.9 for a usual picture of a known fabric, 0.5
            at the limit.
        known: whether ``confidence`` reaches 0.5.
        distance: to the nearest picture of that fabric, in the fabric's own spread.
        strangeness: the distance as a share of the limit; above 1 the cloth is unknown.
    """

    fabric: str
    confidence: float
    known: bool
    distance: float
    strangeness: float


@dataclass(frozen=True, slots=True)
class _Space:
    """Codes of known fabrics in a metric that was learned from them.

    Attributes:
        centre: the mean of the known codes.
        axes: orthonormal directions, those that the known codes span around their centre.
        scales: by how much each is stretched.
        outside: by how much everything is that no known code spans: there an unknown fabric may differ.
        places: the known codes along the stretched axes.
        labels: the fabric of each.
        spreads: for each fabric, how far apart neighbouring pictures of it are.
    """

    centre: Float[NDArray[np.float64], " d"]
    axes: Float[NDArray[np.float64], "d r"]
    scales: Float[NDArray[np.float64], " r"]
    outside: float
    places: Float[NDArray[np.float64], "n r"]
    labels: Int[NDArray[np.int64], " n"]
    spreads: Float[NDArray[np.float64], " k"]

    def nearest(
        self, codes: Float[NDArray[np.float64], "m d"]
    ) -> tuple[Int[NDArray[np.int64], " m"], Float[NDArray[np.float64], " m"]]:
        """For each code the nearest fabric, and the distance to it in its spread."""
        moved = codes - self.centre
        along = moved @ self.axes
        beside = np.maximum((moved**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        squared = cdist(along * self.scales, self.places, "sqeuclidean") + (beside * self.outside**2)[:, None]
        distances = np.sqrt(squared)
        by_fabric = np.full((len(codes), len(self.spreads)), np.inf)
        for label in np.unique(self.labels):
            by_fabric[:, label] = distances[:, self.labels == label].min(axis=1) / self.spreads[label]
        return by_fabric.argmin(axis=1), by_fabric.min(axis=1)


STRANGE = 1.5
"""Times the limit from which cloth is taken for another.

A dozen good pictures of one roll show little of how the cloth varies from roll to roll, so a limit set on
them is tight: the learned fabrics reach 1.3 times it, others start at 2 (benchmarks/familiarity.py)."""


class Familiarity:
    """Known fabrics, and the judgement whether a code belongs to one of them. Made by :meth:`fit`."""

    def __init__(self, names: tuple[str, ...], space: _Space, limit: float, usual: float) -> None:
        self.names = names
        self._space, self._limit, self._usual = space, limit, usual

    @classmethod
    def fit(cls, codes: Mapping[str, Codes], *, false_flags: float = 0.05) -> Self:
        """Learn the metric and the limit from the codes of known fabrics.

        Args:
            codes: for each fabric its pictures' codes, (n, d), all of one encoder.
            false_flags: share of known cloth that may be called unknown. Fewer than ``1 / false_flags``
                pictures cannot show so small a share: the limit is then the largest distance seen.

        Raises:
            UsageError: no fabric has three pictures, or the codes are of different lengths.
        """
        names = tuple(sorted(name for name in codes if len(codes[name])))
        lengths = {np.shape(codes[name])[1] for name in names}
        if len(lengths) > 1:
            raise UsageError("texture codes cannot be compared", why="they come from different encoders")
        if not names or max(len(codes[name]) for name in names) < 3:
            raise UsageError(
                "too few pictures to tell what is familiar", do="give three pictures of a fabric or more"
            )
        stacked = np.concatenate([np.asarray(codes[name], dtype=np.float64) for name in names])
        labels = np.repeat(np.arange(len(names)), [len(codes[name]) for name in names])
        # All that n codes span is n - 1 directions; turned into these few, nothing is lost and all is quick.
        centre = stacked.mean(axis=0)
        basis = _span(stacked - centre)
        inside = (stacked - centre) @ basis
        distances = _held_back(inside, labels, len(names))
        order = np.sort(distances)
        rank = int(np.ceil((len(order) + 1) * (1 - false_flags)))
        limit = max(float(order[min(rank, len(order)) - 1]), 1e-9)
        space = _learn(inside, labels, len(names))
        whole = replace(space, centre=centre + basis @ space.centre, axes=basis @ space.axes)
        return cls(names, whole, limit, usual=float(np.median(order)))

    def judge(self, code: Codes) -> Judgement:
        """Judge one code, (d,), of the encoder whose codes were learned.

        Raises:
            UsageError: the code is of another length, so of another encoder.
        """
        if np.shape(code) != self._space.centre.shape:
            raise UsageError(
                "texture codes cannot be compared",
                why=f"length {np.size(code)} against {self._space.centre.size}: another encoder made it",
            )
        label, distance = self._space.nearest(np.asarray(code, dtype=np.float64)[None])
        ratio = float(distance[0]) / self._limit
        # 1/2 at the limit; steep enough that the median held-back picture gets 0.9.
        steep = np.log(9) / np.log(np.clip(self._limit / max(self._usual, 1e-9), 1.1, 9))
        confidence = float(1 / (1 + ratio**steep))
        return Judgement(self.names[int(label[0])], confidence, ratio <= 1, float(distance[0]), ratio)

    def joined(self, name: str, codes: Codes) -> Self:
        """The same with more codes of one of its fabrics; the metric and the limit are learned anew."""
        space = self._space
        known = space.centre + (space.places / space.scales) @ space.axes.T
        by_fabric = {own: known[space.labels == label] for label, own in enumerate(self.names)}
        return self.fit(by_fabric | {name: np.concatenate([by_fabric[name], codes])})

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Everything as plain arrays, none of objects or text: names are UTF-8 bytes, one a line."""
        return {
            "names": np.frombuffer("\n".join(self.names).encode(), dtype=np.uint8),
            "centre": self._space.centre.astype(np.float32),
            "axes": self._space.axes.astype(np.float32),
            "scales": self._space.scales,
            "places": self._space.places.astype(np.float32),
            "labels": self._space.labels.astype(np.int32),
            "spreads": self._space.spreads,
            "limits": np.array([self._limit, self._usual, self._space.outside]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """The inverse of :meth:`to_arrays`; a missing array is a ``KeyError`` for the caller to name."""
        numbers = {
            key: np.asarray(arrays[key], dtype=np.float64)
            for key in ("centre", "axes", "scales", "places", "spreads", "limits")
        }
        limit, usual, outside = (float(value) for value in numbers["limits"])
        space = _Space(
            centre=numbers["centre"],
            axes=numbers["axes"],
            scales=numbers["scales"],
            outside=outside,
            places=numbers["places"],
            labels=arrays["labels"].astype(np.int64),
            spreads=numbers["spreads"],
        )
        names = arrays["names"].tobytes().decode().split("\n")
        return cls(tuple(names), space, limit, usual)


def _span(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """An orthonormal basis, (d, r), of what centred codes span; from the small n × n matrix of products."""
    values, vectors = np.linalg.eigh(codes @ codes.T)
    order = np.argsort(values)[::-1][: min(_MOST, len(codes) - 1)]
    order = order[values[order] > 1e-10 * max(values.max(), 1e-12)]
    if not order.size:  # copies of one picture span nothing; one direction, any, keeps the shapes
        return np.eye(codes.shape[1], 1)
    basis, _ = np.linalg.qr(codes.T @ (vectors[:, order] / np.sqrt(values[order])))
    return basis


def _learn(codes: NDArray[np.float64], labels: NDArray[np.int64], fabrics: int) -> _Space:
    """The metric, and every fabric's spread in it."""
    centre = codes.mean(axis=0)
    span = _span(codes - centre)
    codes = (codes - centre) @ span
    groups = [codes[labels == label] for label in range(fabrics)]
    # Every fabric counts the same, or one with a thousand pictures would be the metric.
    within = np.mean([np.atleast_2d(np.cov(group.T)) for group in groups if len(group) > 1], axis=0)
    sphere = _SHRINKAGE * max(np.trace(within) / len(within), 1e-12)
    values, axes = np.linalg.eigh((1 - _SHRINKAGE) * within + sphere * np.eye(len(within)))
    scales = 1 / np.sqrt(np.maximum(values, sphere))
    places = (codes @ axes) * scales
    own, counts = np.zeros(fabrics), np.zeros(fabrics)
    for label in range(fabrics):
        group = places[labels == label]
        if len(group) > 1:
            distances = cdist(group, group)
            np.fill_diagonal(distances, np.inf)
            own[label] = np.sqrt(np.mean(distances.min(axis=1) ** 2))
            counts[label] = len(group)
    seen = counts > 0
    own = np.log(np.maximum(own, 1e-3 * max(own.max(), 1e-9)))  # copies of one picture have no spread
    spreads = np.exp((counts * own + _PRIOR * own[seen].mean()) / (counts + _PRIOR))
    outside = float(np.sqrt(_OUTSIDE / sphere))
    return _Space(centre, span @ axes, scales, outside, places, labels, spreads)


def _held_back(codes: NDArray[np.float64], labels: NDArray[np.int64], fabrics: int) -> NDArray[np.float64]:
    """Every picture's distance, judged by what was learned without it and its part of the others."""
    turn = (
        np.array([np.count_nonzero(labels[:index] == label) for index, label in enumerate(labels)]) % _FOLDS
    )
    alone = np.bincount(labels, minlength=fabrics)[labels] == 1  # nothing would be left of its fabric
    distances = []
    for fold in range(_FOLDS):
        back = (turn == fold) & ~alone
        if back.any():
            distances.append(_learn(codes[~back], labels[~back], fabrics).nearest(codes[back])[1])
    return np.concatenate(distances)


def mixed_fabrics(codes: Codes) -> list[int]:
    """Which of the pictures that should be of one fabric do not belong to it: indices, sorted.

    Pictures are joined to their nearest neighbours (the minimum spanning tree). Where a join is much longer
    than is usual among these pictures, the cloth changes: the largest group is the fabric, all others are
    not. With fewer than four pictures nothing is usual, and the answer is empty.

    Args:
        codes: (n, d), the texture codes of n pictures.
    """
    count = len(codes)
    if count < 4:
        return []
    distances = cdist(codes, codes)
    if distances.max() == 0:
        return []
    # A copy of a picture is at distance 0, which would mean "no edge" to the tree.
    tree = minimum_spanning_tree(np.maximum(distances / distances.max(), 1e-6)).toarray()
    edges = tree[tree > 0]
    tree[tree > _BREAK * np.median(edges)] = 0
    _, groups = connected_components(tree, directed=False)
    largest = np.bincount(groups).argmax()
    return [int(index) for index in np.flatnonzero(groups != largest)]
