"""Is the cloth on the line the cloth that was learned? A few pictures are looked at, and a warning said.

A profile for one fabric that is run on another finds nothing or everything, and neither looks like a mistake.
So a sample of the pictures gets texture codes, which are judged by what the profile knows of its own cloth.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, cast

from numpy.typing import NDArray

from loomsight.errors import ProfileError, WeightsError
from loomsight.fabric.types import Picture
from loomsight.profile import TEXTURE, Profile

if TYPE_CHECKING:
    from loomsight.texture.familiarity import Familiarity
    from loomsight.texture.gram import TextureEncoder

FEWEST, MOST = 5, 10
"""Pictures looked at, evenly over the roll: one of fifty, within these bounds; a code may take a second."""
_ONE_OF = 50


class ClothCheck:
    """Looks at some pictures of an inspection.

    Args:
        profile: of the fabric; without texture statistics nothing is looked at.
        total: how many pictures will come; None when unknown.

    Attributes:
        looked: how many pictures were judged.
        note: why the cloth could not be checked; empty when it could.
    """

    def __init__(self, profile: Profile, total: int | None) -> None:
        facts = profile.card.texture
        self._own = str(facts.get("fabric", profile.name))
        self._backbone = "lite0" if facts.get("backbone") == "lite0" else "vgg16"
        self._wanted = min(max((total or 0) // _ONE_OF, FEWEST), MOST)
        self._every = max(1, (total or self._wanted) // self._wanted)
        self._others: Counter[str] = Counter()
        self.looked, self.note = 0, ""
        self._known: Familiarity | None = None
        self._encoder: TextureEncoder | None = None
        arrays = profile.texture()
        if arrays:
            self._load(profile, arrays)

    def look(self, index: int, image: Picture) -> None:
        """Judge picture number ``index`` if it is one of the sample."""
        if self._known is None or self._encoder is None or index % self._every or self.looked >= self._wanted:
            return
        from loomsight.texture.familiarity import STRANGE

        judgement = self._known.judge(self._encoder.code(image))
        self.looked += 1
        if judgement.strangeness > STRANGE:
            self._others["are like no cloth it knows"] += 1
        elif judgement.fabric != self._own:
            self._others[f"resemble '{judgement.fabric}' rather than '{self._own}'"] += 1

    def warning(self) -> str | None:
        """What to say when most of the sample is other cloth; None when it is the learned one."""
        strange = sum(self._others.values())
        if strange * 2 <= self.looked:
            return None
        (seen, _), *_ = self._others.most_common(1)
        return (
            f"This does not look like the cloth that was learned: {strange} of {self.looked} pictures looked "
            f"at {seen}. Check that the profile is the right one, and the light and the distance of the "
            "camera; until then, do not rely on what was found or not found."
        )

    def _load(self, profile: Profile, arrays: dict[str, NDArray[Any]]) -> None:
        from loomsight.texture.familiarity import Familiarity
        from loomsight.texture.gram import TextureEncoder

        try:
            self._known = Familiarity.from_arrays(arrays)
        except KeyError as error:
            why = f"it has no array {error}"
            raise ProfileError(
                "the profile is incomplete", where=profile.folder / TEXTURE, why=why
            ) from error
        try:
            self._encoder = TextureEncoder(cast(Literal["vgg16", "lite0"], self._backbone))
        except WeightsError as error:
            self.note = f"Whether this is the learned cloth was not checked: {error}"
