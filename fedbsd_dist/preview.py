"""What clients a configuration would have, without training: `python -m fedbsd_dist.data --preview`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedbsd_dist import environment, overview
from fedbsd_dist.command import start
from fedbsd_dist.commandline import load
from fedbsd_dist.data import manifest, sources
from fedbsd_dist.errors import UserError
from fedbsd_dist.methods import OPTIONS
from fedbsd_dist.pictures import clients_png, samples_png
from fedbsd_dist.plan import divide
from fedbsd_dist.record.directory import OURS, PARTITION
from fedbsd_dist.record.files import write_atomically

FLAG = "--preview"
CLIENTS_PICTURE, SAMPLES_PICTURE = "clients.png", "samples.png"
USAGE = f"""usage: python -m fedbsd_dist.data {FLAG}[=FOLDER] [CONFIG.yaml] [section.field=value ...]

Shows the clients that a run with these options would have, without training: how many samples of each class
every client has, and how unlike each other the clients are. The options are those of fedbsd_dist.main.

Written to FOLDER (`preview`, unless named):
  {PARTITION}   who owns which sample, to run with by data.manifest=FOLDER/{PARTITION}
  {CLIENTS_PICTURE}      clients x classes, coloured by training samples
  {SAMPLES_PICTURE}      training samples of the first clients

python -m fedbsd_dist.data {FLAG}                                                the default clients
python -m fedbsd_dist.data {FLAG} data.partition=pathological data.num_clients=10
python -m fedbsd_dist.data {FLAG}=look run.yaml data.alpha=0.5 seed=1            a file of options, and two more"""


def main() -> None:
    """Exit code 0, or 2 for what the user can mend."""
    start(USAGE, preview)


def preview(arguments: Sequence[str]) -> str:
    """Write the files; what to print."""
    folder, options = _split(arguments)
    environment.check()
    config = load(options, OPTIONS)
    _check(folder)
    sources.prepare(config.data)
    samples = sources.load(config.data)
    config, partition = divide(samples, config)
    title = overview.of_partition(config)
    files = {
        PARTITION: manifest.text(partition, samples, config.data, config.seed).encode(),
        CLIENTS_PICTURE: clients_png(partition, samples, f"{samples.name}, {title}"),
        SAMPLES_PICTURE: samples_png(partition, samples, config.seed),
    }
    with _telling_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
    written = ", ".join(str(folder / name) for name in files)
    return "\n".join([*overview.lines(config, samples, partition), "", f"written: {written}"])


def _split(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """(the folder of the one flag, the options)."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    for flag in flags:
        if flag.partition("=")[0] != FLAG or flag == f"{FLAG}=":
            raise UserError(
                f"{flag}: no such flag. There are {FLAG}[=FOLDER] and --help; options are section.field=value."
            )
    if len(flags) != 1:
        raise UserError(f"{FLAG}: give it once; --help says what it does.")
    folder = Path(flags[0].partition("=")[2] or FLAG.removeprefix("--"))
    return folder, [argument for argument in arguments if argument not in flags]


@contextmanager
def _telling_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{FLAG}={folder}: cannot write files there ({error.strerror or error}). Choose another folder."
        ) from None


def _check(folder: Path) -> None:
    """Raises UserError where no files can or may be written; leaves nothing, for what comes next may fail."""
    with _telling_of(folder):
        if any((folder / name).exists() for name in OURS if name != PARTITION):
            raise UserError(f"{FLAG}={folder}: holds a run, whose {PARTITION} is its own. Choose another folder.")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        finally:
            for path in missing:
                if path.exists():
                    path.rmdir()
