"""What augmentation does to an image, against the same done by hand, one image at a time."""

import numpy as np
import pytest
import torch

from fedbsd_dist.augment import Changes, augment, draw
from fedbsd_dist.config import Augment

CPU = torch.device("cpu")


def images(n: int, height: int = 9, width: int = 12, channels: int = 3) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(1, 256, (n, height, width, channels), np.uint8)
    return torch.from_numpy(pixels)


def drawn(options: Augment, n: int, seed: int = 0) -> Changes:
    return draw(options, n, np.random.default_rng(seed), CPU)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("crop", "flip"), [(0, True), (1, False), (4, True), (9, True), (20, False)])
def test_crop_and_flip_are_those_of_one_image_after_the_other(crop: int, flip: bool, channels: int) -> None:
    x, options = images(60, channels=channels), Augment(crop=crop, flip=flip)
    changes = drawn(options, 60)
    changed = augment(x, changes, 0, options)
    assert changed.dtype == torch.uint8
    for before, after, shift, mirrored in zip(x, changed, changes.shift, changes.mirrored, strict=True):
        expected = before.numpy()[:, ::-1] if mirrored else before.numpy()
        bordered = np.pad(expected, ((crop, crop), (crop, crop), (0, 0)))
        row, column = (crop + shift).tolist()
        assert np.array_equal(after.numpy(), bordered[row : row + 9, column : column + 12])


def test_every_place_and_both_sides_are_drawn_equally_often() -> None:
    changes = drawn(Augment(crop=2, flip=True), 50_000)
    places = (changes.shift[:, 0] + 2) * 5 + changes.shift[:, 1] + 2
    counts = np.bincount(places.numpy(), minlength=25)
    assert len(counts) == 25
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)
    assert abs(changes.mirrored.float().mean() - 0.5) < 5 * 0.5 / np.sqrt(50_000)
    assert not drawn(Augment(crop=2), 1000).mirrored.any()


def test_angles_are_within_the_range_to_either_side() -> None:
    angles = drawn(Augment(rotation=30.0), 20_000).angle.rad2deg()
    assert angles.min() >= -30
    assert angles.max() <= 30
    assert abs(angles.mean()) < 5 * 30 / np.sqrt(3 * 20_000)
    assert abs(angles.abs().mean() - 15) < 0.5


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_exact(quarters: int) -> None:
    x = images(5, 8, 8)
    changes = Changes(
        shift=torch.zeros(5, 2, dtype=torch.int64),
        mirrored=torch.zeros(5, dtype=torch.bool),
        angle=torch.full((5,), np.pi / 2 * quarters),
    )
    turned = augment(x, changes, 0, Augment(rotation=180.0))
    torch.testing.assert_close(turned, torch.rot90(x, quarters, (1, 2)).float(), atol=0.05, rtol=0)


def test_a_turned_image_keeps_its_shape_when_it_is_no_square() -> None:
    """A disc in the middle of an oblong image stays where it is and as round as it was, at any angle."""
    rows, columns = np.mgrid[:40, :80]
    disc = ((rows - 19.5) ** 2 + (columns - 39.5) ** 2 < 15**2).astype(np.uint8) * 200
    x = torch.from_numpy(disc)[None, :, :, None].repeat(7, 1, 1, 1)
    options = Augment(rotation=90.0)
    turned = augment(x, drawn(options, 7, seed=3), 0, options)
    assert (turned - x).abs().mean() < 3  # the rim alone; a disc stretched by the sides' ratio differs by 40


def test_what_comes_in_is_black_and_where_nothing_is_asked_nothing_happens() -> None:
    x = torch.full((50, 8, 8, 1), 255, dtype=torch.uint8)
    options = Augment(crop=3)
    changes = drawn(options, 50)
    black = (augment(x, changes, 0, options) == 0).flatten(1).sum(1)
    rows, columns = changes.shift.abs().unbind(1)
    assert torch.equal(black, 64 - (8 - rows) * (8 - columns))
    assert augment(x, changes, 0, Augment()) is x


def test_a_part_of_an_epoch_gets_its_own_changes() -> None:
    x, options = images(30), Augment(crop=2, flip=True, rotation=15.0)
    changes = drawn(options, 30)
    whole = augment(x, changes, 0, options)
    parts = torch.cat([augment(x[start : start + 7], changes, start, options) for start in range(0, 30, 7)])
    assert torch.equal(whole, parts)
