"""`muscle run` as a cluster job: `ray job submit --working-dir . -- python jobs/run.py FILE`.

Takes the same arguments as `muscle run`; the cluster it runs on is the one it uses.
"""


def main() -> None:
    """Hand the arguments to the command line, with the job's own cluster as address."""
    from muscle.cli import job

    job("run")


if __name__ == "__main__":
    main()
