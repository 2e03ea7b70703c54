"""The algorithms, one file each. `method.name` picks one."""

from typing import Any

from fedbsd_dist.config import MethodOptions
from fedbsd_dist.methods.contract import Method
from fedbsd_dist.methods.fedavg import FedAvg
from fedbsd_dist.methods.fedbsd import FedBSD
from fedbsd_dist.methods.fedper import FedPer

METHODS: dict[str, type[Method[Any]]] = {"fedbsd": FedBSD, "fedavg": FedAvg, "fedper": FedPer}

OPTIONS: dict[str, type[MethodOptions]] = {name: method.Options for name, method in METHODS.items()}
