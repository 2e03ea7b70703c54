"""Three real domains of digits as array files, for `data.source=domains`, from the files that they are published in.

    python tests/benchmarks/digit_domains.py SOURCES FOLDER [MOST]
    torchrun --nproc_per_node=8 -m fedbsd_dist.main data.source=domains data.root=FOLDER data.image_size=28 \\
        data.partition=domain

SOURCES holds, anywhere below it, MNIST's four idx files (`train-images-idx3-ubyte` and so on, not packed), USPS's
`zip.train.gz` and `zip.test.gz` and UCI's `optdigits.dat` (65 integers a line, the label last); what is missing
is left out. optdigits, which comes there without a split, gets every fourth sample for testing. Of a domain with more
than MOST training samples the first MOST are taken, as FedBN's benchmark does with 7,438.
"""

import gzip
import sys
from pathlib import Path

import numpy as np


def idx(path: Path) -> np.ndarray:
    """The array in a file of MNIST's format."""
    content = path.read_bytes()
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def mnist(find) -> dict[str, np.ndarray]:
    """28 x 28."""
    parts = [
        (idx(find(f"{part}-images-idx3-ubyte")), idx(find(f"{part}-labels-idx1-ubyte"))) for part in ("train", "t10k")
    ]
    return together(*parts)


def usps(find) -> dict[str, np.ndarray]:
    """16 x 16, published as -1 (white) to 1."""

    def part(name: str) -> tuple[np.ndarray, np.ndarray]:
        with gzip.open(find(f"zip.{name}.gz"), "rt") as lines:
            table = np.array([line.split() for line in lines], float)
        return np.rint((table[:, 1:] + 1) * 127.5).astype(np.uint8).reshape(-1, 16, 16), table[:, 0].astype(np.int64)

    return together(part("train"), part("test"))


def optdigits(find) -> dict[str, np.ndarray]:
    """8 x 8, published as 0 to 16."""
    table = np.loadtxt(find("optdigits.dat"), np.int64, delimiter=",", comments="@")
    x, y = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8), table[:, 64]
    tested = np.arange(len(y)) % 4 == 3
    return together((x[~tested], y[~tested]), (x[tested], y[tested]))


def together(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Keys as an array file has them."""
    split = np.repeat(["train", "test"], [len(train[1]), len(test[1])])
    return {"x": np.concatenate([train[0], test[0]]), "y": np.concatenate([train[1], test[1]]), "split": split}


def main() -> None:
    """Write FOLDER/DOMAIN.npz."""
    sources, folder = Path(sys.argv[1]), Path(sys.argv[2])
    most = int(sys.argv[3]) if len(sys.argv) > 3 else None
    folder.mkdir(parents=True, exist_ok=True)
    for read in (mnist, usps, optdigits):
        try:
            arrays = read(lambda name: next(sources.rglob(name)))
        except StopIteration:
            print(f"{read.__name__}: not all of its files are below {sources}")
            continue
        train = np.flatnonzero(arrays["split"] == "train")[:most]
        kept = np.concatenate([train, np.flatnonzero(arrays["split"] == "test")])
        arrays = {key: values[kept] for key, values in arrays.items()}
        np.savez(folder / f"{read.__name__}.npz", **arrays)
        print(
            f"{read.__name__}: {(arrays['split'] == 'train').sum()} training, {(arrays['split'] == 'test').sum()} test"
        )


if __name__ == "__main__":
    main()
