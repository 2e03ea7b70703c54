"""The pictures show the numbers and the very samples of the clients, few or many."""

import io

import numpy as np
import pytest
from PIL import Image
from test_overview import dealt

from fedbsd_dist import pictures
from fedbsd_dist.data.samples import make_samples


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Every matplotlib figure that is saved."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    return figures


def test_the_picture_of_clients_shows_the_table_with_labels_and_a_scale(drawn) -> None:
    samples, partition = dealt([("aab", "c"), ("c" * 500, "cc"), ("ba", "a")], num_new=1)
    pictures.clients_png(partition, samples, "the title")
    axes, bar = drawn[0].axes
    (image,) = axes.images
    assert image.get_array().filled(0).tolist() == [[2, 1, 0], [0, 0, 500], [1, 1, 0]]
    assert image.get_array().mask.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 1]]  # blank, not a colour
    low, two, high = (image.norm(value) for value in (1, 2, 500))
    assert (low, high) == (0, 1)
    assert two > 0.1  # small numbers are told apart although there are large ones
    assert axes.get_title() == "the title"
    assert (axes.get_xlabel(), axes.get_ylabel().split()[0]) == ("class", "client")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["kind 0", "kind 1", "kind 2"]
    assert "training samples" in bar.get_ylabel()
    (line,) = axes.lines  # between the clients that train and the new one
    assert set(line.get_ydata()) == {1.5}


@pytest.mark.parametrize(("num_clients", "num_classes"), [(1, 1), (10, 200), (1000, 100)])
def test_the_picture_of_few_and_of_many(num_clients: int, num_classes: int, drawn) -> None:
    samples, partition = dealt([("a", "a")] * num_clients, num_classes=num_classes)
    with Image.open(io.BytesIO(pictures.clients_png(partition, samples, "many"))) as picture:
        assert 600 <= picture.width <= 2500
        assert 600 <= picture.height <= 2500
    axes = drawn[0].axes[0]
    for axis, most, extent in ((axes.yaxis, 40, picture.height), (axes.xaxis, 120, picture.width)):
        ticks = axis.get_ticklabels()
        assert len(ticks) <= most
        assert all(float(tick).is_integer() for tick in axis.get_ticklocs())
        assert extent / max(1, len(ticks)) > 11  # pixels a name


def test_names_that_mean_something_to_matplotlib_or_that_its_font_has_not(drawn, recwarn) -> None:
    samples, partition = dealt([("ab", "a")])
    named = make_samples(name="x", x=samples.x, y=samples.y, classes=["$\\frac{$", "漢字" * 20])
    assert pictures.clients_png(partition, named, "$\\bad{$")
    assert not list(recwarn)
    assert drawn[0].axes[0].get_xticklabels()[0].get_text() == "$\\frac{$"


def test_names_that_are_not_utf8_are_escaped(drawn) -> None:
    samples, partition = dealt([("ab", "a")])
    named = make_samples(name="x", x=samples.x, y=samples.y, classes=["caf\udce9", "größe"])
    assert pictures.clients_png(partition, named, "of caf\udce9")
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["caf\\udce9", "größe"]
    assert axes.get_title() == "of caf\\udce9"


@pytest.mark.parametrize(("side", "channels", "factor"), [(16, 1, 6), (32, 3, 3), (60, 3, 1)])
def test_the_contact_sheet_has_the_very_pixels_of_each_clients_samples(side: int, channels: int, factor: int) -> None:
    labels = [("abc" * 10, "a"), ("ab", "a"), *[("c" * 13, "b")] * 8]
    samples, partition = dealt(labels, side=side, ch=channels)
    with Image.open(io.BytesIO(pictures.samples_png(partition, samples, 5))) as picture:
        sheet = np.asarray(picture)
    cell = side * factor
    pitch = cell + pictures.GAP
    left = sheet.shape[1] - 12 * pitch
    assert sheet.shape[0] == pictures.GAP + 8 * pitch
    for client in range(8):
        own, found = partition.train[client], []
        top = pictures.GAP + client * pitch
        for column in range(12):
            block = sheet[top : top + cell, left + column * pitch :][:, :cell]
            if column >= len(own):
                assert (block == pictures.PAPER).all()
                continue
            pixels = block[::factor, ::factor]
            assert (block == pixels.repeat(factor, 0).repeat(factor, 1)).all()  # not smoothed
            (index,) = (i for i in own if (samples.x[i] == pixels).all())
            found.append(int(index))
        assert len(set(found)) == min(12, len(own))
        assert (np.diff(samples.y[found]) >= 0).all()
        label = sheet[top : top + cell, :left]
        assert label.min() < 100 < label.max()


def test_large_images_are_made_small() -> None:
    samples, partition = dealt([("ab", "a")], side=300, ch=3)
    with Image.open(io.BytesIO(pictures.samples_png(partition, samples, 0))) as picture:
        assert picture.height == 96 + 2 * pictures.GAP


def test_the_drawn_samples_depend_on_the_seed_alone() -> None:
    samples, partition = dealt([("abc" * 20, "a")] * 2)
    first, again, other = (pictures.samples_png(partition, samples, seed) for seed in (1, 1, 2))
    assert first == again != other
