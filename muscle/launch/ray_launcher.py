"""The pipeline's launcher on Ray."""

from collections.abc import Sequence

from muscle.config import ResourcesConfig
from muscle.evaluation.job import EvaluateJob
from muscle.launch import cluster
from muscle.training.job import OnProgress, TrainJob


class RayLauncher:
    """Connects when the first job comes, so a run that reuses everything starts no Ray."""

    def __init__(
        self, resources: ResourcesConfig, address: str | None = None, verbose: bool = False
    ):
        self.resources = resources
        self.address = address
        self.verbose = verbose

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        """Ray Train: all jobs, side by side where there is room."""
        cluster.connect(self.address, self.verbose)
        from muscle.launch.training import train_all

        train_all(jobs, self.resources, on_progress)

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> None:
        """Ray Data: one stream through a pool for each base."""
        cluster.connect(self.address, self.verbose)
        from muscle.launch.evaluation import evaluate

        evaluate(job, self.resources, on_progress)

    def close(self) -> None:
        """Leave the cluster; ends a Ray that was started here."""
        import sys

        if "ray" in sys.modules:
            import ray

            ray.shutdown()
