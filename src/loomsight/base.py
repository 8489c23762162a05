"""The base: what was learned from known fabrics once, and serves every new fabric.

::

    base/
      base.json                what it is: fabrics, encoder, settings, how it was trained, each file's hash
      base.sha256              the hash of base.json
      segmenter.safetensors    DeepLabV3, where a new fabric's training starts
      stage1.safetensors       the texture-conditioned defect generator
      stage2.safetensors       the fusion network
      diffusion.safetensors    the other generator; may be missing
      detector.safetensors     RT-DETR, where a new fabric's detector starts; may be missing

It is sealed: see :mod:`loomsight.sealed`. Weights lie in half precision. One base comes with the program,
trained on nothing but cloth that the loom wove; :func:`shipped` is its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, JsonValue

from loomsight import __version__
from loomsight.config import Config
from loomsight.errors import BaseWeightsError
from loomsight.files import new_folder, write_bytes
from loomsight.sealed import FileCard, Kind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from loomsight.synthesis.fusion import FusionNetwork
    from loomsight.synthesis.samples import Generator

SCHEMA = 1
NETWORKS = ("segmenter", "stage1", "stage2", "diffusion", "detector")
_KIND = Kind(
    "base",
    SCHEMA,
    BaseWeightsError,
    made_by="give the folder that 'loomsight train base' made",
    again="copy it again, or train it again",
)


class Card(Config):
    """What ``base.json`` says. ``created`` is UTC, ISO 8601.

    ``encoder`` is the network of the texture codes; ``networks`` has the settings that build each network;
    ``provenance`` says what it was trained on, for how long, with which seed.
    """

    schema_version: int
    created: str
    program: str
    encoder: Literal["vgg16", "lite0"]
    code_size: int = Field(ge=1)
    patch: int = Field(ge=16)
    networks: dict[str, dict[str, JsonValue]]
    provenance: dict[str, JsonValue]
    files: dict[str, FileCard]


@dataclass(frozen=True, slots=True)
class Base:
    """A base that was verified when it was opened."""

    folder: Path
    card: Card

    @classmethod
    def save(
        cls,
        folder: Path,
        *,
        encoder: Literal["vgg16", "lite0"],
        code_size: int,
        patch: int,
        networks: Mapping[str, nn.Module],
        settings: Mapping[str, Mapping[str, Any]],
        provenance: Mapping[str, Any],
    ) -> Self:
        """Write a base folder, whole or not at all.

        Args:
            folder: where; must not exist, or be empty, or be an earlier base, which is replaced.
            encoder: of the texture codes; code_size: how many numbers a code has.
            patch: pixels a side of the patches that the generators learned from.
            networks: by their names, of :data:`NETWORKS`; settings: what builds each.
            provenance: plain values.

        Raises:
            UsageError: the folder holds something else.
            StorageError: the disk is full or the folder cannot be written.
        """
        import safetensors.torch

        check_target(folder)
        with new_folder(folder, replace=True) as work:
            for name, network in networks.items():
                write_bytes(work / f"{name}.safetensors", safetensors.torch.save(_halved(network)))
            card = Card.parse(
                {
                    "schema_version": SCHEMA,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "program": f"loomsight {__version__}",
                    "encoder": encoder,
                    "code_size": code_size,
                    "patch": patch,
                    "networks": {name: dict(settings.get(name, {})) for name in networks},
                    "provenance": dict(provenance),
                    "files": _KIND.hashes(work),
                },
                where="base",
            )
            _KIND.close(work, card)
        return cls(folder, card)

    def with_network(
        self,
        folder: Path,
        name: str,
        network: nn.Module,
        settings: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Base:
        """Write this base with one network more, or another one in its place; the rest is copied.

        Args:
            folder: where; may be this base's own.
            name: one of :data:`NETWORKS`; settings: what builds it; provenance: how it was trained.

        Raises:
            UsageError: the folder holds something else.
            StorageError: the disk is full or the folder cannot be written.
        """
        import safetensors.torch

        check_target(folder)
        kept = {
            f"{other}.safetensors": _KIND.read(self.folder, f"{other}.safetensors", self.card.files)
            for other in self.card.networks
            if other != name
        }
        with new_folder(folder, replace=True) as work:
            for file, data in kept.items():
                write_bytes(work / file, data)
            write_bytes(work / f"{name}.safetensors", safetensors.torch.save(_halved(network)))
            card = Card.parse(
                {
                    **self.card.model_dump(mode="json"),
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "program": f"loomsight {__version__}",
                    "networks": {**self.card.networks, name: dict(settings)},
                    "provenance": {**self.card.provenance, name: dict(provenance)},
                    "files": _KIND.hashes(work),
                },
                where="base",
            )
            _KIND.close(work, card)
        return Base.open(folder)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a base and verify every file in it.

        Raises:
            BaseWeightsError: it is missing, incomplete, damaged or of a newer version.
        """
        card = _KIND.open(Path(folder), Card)
        _KIND.verify(Path(folder), card.files)
        return cls(Path(folder), card)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that its generators make."""
        found = self.card.networks
        needs = {"stage1": "stage1", "stage1+2": "stage2", "refined": "stage2", "diffusion": "diffusion"}
        return tuple(arm for arm, network in needs.items() if network in found)

    def check_arm(self, arm: str) -> None:
        """Whether it can make an arm, said before anything is loaded.

        Raises:
            BaseWeightsError: it cannot.
        """
        if arm not in self.arms:
            have = ", ".join(self.arms) or "no generator"
            raise BaseWeightsError("the base cannot make this", where=arm, why=f"it makes {have}")

    def weights(self, name: str) -> dict[str, Tensor]:
        """The state dict of one of its networks, in single precision."""
        import safetensors
        import safetensors.torch

        try:
            state = safetensors.torch.load(_KIND.read(self.folder, f"{name}.safetensors", self.card.files))
        except safetensors.SafetensorError as error:
            raise _KIND.damaged(self.folder / f"{name}.safetensors") from error
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}

    def generator(self, arm: str) -> Generator:
        """The generator behind an arm.

        Raises:
            BaseWeightsError: the base has none, or its weights are of another network.
        """
        from loomsight.synthesis.diffusion import DiffusionSettings, DiffusionStage, build_diffusion
        from loomsight.synthesis.multistage import Refined, Stage1, Stage12
        from loomsight.synthesis.texture_gan import TextureGanSettings, build_generator

        self.check_arm(arm)
        if arm == "diffusion":
            network = build_diffusion(
                self._settings(DiffusionSettings, "diffusion"),
                code_length=self.card.code_size,
                size=self.card.patch,
            )
            return DiffusionStage(self._filled(network, "diffusion"))
        if arm == "refined":
            return Refined(self._fusion())
        texture = self._filled(build_generator(self._settings(TextureGanSettings, "stage1")), "stage1")
        if arm == "stage1":
            return Stage1(texture)
        return Stage12(Stage1(texture), self._fusion())

    def _fusion(self) -> FusionNetwork:
        from loomsight.synthesis.fusion import FusionSettings, build_fusion

        filled: FusionNetwork = self._filled(build_fusion(self._settings(FusionSettings, "stage2")), "stage2")
        return filled

    def _settings(self, kind: Any, name: str) -> Any:
        return kind.parse(self.card.networks[name], where=f"{self.folder}: {name}")

    def _filled(self, network: Any, name: str) -> Any:
        try:
            network.load_state_dict(self.weights(name))
        except RuntimeError as error:  # torch's word for missing or unexpected weights
            raise BaseWeightsError(
                "the base cannot be used",
                where=self.folder / f"{name}.safetensors",
                why="these are not the weights of its network",
            ) from error
        return network.eval()


def shipped() -> Path:
    """The folder of the base that comes with the program."""
    return Path(__file__).parent / "weights" / "base"


def check_target(folder: Path) -> None:
    """Whether a base may be written there, said before hours of training and not after.

    Raises:
        UsageError: a file, or a folder with something in it that is not of an earlier base.
    """
    _KIND.check_target(folder, replace=True)


def _halved(network: nn.Module) -> dict[str, Tensor]:
    """Weights in half precision, where they are numbers that it can hold."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        if not bool(tensor.isfinite().all()):
            raise BaseWeightsError("the weights are not to be saved", where=key, why="not all are numbers")
        half = tensor.half()
        if bool(half.isfinite().all()):
            state[key] = half
    return state
