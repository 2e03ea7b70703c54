"""A torch and a torchvision that were not built for each other are told apart before anything is imported."""

from importlib import metadata

import pytest

from fedbsd_dist import environment
from fedbsd_dist.errors import UserError


@pytest.fixture
def install(monkeypatch):
    """install(torch, torchvision, requires): as if pip had installed these versions; None: not installed."""

    def install(torch: str, torchvision: str | None, requires: list[str] | None) -> None:
        versions = {"torch": torch, "torchvision": torchvision}

        def version(name: str) -> str:
            if versions[name] is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lambda name: requires if version(name) else None)

    return install


def test_the_packages_installed_here_fit() -> None:
    environment.check()


@pytest.mark.parametrize(
    ("torch", "torchvision", "requires"),
    [
        ("2.9.1", None, None),
        ("2.9.1", "0.24.1", ["numpy", "torch==2.9.1", "pillow!=8.3.*,>=5.3.0"]),
        ("2.9.1", "0.24.1", ["numpy", "torch (==2.9.1)"]),
        ("2.9.1+cpu", "0.24.1+cpu", ["numpy", "torch==2.9.1"]),
        ("2.9.1+cu128", "0.24.1+cu128", ["torch==2.9.1"]),
        ("2.9.1+cu128", "0.24.1", ["torch==2.9.1"]),
        ("2.9.1", "0.24.1", ["numpy", "torch"]),
        ("2.9.1", "0.24.1", None),
    ],
)
def test_a_pair_that_fits_passes(install, torch: str, torchvision: str | None, requires: list[str] | None) -> None:
    install(torch, torchvision, requires)
    environment.check()


@pytest.mark.parametrize(
    ("torch", "torchvision", "requires"),
    [
        ("2.10.0", "0.24.1", ["numpy", "torch==2.9.1"]),
        ("2.9.0", "0.24.1", ["numpy", "torch (==2.9.1)"]),
        ("2.10.0+cu128", "0.24.1+cu128", ["torch==2.9.1"]),
        ("2.9.1+cpu", "0.24.1", ["torch==2.9.1"]),
        ("2.9.1+cpu", "0.24.1+cu128", ["torch==2.9.1"]),
        ("2.9.1+cu128", "0.24.1+cpu", ["torch==2.9.1"]),
    ],
)
def test_a_pair_that_does_not_fit_is_told_with_both_versions_and_a_remedy(
    install, torch: str, torchvision: str, requires: list[str]
) -> None:
    install(torch, torchvision, requires)
    with pytest.raises(UserError, match="pip install") as told:
        environment.check()
    assert torch in str(told.value)
    assert torchvision in str(told.value)
    assert "\n" not in str(told.value)
