"""A compact U-Net on patches, conditioned on γ; one CPU thread suffices to train it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4  # of attention; divides half of any width, widths being multiples of 8


class UNet(nn.Module):
    """A U-Net (1505.04597) of residual blocks as in DDPM (2006.11239), on patches of pixels
    (2010.11929).

    A strided convolution turns patch x patch pixels into one token of `width` channels. Level i has
    width·multipliers[i] channels, on a grid half as fine as the level before. The coarsest
    `attention` levels attend. Skip connections are added, not concatenated. γ, and the label where
    classes > 0, scale and shift each block (FiLM, 1709.07871). The initial output is zero.
    """

    frequencies: Tensor

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        width: int,
        patch: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        embedding = 2 * width
        frequencies = 1000.0 * 10_000.0 ** -torch.linspace(0, 1, width // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed_gamma = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embed_label = nn.Embedding(classes, embedding) if classes else None

        widths = [width * multiplier for multiplier in multipliers]

        def level(at: int) -> Level:
            c, attends = widths[at], at >= len(widths) - attention
            # Four times the tokens, a quarter of the hidden channels: levels cost about the same.
            hidden = min(c, width // 4 * 4**at)
            return Level(Block(c, hidden, embedding, attends) for _ in range(blocks))

        finer = range(len(widths) - 1)
        self.stem = nn.Conv2d(channels, widths[0], patch, stride=patch)
        self.down = nn.ModuleList(map(level, finer))
        self.shrink = nn.ModuleList(nn.Conv2d(widths[i], widths[i + 1], 2, stride=2) for i in finer)
        self.middle = level(len(widths) - 1)
        self.grow = nn.ModuleList(nn.Conv2d(widths[i + 1], widths[i], 1) for i in reversed(finer))
        self.up = nn.ModuleList(map(level, reversed(finer)))
        self.norm = _norm(widths[0])
        self.head = _zeroed(nn.Conv2d(widths[0], channels * patch**2, 1))

    def forward(self, x: Tensor, gamma: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), gamma (B,) in (0, 1], label (B,) int64 -> (B, C, H, W).

        Raises ValueError where the network has classes and no label is given.
        """
        embedding = self._embed(gamma, label)  # (B, E)
        # A tensor of one channel has no memory format; the blocks are faster channels-last.
        h = self.stem(x)  # (B, width, H/patch, W/patch)
        h = h.contiguous(memory_format=torch.channels_last)
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            h = level(h, embedding)
            skips.append(h)
            h = shrink(h)
        h = self.middle(h, embedding)
        for grow, level in zip(self.grow, self.up, strict=True):
            h = level(F.interpolate(grow(h), scale_factor=2.0) + skips.pop(), embedding)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.patch)

    def _embed(self, gamma: Tensor, label: Tensor | None) -> Tensor:
        """(B, E) from sines and cosines of 1000·γ (1706.03762, section 3.5), and the label."""
        angles = gamma[:, None] * self.frequencies
        embedding: Tensor = self.embed_gamma(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.embed_label is not None:
            if label is None:
                raise ValueError("a network with classes needs a label for each example")
            embedding = embedding + self.embed_label(label)
        return F.silu(embedding)


class Level(nn.ModuleList):
    """The blocks of one level, one after the other."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, H, W), embedding (B, E) -> (B, C, H, W)."""
        for block in self:
            x = block(x, embedding)
        return x


class Block(nn.Module):
    """Two 3 x 3 convolutions, scaled and shifted by the embedding; then self-attention."""

    def __init__(self, channels: int, hidden: int, embedding: int, attends: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels), _norm(hidden)
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv2 = _zeroed(nn.Conv2d(hidden, channels, 3, padding=1))
        self.modulate = nn.Linear(embedding, 2 * hidden)
        self.attention = Attention(channels) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, H, W), embedding (B, E) -> (B, C, H, W)."""
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        out: Tensor = self.attention(x + self.conv2(h))
        return out


class Attention(nn.Module):
    """Residual self-attention over a grid's tokens, at half the channels (1706.03762, 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels // 2, 1)
        self.out = _zeroed(nn.Conv2d(channels // 2, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, _, height, width = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1)  # (B, H, W, 3C/2)
        # each (B, heads, HW, C/8)
        q, k, v = qkv.reshape(batch, height * width, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        h = h.reshape(batch, height, width, -1)
        out: Tensor = x + self.out(h.permute(0, 3, 1, 2))
        return out


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with zero weights: its branch adds nothing, or its output is zero, at first."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
