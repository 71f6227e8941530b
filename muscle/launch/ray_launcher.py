"""The pipeline's launcher on Ray."""

from collections.abc import Sequence

from muscle.config import BackendName, ResourcesConfig
from muscle.evaluation.job import EvaluateJob
from muscle.launch import cluster
from muscle.teachers.job import TeacherJob
from muscle.training.job import OnProgress, Progress, TrainJob
from muscle.tuning.trial import TrialSource


class RayLauncher:
    """Connects in `prepare`, so a run that reuses everything starts no Ray."""

    def __init__(
        self,
        resources: ResourcesConfig,
        address: str | None = None,
        verbose: bool = False,
        backend: BackendName = "transformers",
    ):
        self.resources = resources
        self.address = address
        self.verbose = verbose
        self.backend = backend

    def prepare(self, on_progress: OnProgress) -> None:
        """Connect or start Ray, and refuse what this machine or cluster will never have."""
        on_progress(Progress("start Ray", 0, 1, "cluster"))
        cluster.connect(self.address, self.verbose)
        cluster.check_resources(self.resources, self.backend)
        if self.backend == "vllm":
            from muscle.launch.vllm import check_vllm

            check_vllm(self.resources.min_actors)
        on_progress(Progress("start Ray", 1, 1, "cluster"))

    def train(self, jobs: Sequence[TrainJob], on_progress: OnProgress) -> None:
        """Ray Train: all jobs, side by side where there is room."""
        from muscle.launch.training import train_all

        train_all(jobs, self.resources, on_progress)

    def cache(self, job: TeacherJob, on_progress: OnProgress) -> None:
        """Ray Data: what is missing of the teachers' hidden states, a pool for each base."""
        from muscle.launch.teachers import cache_all

        cache_all(job, self.resources, on_progress)

    def evaluate(self, job: EvaluateJob, on_progress: OnProgress) -> tuple[str, ...]:
        """Ray Data: one stream through a pool for each base; returns the engines' remarks."""
        from muscle.launch.evaluation import evaluate

        return evaluate(job, self.resources, on_progress)

    def search(self, trials: TrialSource, concurrent: int | None, on_progress: OnProgress) -> None:
        """Ray Tune: as many trials at once as there is room for."""
        from muscle.launch.tuning import search

        search(trials, self.resources, self.backend, concurrent, on_progress)

    def close(self) -> None:
        """Leave the cluster; ends a Ray that was started here."""
        import sys

        if "ray" in sys.modules:
            import ray

            ray.shutdown()
