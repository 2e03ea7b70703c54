"""Pictures of a partition, as PNG: how many samples of each class every client has, and what they look like."""

import io
import warnings
from typing import Any

import numpy as np

from fedbsd_dist.data.partition import Partition
from fedbsd_dist.data.samples import Images, Ints, Samples
from fedbsd_dist.randomness import generator

DPI = 150
NAMED = 120
"""Classes, at most, whose names fit under their columns."""
NUMBERED = 40
"""Clients, at most, whose numbers fit beside their rows."""

SHEET_ROWS, SHEET_COLUMNS = 8, 12
SIDE = 96
"""Pixels a side that small images are magnified up to, and large ones reduced to."""
GAP = 6
PAPER, INK = 225, 0
"""Grey of the sheet, on which black and white images have an edge; and of its writing."""


def clients_png(partition: Partition, samples: Samples, title: str) -> bytes:
    """Clients x classes, coloured by training samples on a log scale; a class that a client has not is blank."""
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    table = partition.class_table(samples)
    num_clients, num_classes = table.shape
    size = (float(np.clip(3 + num_classes / 8, 7, 16)), float(np.clip(2.5 + num_clients / 5, 4.5, 14)))
    content = io.BytesIO()
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a name in a script that the font has not
        figure = Figure(size, dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(
            np.ma.masked_equal(table, 0),
            aspect="auto",
            cmap="viridis_r",
            norm=LogNorm(1, max(2, int(table.max()))),
            interpolation="nearest",  # every colour is a client's own number, never a mean of neighbours
        )
        axes.set_title(_drawable(title), fontsize=10, wrap=True)
        _label_axes(axes, partition, samples)
        figure.colorbar(
            image, label="training samples (blank: none)", ticks=LogLocator(subs=(1, 2, 5)), format="{x:.0f}"
        ).minorticks_off()
        figure.savefig(content, format="png")  # by Agg: no window is asked for
    return content.getvalue()


def _label_axes(axes: Any, partition: Partition, samples: Samples) -> None:
    names = [_shortened(_drawable(name)) for name in samples.classes]
    axes.set_xlabel("class")
    if len(names) <= NAMED:
        upright = len(names) <= 15 and max(map(len, names)) <= 4
        axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90, fontsize=9 if len(names) <= 40 else 6)
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(partition.train) <= NUMBERED:
        axes.set_yticks(range(len(partition.train)))
    else:
        axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("client")
    if partition.num_new:
        axes.set_ylabel(f"client (below the line: new ones, from {partition.num_clients})")
        axes.axhline(partition.num_clients - 0.5, color="red", linewidth=1.5)


def samples_png(partition: Partition, samples: Samples, seed: int) -> bytes:
    """Of each of the first clients, a row of training samples drawn at random, by class, magnified without blur."""
    from PIL import Image, ImageDraw, ImageFont

    rows = [_row(samples, drawn) for drawn in draw(partition, samples, seed)]
    labels = [f"client {client}" for client in range(len(rows))]
    font = ImageFont.load_default(16)
    left = 2 * GAP + int(max(font.getlength(label) for label in labels))
    height, width = rows[0].shape[0], max(row.shape[1] for row in rows)
    sheet = np.full((GAP + (height + GAP) * len(rows), left + width, 3), PAPER, np.uint8)
    for number, row in enumerate(rows):
        top = GAP + (height + GAP) * number
        sheet[top : top + height, left : left + row.shape[1]] = row
    picture = Image.fromarray(sheet)
    for number, label in enumerate(labels):
        middle = GAP + (height + GAP) * number + height // 2
        ImageDraw.Draw(picture).text((GAP, middle), label, fill=(INK,) * 3, font=font, anchor="lm")
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def draw(partition: Partition, samples: Samples, seed: int) -> list[Ints]:
    """The samples on the sheet, a row a client."""
    drawn = []
    for client, own in enumerate(partition.train[:SHEET_ROWS]):
        rng = generator(seed, "preview", client)
        chosen = rng.choice(own, min(len(own), SHEET_COLUMNS), replace=False)
        drawn.append(chosen[np.argsort(samples.y[chosen], kind="stable")])
    return drawn


def _row(samples: Samples, chosen: Ints) -> Images:
    """[height, width, 3], a gap after each image."""
    images = [_fitted(samples.x[index]) for index in chosen]
    gap = np.full((images[0].shape[0], GAP, 3), PAPER, np.uint8)
    return np.concatenate([part for image in images for part in (image, gap)], axis=1)


def _fitted(image: Images) -> Images:
    """[height, width, 3]: every pixel of a small image so many pixels a side; a large image made small."""
    from PIL import Image

    image = np.repeat(image, 3 // image.shape[2], axis=2)
    longest = max(image.shape[:2])
    if longest > SIDE:
        picture = Image.fromarray(image)
        picture.thumbnail((SIDE, SIDE))
        return np.asarray(picture)
    return image.repeat(SIDE // longest, axis=0).repeat(SIDE // longest, axis=1)


def _drawable(text: str) -> str:
    """The name of a file that is not UTF-8 has surrogates, which matplotlib does not take."""
    return text.encode(errors="backslashreplace").decode()


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
