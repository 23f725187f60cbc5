"""The options of the built-in networks, checked before anything is spent. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sched_lab.trainers.errors import FieldError
from sched_lab.trainers.spec import NetworkSpec, Positive

if TYPE_CHECKING:
    from torch import nn


Layers = Annotated[int, Field(ge=1, le=1000)]


class UNetSpec(NetworkSpec):
    """A compact U-Net on patches; see `sched_lab.trainers.networks.unet`."""

    kind: Literal["unet"] = "unet"
    width: Annotated[int, Field(ge=8, le=2**16, multiple_of=8)] = 64
    """Channels at the first level."""
    patch: Positive | None = None
    """Pixels along a patch's side; null picks the largest that leaves 8 x 8 tokens and fits the
    width.
    """
    multipliers: Annotated[tuple[Layers, ...], Field(min_length=1, strict=False)] = (1, 2)
    """Width of each level as a multiple of `width`; each further level halves the tokens' grid."""
    blocks: Layers = 1
    """Residual blocks per level."""
    attention: Annotated[int, Field(ge=0)] = 1
    """How many of the coarsest levels attend."""

    def patch_for(self, *, channels: int, resolution: int) -> int:
        """The patch side used for images of this shape."""
        return self.patch or self._own_patch(channels, resolution)

    def _own_patch(self, channels: int, resolution: int) -> int:
        grid = 2 ** (len(self.multipliers) - 1)
        fits = [
            p
            for p in range(1, max(1, resolution // 8) + 1)
            if resolution % p == 0
            and (resolution // p) % grid == 0
            and channels * p * p <= self.width
        ]
        return max(fits, default=1)

    def idle(self, *, channels: int, resolution: int) -> frozenset[str]:
        idle = {
            "patch": self.patch in (None, self._own_patch(channels, resolution)),
            "attention": self.attention >= len(self.multipliers),
        }
        return frozenset(name for name, is_idle in idle.items() if is_idle)

    def check(self, *, channels: int, resolution: int) -> None:
        patch = self.patch_for(channels=channels, resolution=resolution)
        grid = 2 ** (len(self.multipliers) - 1)
        if self.width < (least := channels * patch**2):
            rule = (
                f"width must be at least channels·patch² = {channels}·{patch}² = {least}, got"
                f" {self.width}: a narrower network cannot pass the noise through"
            )
            raise FieldError(rule, "width", "resolution", "patch")
        if resolution % (patch * grid):
            rule = (
                f"resolution {resolution} must be a multiple of patch·2^(n−1), n the number of"
                f" multipliers: {patch}·{grid} = {patch * grid}"
            )
            raise FieldError(rule, "resolution", "patch", "multipliers")

    def build(self, *, channels: int, resolution: int, classes: int) -> nn.Module:
        from sched_lab.trainers.networks.unet import UNet

        self.check(channels=channels, resolution=resolution)
        return UNet(
            channels=channels,
            classes=classes,
            width=self.width,
            patch=self.patch_for(channels=channels, resolution=resolution),
            multipliers=self.multipliers,
            blocks=self.blocks,
            attention=self.attention,
        )
