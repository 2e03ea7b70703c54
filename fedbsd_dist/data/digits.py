"""The digits that come with the package, described in digits.md."""

import hashlib
import io
from pathlib import Path

import numpy as np

from fedbsd_dist.config import Data
from fedbsd_dist.data.options import select
from fedbsd_dist.data.samples import Samples
from fedbsd_dist.errors import UserError

DIGITS_PATH = Path(__file__).with_name("digits.npz")
DIGITS_SHA256 = "13dfa5f82998c4249f054a1052f5b09bc0ed8bcb7a7aebd8e119fe0a0335bc60"


def load_digits(data: Data) -> Samples:
    """UCI optdigits in its official split and a class-balanced part of MNIST, both 16 x 16 grey."""
    with np.load(io.BytesIO(_read_verified(DIGITS_PATH, DIGITS_SHA256)), allow_pickle=False) as arrays:
        return select(
            data,
            name="digits",
            x=arrays["x"][..., np.newaxis],
            y=arrays["y"].astype(np.int64),
            classes=tuple("0123456789"),
            domain=arrays["domain"].astype(np.int64),
            domains=("optdigits", "mnist"),
            is_test=arrays["split"] == 1,
        )


def _read_verified(path: Path, sha256: str) -> bytes:
    remedy = "Restore the file from the repository (git checkout) or reinstall the package."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{path}: is damaged: its {len(content)} bytes have sha256 {found}, expected {sha256}. {remedy}"
        )
    return content
