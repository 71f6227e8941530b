"""A release: what is served after an update, how it was judged, and how to go back.

`check_serving` says whether an adapter serves in vLLM; `make_release` writes release.json. What
reads a release.json is `muscle.released`, which experiment files need.
"""

from muscle.release.findings import Finding
from muscle.release.serving import Serving, check_serving

__all__ = ["Finding", "Serving", "check_serving"]
