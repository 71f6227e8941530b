"""Which files and folders are which version's, of which seed."""

import re
from collections.abc import Mapping

from muscle import storage
from muscle.errors import UserError
from muscle.inputs.asked import Asked
from muscle.inputs.opening import open_sides
from muscle.inputs.source import entries, is_folder, stem_of
from muscle.metrics.comparable import without_instruction
from muscle.side import Side
from muscle.storage import exists, join
from muscle.types import AGAIN, VERSIONS

Paths = dict[int, dict[str, str]]
"""Seed -> version or "again" -> path."""

Opened = dict[int, dict[str, dict[str, Side]]]
"""Seed -> version or "again" -> task -> side."""

_SEED = re.compile(r"seed-(\d+)")


def find_versions(
    old: str, new: str | None, compat: str | None = None, again: str | None = None
) -> Paths:
    """The paths of all versions and seeds.

    Args:
        old, new, compat, again: a path, or several with commas between them, one per seed;
            without `new`, `old` is the output folder of a run, which holds the versions.

    Raises:
        UserError: one argument that is no such folder, or unequal numbers of seeds.
    """
    if new is None:
        return _run(old, again)
    given = {"old": old, "new": new, "compat": compat, AGAIN: again}
    lists = {name: _split(path) for name, path in given.items() if path is not None}
    for name, paths in lists.items():
        if len(paths) != len(lists["old"]):
            shown = "--noise-floor" if name == AGAIN else name.upper()
            raise UserError(
                f"OLD names {len(lists['old'])} seeds and {shown} {len(paths)}: give each version "
                "one path per seed, with commas between them"
            )
    return {s: {n: paths[s] for n, paths in lists.items()} for s in range(len(lists["old"]))}


def find_older(older: Mapping[str, str], paths: Paths) -> Paths:
    """The paths of older releases' predictions: seed -> label -> path.

    Args:
        older: label -> a path, the same for all seeds, or one per seed with commas between them.

    Raises:
        UserError: another number of paths than there are seeds, or a release.json.
    """
    found: Paths = {seed: {} for seed in paths}
    for label, given in older.items():
        each = _split(given)
        if len(each) not in (1, len(paths)):
            raise UserError(
                f"--also {label!r} names {len(each)} paths for {len(paths)} seeds: give one, or "
                "one per seed with commas between them"
            )
        if any(stem.endswith("release.json") for stem in each):
            raise UserError(
                f"--also {given}: a release holds no predictions: name the folder that does (the "
                "compat/ beside it), or let the release answer by `muscle run EXPERIMENT --also`"
            )
        for number, seed in enumerate(paths):
            found[seed][label] = each[number % len(each)]
    return found


def _split(path: str) -> list[str]:
    if "," not in path or exists(path):
        return [path]
    return [part.strip() for part in path.split(",") if part.strip()]


def _run(folder: str, again: str | None) -> Paths:
    """The versions in the output folder of a run."""
    if not is_folder(folder):
        what = "is one file" if exists(folder) else "does not exist"
        raise UserError(f"{folder} {what}: give OLD and NEW, or the output folder of a run")
    if again is not None:
        raise UserError("--noise-floor belongs to OLD and NEW: a run has its own again/, or none")
    seeds = {int(m.group(1)): n for n in entries(folder)[1] if (m := _SEED.fullmatch(n))}
    found = {seed: _versions(join(folder, seeds[seed])) for seed in sorted(seeds)}
    found = found or {0: _versions(folder)}
    first = next(iter(found.values()))
    for seed, versions in found.items():
        if not {"old", "new"} <= versions.keys() or versions.keys() != first.keys():
            there = ", ".join(versions) or "none of old/, new/, compat/"
            where = f"{folder} (seed {seed})" if seeds else folder
            raise UserError(
                f"{where} holds {there}: give OLD and NEW, or the output folder of a run, which "
                "holds old/ and new/, the same in every seed"
            )
    return found


def _versions(folder: str) -> dict[str, str]:
    folders = entries(folder)[1]
    return {name: join(folder, name) for name in (*VERSIONS, AGAIN) if name in folders}


def open_versions(paths: Paths, asked: Asked) -> Opened:
    """All files as sides. Raises UserError: whatever is wrong with one of them."""
    return {
        seed: {version: open_sides(path, asked) for version, path in versions.items()}
        for seed, versions in paths.items()
    }


def without_instructions(opened: Opened) -> Opened:
    """The sides with short hashes for their system instructions."""
    return {
        seed: {
            version: {task: without_instruction(side) for task, side in sides.items()}
            for version, sides in versions.items()
        }
        for seed, versions in opened.items()
    }


def file_hashes(opened: Opened) -> dict[str, str]:
    """Path -> sha256 of every file that was opened; one may hold many tasks and versions.

    Raises:
        UserError: a second seed, or the second old of the noise floor, is the first one again:
            it would show a noise of 0 where nobody looked.
    """
    hashes: dict[str, str] = {}
    contents: dict[int, dict[str, frozenset[str]]] = {}
    for seed, versions in opened.items():
        contents[seed] = {}
        for version, sides in versions.items():
            paths = {f["path"] for side in sides.values() for f in side.about.get("files", ())}
            for path in sorted(paths - hashes.keys()):
                hashes[path] = f"sha256:{storage.sha256(path)}"
            contents[seed][version] = frozenset(hashes[path] for path in paths)
    _refuse_repeated(opened, contents)
    return hashes


def older_hashes(older: Opened, opened: Opened, known: Mapping[str, str]) -> dict[str, str]:
    """`known` with the hashes of older releases' files.

    Raises:
        UserError: one of them is old's own file: there is nothing older in it.
    """
    every = {f"{n} {seed}": sides for seed, named in older.items() for n, sides in named.items()}
    hashes = {**known, **file_hashes({0: every})}

    def content(sides: Mapping[str, Side]) -> set[str]:
        return {hashes[f["path"]] for side in sides.values() for f in side.about.get("files", ())}

    for seed, named in older.items():
        mine = content(opened[seed]["old"])
        for label, sides in named.items():
            if mine and content(sides) == mine:
                raise UserError(
                    f"--also {label!r} is the same file as old's: give an older release's, or "
                    "leave it out"
                )
    return hashes


def _refuse_repeated(opened: Opened, contents: dict[int, dict[str, frozenset[str]]]) -> None:
    def shown(seed: int, version: str) -> str:
        return next((side.label for side in opened[seed][version].values()), version)

    seen: dict[tuple[frozenset[str], ...], int] = {}
    for seed, versions in contents.items():
        if versions.get(AGAIN) and versions[AGAIN] == versions["old"]:
            raise UserError(
                f"the noise floor's {shown(seed, AGAIN)} is the same file as old's "
                f"{shown(seed, 'old')}: train old again with another seed, or leave it out"
            )
        # One version may stay what it is while another is trained again, all of them may not.
        files = tuple(versions.values())
        if any(files) and files in seen:
            raise UserError(
                f"seed {seed} is seed {seen[files]} again: {shown(seed, 'new')} and "
                f"{shown(seen[files], 'new')} are the same file, and so are those of all other "
                "versions: give each seed its own files"
            )
        seen[files] = seed


def common_name(paths: Paths) -> str:
    """What the task of files is called that don't say it: as all files are, else "examples"."""
    every = [path for versions in paths.values() for path in versions.values()]
    stems = {stem_of(path) for path in every if not is_folder(path)}
    return stems.pop() if len(stems) == 1 else Asked().unnamed


def known_groups(opened: Opened) -> dict[str, tuple[str, ...]]:
    """Groups of at least two tasks that the files themselves speak of."""
    found: dict[str, list[str]] = {}
    for task, side in sorted(next(iter(opened.values()))["old"].items()):
        for group in side.about.get("groups") or ():
            found.setdefault(str(group), []).append(task)
    return {name: tuple(tasks) for name, tasks in found.items() if len(tasks) > 1}
