"""The algorithms, one file each. `method.name` picks one."""

from typing import Any

from fedbsd_dist.config import MethodOptions, Train
from fedbsd_dist.errors import UserError
from fedbsd_dist.factories import resolve
from fedbsd_dist.methods.apfl import APFL
from fedbsd_dist.methods.contract import Method
from fedbsd_dist.methods.ditto import Ditto
from fedbsd_dist.methods.fedavg import FedAvg
from fedbsd_dist.methods.fedavg_ft import FedAvgFT
from fedbsd_dist.methods.fedbabu import FedBABU
from fedbsd_dist.methods.fedbn import FedBN
from fedbsd_dist.methods.fedbsd import FedBSD
from fedbsd_dist.methods.fedper import FedPer
from fedbsd_dist.methods.fedprox import FedProx
from fedbsd_dist.methods.fedrep import FedRep
from fedbsd_dist.methods.fedrod import FedRoD
from fedbsd_dist.methods.lg_fedavg import LGFedAvg
from fedbsd_dist.methods.local import Local
from fedbsd_dist.methods.moon import Moon
from fedbsd_dist.methods.per_fedavg import PerFedAvg
from fedbsd_dist.methods.pfedme import PFedMe
from fedbsd_dist.methods.pfedsd import PFedSD
from fedbsd_dist.methods.scaffold import Scaffold
from fedbsd_dist.models.flat import PARAMETERS

METHODS: dict[str, type[Method[Any]]] = {
    "fedbsd": FedBSD,
    "local": Local,
    "fedavg": FedAvg,
    "fedavg_ft": FedAvgFT,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "per_fedavg": PerFedAvg,
    "pfedme": PFedMe,
    "apfl": APFL,
    "ditto": Ditto,
    "lg_fedavg": LGFedAvg,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedbabu": FedBABU,
    "fedbn": FedBN,
    "moon": Moon,
    "fedrod": FedRoD,
    "pfedsd": PFedSD,
}
"""The first is the default."""

OPTIONS: dict[str, type[MethodOptions]] = {name: method.Options for name, method in METHODS.items()}


def make_method(options: MethodOptions, train: Train) -> Method[Any]:
    """The method of a configuration. Raises UserError where `method.factory` names none that could be used."""
    if not options.factory:
        return METHODS[options.name](options, train)
    chosen, said = resolve(options.factory, "method.factory"), f"method.factory={options.factory}"
    if not isinstance(chosen, type) or not issubclass(chosen, Method):
        raise UserError(f"{said}: must be a subclass of fedbsd_dist.methods.contract.Method.")
    missing = chosen.__abstractmethods__ | {name for name in ("shared",) if not hasattr(chosen, name)}
    if missing:
        raise UserError(f"{said}: does not define {', '.join(sorted(missing))}.")
    unknown = {*chosen.shared, *chosen.fixed} - {*PARAMETERS}
    if unknown:
        raise UserError(f"{said}: shares or fixes {', '.join(sorted(unknown))}; there are {', '.join(PARAMETERS)}.")
    return chosen(options, train)
