"""What a cluster has and could have, and what of it a request fits: plain records, no Ray.

A node type is what an autoscaler may start; a cluster without one has only its nodes.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from muscle.errors import UserError

Resources = Mapping[str, float]
Labels = Mapping[str, str]

RAYS_LABELS = "ray.io/"
"""Prefix of the labels that Ray gives each node itself."""

_SELECTOR = re.compile(r"(?P<no>!?)(?:in\((?P<many>[^()]*)\)|(?P<one>.*))")


@dataclass(frozen=True)
class NodeType:
    """A kind of node that an autoscaler starts, at most `most` of them."""

    name: str
    resources: Resources
    labels: Labels = field(default_factory=dict)
    most: float = math.inf


@dataclass(frozen=True)
class Node:
    """A living node; `kind` is its node type's name, "" where an autoscaler didn't start it."""

    id: str
    total: Resources
    free: Resources
    labels: Labels = field(default_factory=dict)
    kind: str = ""


@dataclass(frozen=True)
class Ask:
    """So many bundles, each on one node that carries the labels (Ray's selectors)."""

    bundle: Resources
    count: int
    labels: Labels = field(default_factory=dict)

    def __str__(self) -> str:
        where = f" on {shown(self.labels)}" if self.labels else ""
        return f"{self.count} x ({size(self.bundle) or 'no CPU'}){where}"


@dataclass(frozen=True)
class Capacity:
    """A cluster's living nodes and what its autoscaler may add.

    types  None: there may be an autoscaler, and what it could start isn't known here
    limit  nodes that the autoscaler runs at most, of all types together
    """

    nodes: tuple[Node, ...]
    types: tuple[NodeType, ...] | None = ()
    limit: float = math.inf

    @property
    def grows(self) -> bool:
        """Whether nodes may be added."""
        return self.types is None or bool(self.types)

    def kinds(self, labels: Labels | None = None) -> list[NodeType]:
        """All shapes of nodes with CPUs or GPUs, with how many there could be."""
        known = {kind.name for kind in self.types or ()}
        alone = Counter(
            (size(node.total), tuple(sorted(_own(node.labels).items())))
            for node in self.nodes
            if node.kind not in known and size(node.total)
        )
        example = {(size(n.total), tuple(sorted(_own(n.labels).items()))): n for n in self.nodes}
        found = [kind for kind in self.types or () if kind.most > 0 and size(kind.resources)]
        for shape, number in alone.items():
            node = example[shape]
            name = node.labels.get(ROLE) or node.kind or "node"
            found.append(NodeType(name, node.total, _own(node.labels), number))
        return [kind for kind in found if matches(labels or {}, kind.labels)]

    def most(self, resource: str, labels: Labels | None = None) -> float:
        """How much of a resource there could be, on all nodes with the labels."""
        return self._over(lambda kind: kind.resources.get(resource, 0.0), labels)

    def room(self, ask: Ask) -> float:
        """How many of an ask's bundles the cluster could hold at most; `math.inf` for no end."""
        return self._over(lambda kind: _per_node(kind, ask.bundle), ask.labels)

    def _over(self, worth: Callable[[NodeType], float], labels: Labels | None) -> float:
        """The sum of `worth` over the nodes that there could be, the best ones first."""
        started = {kind.name for kind in self.types or ()}
        left, total = self.limit, 0.0
        for kind in sorted(self.kinds(labels), key=worth, reverse=True):
            number = kind.most
            if kind.name in started:
                number = min(number, left)
                left -= number
            each = worth(kind)
            total += each * number if each and number else 0.0
        return total


@dataclass(frozen=True)
class Answer:
    """What an autoscaler (version 2) is doing about what is asked.

    starting    node type -> nodes on their way
    failed      node type -> why its last start failed
    infeasible  bundles that it has no node type for
    """

    starting: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    infeasible: tuple[Resources, ...] = ()


@dataclass(frozen=True)
class Sight:
    """A cluster at one moment."""

    nodes: tuple[Node, ...]
    answer: Answer = Answer()


def matches(selector: Labels, labels: Labels) -> bool:
    """Whether labels satisfy Ray's selectors: VALUE, !VALUE, in(A, B), !in(A, B).

    As in Ray, what is not to be a value is satisfied by a node without the label.
    """
    for key, condition in selector.items():
        found = _SELECTOR.fullmatch(condition)
        if found is None:
            return False
        many = found["many"]
        values = [found["one"]] if many is None else [v.strip() for v in many.split(",")]
        if (labels.get(key) in values) == bool(found["no"]):
            return False
    return True


def size(resources: Resources) -> str:
    """`16 CPU, 1 GPU`; "" for neither."""
    named = [(name, resources.get(name, 0.0)) for name in ("GPU", "CPU")]
    return ", ".join(f"{number:g} {name}" for name, number in named if number)


def shown(labels: Labels) -> str:
    """`muscle-role=training`."""
    return ", ".join(f"{key}={value}" for key, value in labels.items())


@dataclass(frozen=True)
class Settings:
    """The settings' names that an ask comes from, for what is said of it."""

    gpus: str
    cpus: str
    count: str
    labels: str


def check(capacity: Capacity, ask: Ask, settings: Settings) -> None:
    """Refuse what a cluster can never hold, whatever its autoscaler starts.

    Nothing is refused where that isn't known.

    Raises:
        UserError: names the setting, what the cluster could have, and what would fit.
    """
    if capacity.types is None:
        return
    every, kinds = capacity.kinds(), capacity.kinds(ask.labels)
    what = "node type" if capacity.types else "node"
    have = "; ".join(_described(kind) for kind in every) or "none has any CPU or GPU"
    if every and not kinds:
        raise UserError(
            f"resources.{settings.labels} asks for {shown(ask.labels)} and no {what} of this "
            f"cluster carries it ({have}): name labels that one has, or none"
        )
    gpus, cpus = ask.bundle.get("GPU", 0.0), ask.bundle.get("CPU", 0.0)
    here = f"no {what} of this cluster" + (f" with {shown(ask.labels)}" if ask.labels else "")
    _check_each(f"resources.{settings.gpus}", gpus, "GPU", kinds, f"{here} has", have)
    _check_each(f"resources.{settings.cpus}", cpus, "CPU", kinds, f"{here} has", have)
    if not any(_per_node(kind, ask.bundle) for kind in kinds):
        beside = max(
            k.resources.get("CPU", 0.0) for k in kinds if k.resources.get("GPU", 0) >= gpus
        )
        raise UserError(
            f"resources.{settings.cpus} is {cpus:g} beside {gpus:g} GPU: {here} has both "
            f"({have}): set it to at most {beside:g}"
        )
    room = capacity.room(ask)
    if room < ask.count:
        can = "can have" if capacity.types else "has"
        grow = "raise max_workers" if capacity.types else "add nodes"
        raise UserError(
            f"resources.{settings.count} asks for {ask} and this cluster {can} room for "
            f"{room:g} of them at most ({have}): ask for less, or {grow}"
        )


def _check_each(
    setting: str, wanted: float, unit: str, kinds: list[NodeType], nothing: str, have: str
) -> None:
    most = max((kind.resources.get(unit, 0.0) for kind in kinds), default=0.0)
    if wanted <= most:
        return
    limit, mend = f"more than {most:g} {unit}", f"set it to at most {most:g}"
    if not most:
        limit, mend = f"a {unit}", "add nodes with CPUs"
        if unit == "GPU":
            mend = "set it to 0 for CPUs, or add a node type with one"
    raise UserError(f"{setting} is {wanted:g}: {nothing} {limit} ({have}): {mend}")


def _described(kind: NodeType) -> str:
    number = "" if math.isinf(kind.most) else f" x {kind.most:g}"
    return f"{kind.name}: {size(kind.resources)}{number}"


def _per_node(kind: NodeType, bundle: Resources) -> float:
    """How many bundles one node holds."""
    asked = {name: number for name, number in bundle.items() if number}
    if not asked:
        return math.inf
    return min(
        # 0.1 + 0.2 of something must still fit into 0.3.
        math.floor(kind.resources.get(name, 0.0) / number + 1e-6)
        for name, number in asked.items()
    )


def _own(labels: Labels) -> dict[str, str]:
    return {key: value for key, value in labels.items() if not key.startswith(RAYS_LABELS)}


# --- the drivers of trials --------------------------------------------------------------------

ROLE = "muscle-role"
"""The label by which cluster.yaml and cluster/kuberay say what a node is for."""
OFF_GPUS = "!in(scoring,training)"
OFF_GPUS_AND_HEAD = "!in(head,scoring,training)"


def driver_labels(capacity: Capacity) -> dict[str, str]:
    """Where a driver that takes no CPU is to sit: on a node that isn't paid for its GPUs, and
    not on the head, whose death would be everyone's; less strict where there is no such node."""
    # A driver asks for a little memory, which Ray knows of every living node.
    started = [
        kind for kind in capacity.types or () if kind.most > 0 and "memory" in kind.resources
    ]
    places = [*(node.labels for node in capacity.nodes), *(kind.labels for kind in started)]
    for wish in (OFF_GPUS_AND_HEAD, OFF_GPUS):
        if any(matches({ROLE: wish}, labels) for labels in places):
            return {ROLE: wish}
    return {}
