"""Starts a submitted run on the cluster: python muscle_job.py run|tune VERSION FILE [OPTION]…

It travels with the experiment and needs nothing but Python, so that a node without muscle, or
with another one, is said in a line.
"""

import importlib
import os
import sys


def refuse(text: str) -> None:
    """Say why the run can't be, and stop."""
    print(f"muscle: {text}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def main() -> None:
    """Check what the node has, then hand over to muscle's command line."""
    kind, version, file, *options = sys.argv[1:]
    try:
        import muscle
    except ModuleNotFoundError as error:
        refuse(f"the cluster's nodes lack {error.name}: give them the image of cluster/Dockerfile")
        return
    if muscle.__version__ != version:
        refuse(
            f"muscle is {version} where the job was submitted and {muscle.__version__} on the "
            "cluster: install one version, or build the image again"
        )
    os.chdir(os.path.dirname(os.path.abspath(__file__)))  # small files are named from here
    sys.argv = ["muscle", file, *options]
    # By name: this file is no part of the package that it starts.
    importlib.import_module("muscle.cli").job(kind)


if __name__ == "__main__":
    main()
