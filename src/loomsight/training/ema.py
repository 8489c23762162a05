"""The moving average of the weights: steadier than the last step, and what a training hands back."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Copies of networks whose floating parameters and buffers follow the originals slowly.

    The decay after t updates is min(decay, (1 + t)/(10 + t)), so that the average of a short training
    is not held back by the random start: after 100 steps it looks back over about 12 steps, after
    10,000 over about 1,000 (with decay 0.999).

    Attributes:
        networks: the averaged networks, in evaluation mode and without gradients.
        updates: how often :meth:`update` was called.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self.networks = {name: copy.deepcopy(network).eval() for name, network in networks.items()}
        self.decay, self.updates = decay, 0
        self._pairs: dict[object, tuple[list[Tensor], list[Tensor]]] = {}  # by dtype: averages, originals
        self._counters: list[tuple[Tensor, Tensor]] = []
        for name, network in networks.items():
            self.networks[name].requires_grad_(False)
            # State dicts and not parameters() alone: batch norm's running statistics are averaged too.
            average, original = self.networks[name].state_dict(), network.state_dict()
            for key, value in average.items():
                if value.is_floating_point():
                    averages, originals = self._pairs.setdefault((value.dtype, value.device), ([], []))
                    averages.append(value)
                    originals.append(original[key])
                else:
                    self._counters.append((value, original[key]))

    def update(self) -> None:
        """Follow the networks by one step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        for averages, originals in self._pairs.values():
            follow(averages, originals, None)
        for average, original in self._counters:
            average.copy_(original)
