"""One local Ray for all tests of this folder."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    import ray

    import muscle.launch.cluster  # noqa: F401  its environment variables come before ray.init

    ray.init(
        address="local",
        num_cpus=6,
        object_store_memory=150 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
