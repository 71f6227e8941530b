"""Where the workers of a training find each other: torch's store, on one address only.

By default the store of rank 0 listens on every interface of its machine, also where all of Ray
listens on the loopback, and whoever reaches it can read and write what workers tell each other.
"""

import socket
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class NarrowTorchConfig(TorchConfig):
    """Ray's process group, whose store listens on the address that the workers are told."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _NarrowBackend


class _NarrowBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(narrow_store)
        super().on_start(worker_group, backend_config)


def narrow_store() -> None:
    """Make this process's `env://` rendezvous open its store on MASTER_ADDR alone."""
    # The package has a function of the module's name, which every import statement finds.
    module: Any = import_module("torch.distributed.rendezvous")
    module._create_c10d_store = _narrow_store


def _narrow_store(
    hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True
) -> dist.Store:
    """As torch's own function, but for the socket that it listens on."""
    options: dict[str, Any] = {"timeout": timeout, "multi_tenant": True, "use_libuv": use_libuv}
    if rank == 0:
        family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
        listening = socket.create_server((hostname, port), family=family)
        options["master_listen_fd"] = listening.detach()
    return dist.TCPStore(hostname, port, world_size, rank == 0, **options)
