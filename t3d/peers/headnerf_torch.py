"""HeadNeRF's field, integral and neural renderer in PyTorch, to be timed beside ours.

Its own way: 1 × 1 convolutions over [B, C, rays, samples], codes repeated for every point. Only
`t3d bench nerf` imports it, and only where PyTorch is installed.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

RAYS, SAMPLES, WIDTH, FEATURES, OCTAVES = 64, 64, 384, 256, 10
SHAPE, LOOKS = 179, 127


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Points [1, 3, R, S] and lengths [1, 1, R, S] of a frontal view, in its units."""
    grid = (torch.arange(RAYS) + 0.5) / RAYS * 2 - 1
    y, x = torch.meshgrid(-grid, grid, indexing="ij")
    z = torch.linspace(2.5, -3.5, SAMPLES + 1)[:-1]
    flat = torch.stack([x.reshape(-1), y.reshape(-1)])[None, :, :, None].expand(-1, -1, -1, SAMPLES)
    points = torch.cat([flat, z.expand(1, 1, RAYS**2, SAMPLES)], 1)
    return points, torch.full((1, 1, RAYS**2, SAMPLES), 6 / SAMPLES)


class Net(nn.Module):
    """Points and codes to a 512² image."""

    def __init__(self):
        super().__init__()
        encoded = 3 + 6 * OCTAVES + SHAPE
        inputs = [encoded, *[WIDTH] * 4, WIDTH + encoded, WIDTH, WIDTH]
        self.layers = nn.ModuleList(nn.Conv2d(n, WIDTH, 1) for n in inputs)
        self.density = nn.Conv2d(WIDTH, 1, 1)
        self.feature = nn.Conv2d(WIDTH, WIDTH, 1)
        self.colour = nn.Conv2d(WIDTH + LOOKS, WIDTH // 2, 1)
        self.out = nn.Conv2d(WIDTH // 2, FEATURES, 1)
        self.background = nn.Parameter(torch.ones(1, FEATURES, RAYS, RAYS))
        widths = [FEATURES, FEATURES // 2, FEATURES // 4, FEATURES // 8]
        self.rgb = nn.ModuleList(nn.Conv2d(c, 3, 1) for c in widths)
        self.widen = nn.ModuleList(nn.Conv2d(c, 2 * c, 1) for c in widths[:-1])
        self.shuffle = nn.ModuleList(nn.Conv2d(2 * c, 4 * c, 1) for c in widths[:-1])
        self.narrow = nn.ModuleList(nn.Conv2d(c, c // 2, 1) for c in widths[:-1])
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (kernel[:, None] * kernel / 16)[None, None])

    def forward(self, points, lengths, shape, looks):
        """[1, 3, R, S], [1, 1, R, S], [1, 179], [1, 127] -> [1, 3, 512, 512]."""
        waves = [f(2.0**k * points) for k in range(OCTAVES) for f in (torch.sin, torch.cos)]
        spread = (-1, -1, RAYS**2, SAMPLES)
        encoded = torch.cat([points, *waves, shape[..., None, None].expand(*spread)], 1)
        hidden = encoded
        for index, layer in enumerate(self.layers):
            hidden = torch.cat([encoded, hidden], 1) if index == 5 else hidden
            hidden = F.relu(layer(hidden))
        density = F.relu(self.density(hidden))
        seen = torch.cat([self.feature(hidden), looks[..., None, None].expand(*spread)], 1)
        feature = self.out(F.relu(self.colour(seen)))
        alpha = 1 - torch.exp(-density * lengths)
        before = torch.cumprod(1 - alpha + 1e-10, -1)
        before = torch.cat([torch.ones_like(before[..., :1]), before[..., :-1]], -1)
        weights = alpha * before
        merged = (weights * feature).sum(-1).reshape(1, FEATURES, RAYS, RAYS)
        empty = (1 - weights.sum(-1)).reshape(1, 1, RAYS, RAYS)
        return self._render(merged + empty * self.background)

    def _blur(self, x):
        kernel = self.kernel.expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), kernel, groups=x.shape[1])

    def _double(self, x):
        return self._blur(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))

    def _render(self, x):
        rgb = self._double(self.rgb[0](x))
        for index in range(3):
            wide = F.leaky_relu(self.widen[index](x), 0.2)
            wide = F.leaky_relu(self.shuffle[index](wide), 0.2) + x.repeat(1, 4, 1, 1)
            x = self._blur(F.pixel_shuffle(wide, 2))
            x = F.leaky_relu(self.narrow[index](x), 0.2)
            rgb = rgb + self.rgb[index + 1](x)
            rgb = self._double(rgb) if index < 2 else rgb
        return torch.sigmoid(rgb)
