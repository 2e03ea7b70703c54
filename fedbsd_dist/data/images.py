"""Image files decoded side by side into one array on disk."""

import hashlib
import io
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from fedbsd_dist.data.pixels import fit
from fedbsd_dist.data.samples import Images
from fedbsd_dist.errors import UserError

CHUNK = 64
"""Files a task: few enough tasks to cost nothing, small enough ones to keep all threads busy to the end."""
MAX_THREADS = 16
"""Beyond these, a disk or the interpreter's lock is what is waited for."""
DEEP_MODES = ("I", "F")
"""How Pillow's names of modes with more than 8 bits a channel begin; made 8-bit, they would be cut off at 255."""


def decode(files: Sequence[Path], *, size: int, channels: int, into: Path, num_others: int = 0) -> tuple[Images, str]:
    """uint8 [n, height, width, channels], mapped to x.npy in the folder `into`, in the order of `files`; and what tells
    their contents from others', however they are decoded.

    `size`: pixels a side, or 0 for those of the first image; `channels`: 1, 3, or 0 for those of the first;
    `num_others`: files that were found beside them, to be told of.
    Images are taken as stored: an orientation in EXIF is not applied, for data sets are used that way.
    Of an animation, the first frame. Raises UserError, naming the file, for the first one found that is
    no image, damaged, larger than Pillow deems safe, of more than 8 bits, or unlike the first.
    """
    from PIL import Image
    from tqdm import tqdm

    Image.init()  # threads that did it at the same time could miss formats
    first, _ = _decode_one(files[0], size, channels)
    x = _allocate(into / "x.npy", (len(files), *first.shape))
    digests = [b""] * len(files)
    source = os.path.commonpath([file.parent for file in files])
    others = f" (other files, left out: {num_others:,})" if num_others else ""
    print(f"decoding {len(files):,} images of {source} into {into}{others}")
    stop = threading.Event()

    def decode_chunk(start: int) -> int:
        chunk = files[start : start + CHUNK]
        for index, file in enumerate(chunk, start):
            if stop.is_set():
                break
            image, digests[index] = _decode_one(file, size, channels)
            if image.shape != x.shape[1:]:
                raise _unlike(file, image.shape, files[0], x.shape[1:])
            x[index] = image
        return len(chunk)

    with ThreadPoolExecutor(num_threads()) as threads:
        tasks = [threads.submit(decode_chunk, start) for start in range(0, len(files), CHUNK)]
        try:
            with tqdm(total=len(files), unit=" images", disable=None) as progress:  # None: not into log files
                for task in as_completed(tasks):
                    progress.update(task.result())
        finally:
            stop.set()  # or leaving would wait until all are decoded
    return x, hashlib.sha256(b"".join(digests)).hexdigest()


def num_threads() -> int:
    """As many as there are CPUs for this process, within reason."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, MAX_THREADS)


def _allocate(path: Path, shape: tuple[int, ...]) -> Images:
    try:
        x: Images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):  # on a full disk, a write to the mapping would kill the process
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise UserError(
            f"data.cache: cannot write the {math.prod(shape) / 1e9:.2f} GB of decoded images to {path.parent} "
            f"({error.strerror or error}). Set data.cache to a folder with room, or a smaller data.image_size."
        ) from None
    return x


def _decode_one(file: Path, size: int, channels: int) -> tuple[Images, bytes]:
    """The image, and the sha256 of the file."""
    from PIL import Image

    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
            if not mode.startswith(DEEP_MODES):
                return fit(image, size, channels), hashlib.sha256(content).digest()
    except Exception as error:  # a damaged file may make Pillow's parsers raise anything
        raise UserError(
            f"{file}: cannot be read as an image ({type(error).__name__}: {error}). Restore the file or remove it."
        ) from None
    raise UserError(f"{file}: has more than 8 bits a pixel and channel (Pillow's mode {mode}). Convert it to 8 bits.")


def _unlike(file: Path, shape: tuple[int, ...], first: Path, firsts: tuple[int, ...]) -> UserError:
    if shape[:2] != firsts[:2]:
        return UserError(
            f"{file}: is {shape[1]} x {shape[0]} pixels, but {first}, the first image, is {firsts[1]} x {firsts[0]}. "
            f"Set data.image_size=N to resize all to N x N pixels."
        )
    colour = {1: "grey", 3: "colour"}
    return UserError(
        f"{file}: is {colour[shape[2]]}, but {first}, the first image, is {colour[firsts[2]]}. "
        f"Set data.channels=3 to make all colour, or data.channels=1 to make all grey."
    )
