"""Random changes of training images, for many at once, on their device.

What happens to a sample is drawn by (seed, round, client, epoch, place in the shuffle), on the host, so
it is the same on any number of ranks and on any device.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedbsd_dist.config import Augment


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Of n images of one epoch, in the order in which they are learned from."""

    shift: Tensor
    """int64 [n, 2]: rows and columns by which the window moves down and to the right, -crop..crop."""
    mirrored: Tensor
    """bool [n]"""
    angle: Tensor
    """float32 [n], radians"""


def draw(options: Augment, n: int, rng: np.random.Generator, device: torch.device) -> Changes:
    """Independent changes for n images."""
    angle = rng.uniform(-1, 1, n) * np.deg2rad(options.rotation)
    return Changes(
        shift=torch.from_numpy(rng.integers(-options.crop, options.crop, (n, 2), endpoint=True)).to(device),
        mirrored=torch.from_numpy((rng.random(n) < 0.5) & options.flip).to(device),
        angle=torch.from_numpy(angle.astype(np.float32)).to(device),
    )


def augment(images: Tensor, changes: Changes, start: int, options: Augment) -> Tensor:
    """uint8 or float [n, h, w, c] of images [n, h, w, c], by the changes from `start` on. What comes in is black."""
    here = slice(start, start + len(images))
    if options.crop or options.flip:
        images = _moved(images, changes.shift[here], changes.mirrored[here], options.crop)
    return _turned(images, changes.angle[here]) if options.rotation else images


def _moved(images: Tensor, shift: Tensor, mirrored: Tensor, border: int) -> Tensor:
    """Flip, then cut each image out of its black border at its place."""
    n, height, width, channels = images.shape
    images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    padded = F.pad(images, (0, 0, border, border, border, border))
    image, row, pixel, _ = padded.stride()
    # all places that a window of the old size can have, whole rows as one dimension: nothing is copied yet
    places = 2 * border + 1
    windows = padded.as_strided((n, places, places, height, width * channels), (image, row, pixel, row, 1))
    rows, columns = (border + shift).unbind(1)
    return windows[torch.arange(n, device=images.device), rows, columns].view(images.shape)


def _turned(images: Tensor, angle: Tensor) -> Tensor:
    """Rotation about the centre, bilinear."""
    n, height, width, channels = images.shape
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # coordinates run from -1 to 1 on both sides, whatever the sides' lengths
    theta = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, channels, height, width], align_corners=False)
    turned = F.grid_sample(images.permute(0, 3, 1, 2).float(), grid, align_corners=False)
    return turned.permute(0, 2, 3, 1)
