"""The shipped digits: complete, as documented, and refused when the file is not the one we ship."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedbsd_dist.config import Data
from fedbsd_dist.data import digits as digits_module
from fedbsd_dist.data import sources
from fedbsd_dist.data.samples import Samples, make_samples
from fedbsd_dist.errors import UserError

# Class counts 0..9 as the UCI repository publishes them for optdigits.tra and optdigits.tes.
OPTDIGITS_TRAIN = [376, 389, 380, 389, 387, 376, 377, 387, 380, 382]
OPTDIGITS_TEST = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.fixture(scope="module")
def digits() -> Samples:
    return sources.load(Data())


@pytest.mark.parametrize(
    ("domain", "is_test", "expected"),
    [
        ("optdigits", False, OPTDIGITS_TRAIN),
        ("optdigits", True, OPTDIGITS_TEST),
        ("mnist", False, [400] * 10),
        ("mnist", True, [100] * 10),
    ],
)
def test_counts_are_the_official_ones(digits: Samples, domain: str, is_test: bool, expected: list[int]) -> None:
    chosen = (digits.domain == digits.domains.index(domain)) & (digits.is_test == is_test)
    assert np.bincount(digits.y[chosen]).tolist() == expected


def test_arrays_are_what_samples_promises(digits: Samples) -> None:
    n = sum(OPTDIGITS_TRAIN) + sum(OPTDIGITS_TEST) + 5000
    assert digits.x.shape == (n, 16, 16, 1)
    assert digits.y.shape == digits.domain.shape == digits.client.shape == digits.is_test.shape == (n,)
    assert [a.dtype for a in (digits.x, digits.y, digits.domain, digits.client, digits.is_test)] == [
        np.dtype(t) for t in ("uint8", "int64", "int64", "int64", "bool")
    ]
    assert (len(digits.classes), len(digits.domains)) == (digits.y.max() + 1, digits.domain.max() + 1)


def test_mean_and_std_are_of_the_samples_asked_for_alone(digits: Samples) -> None:
    mean, std = digits.mean_and_std(np.flatnonzero(~digits.is_test))
    train = digits.x[~digits.is_test] / 255
    np.testing.assert_allclose(mean, train.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, train.std(axis=(0, 1, 2)), rtol=1e-12)
    assert abs(mean[0] - digits.x.mean() / 255) > 1e-4  # all samples would give another mean


def test_mean_and_std_are_by_channel() -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3), np.uint8) // np.array([1, 2, 4], np.uint8)
    samples = make_samples(name="made", x=x, y=np.zeros(5, np.int64), classes=("a",))
    mean, std = samples.mean_and_std(np.array([0, 1, 3]))
    np.testing.assert_allclose(mean, (x[[0, 1, 3]] / 255).mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(std, (x[[0, 1, 3]] / 255).std(axis=(0, 1, 2)))


def test_labels_fit_images_in_both_domains(digits: Samples) -> None:
    """Nearest class mean, within a domain and across: shuffled labels would give 0.1, one domain no gap."""
    x = digits.x.reshape(len(digits.x), -1) / 255

    def accuracy(train_domain: int, test_domain: int) -> float:
        train = (digits.domain == train_domain) & ~digits.is_test
        test = (digits.domain == test_domain) & digits.is_test
        means = np.stack([x[train & (digits.y == c)].mean(axis=0) for c in range(10)])
        distances = ((x[test][:, None] - means) ** 2).sum(axis=2)
        return float((distances.argmin(axis=1) == digits.y[test]).mean())

    within = [accuracy(0, 0), accuracy(1, 1)]
    across = [accuracy(0, 1), accuracy(1, 0)]
    assert min(within) > 0.75
    assert max(across) < min(within) - 0.05


def test_file_is_small_and_documented() -> None:
    content = digits_module.DIGITS_PATH.read_bytes()
    text = digits_module.DIGITS_PATH.with_suffix(".md").read_text(encoding="utf-8")
    assert len(content) <= 1_500_000
    assert digits_module.DIGITS_SHA256 in text
    assert f"{len(content):,} bytes" in text


def _truncate(path: Path) -> None:
    path.write_bytes(digits_module.DIGITS_PATH.read_bytes()[:-1])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(digits_module.DIGITS_PATH.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_truncate, "damaged: its 1382838 bytes"),
        (_flip_a_bit, "damaged: its 1382839 bytes"),
        (Path.mkdir, "cannot be read"),
        (lambda path: None, "cannot be read .No such file"),
    ],
    ids=["truncated", "one bit flipped", "unreadable", "missing"],
)
def test_spoilt_file_is_refused_with_its_path_and_a_remedy(
    spoil: Callable[[Path], None], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "digits.npz"
    spoil(path)
    monkeypatch.setattr(digits_module, "DIGITS_PATH", path)
    with pytest.raises(UserError, match=says) as caught:
        digits_module.load_digits(Data())
    assert str(path) in str(caught.value)
    assert "Restore the file" in str(caught.value)


def test_data_on_the_host_needs_no_torch() -> None:
    code = "import sys, fedbsd_dist.data.partition, fedbsd_dist.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_classes_size_and_channels_are_honoured(digits: Samples) -> None:
    some = digits_module.load_digits(Data(classes=["8", "3"], image_size=20, channels=3))
    assert (some.classes, some.x.shape[1:]) == (("8", "3"), (20, 20, 3))
    chosen = np.isin(digits.y, (3, 8))
    assert np.array_equal(some.y, np.where(digits.y[chosen] == 8, 0, 1))
    assert np.array_equal(some.domain, digits.domain[chosen])
    assert np.array_equal(some.is_test, digits.is_test[chosen])
    assert some.identity != digits.identity
