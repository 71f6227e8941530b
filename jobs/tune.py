"""`muscle tune` as a cluster job: `ray job submit --working-dir . -- python jobs/tune.py FILE`.

Takes the same arguments as `muscle tune`; the cluster it runs on is the one it uses. Give an
`--output` (or a `storage`) that all nodes see: trials hand their adapters over by path.
"""


def main() -> None:
    """Hand the arguments to the command line, with the job's own cluster as address."""
    from muscle.cli import job

    job("tune")


if __name__ == "__main__":
    main()
