"""The verdict as JUnit XML, which every CI shows."""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from muscle.gate import words

MOST_FLIPS = 1000
"""Flipped must-keep examples shown one by one; a last case says how many more there are."""

# Not in XML 1.0, even escaped: control characters, lone surrogates, non-characters.
_INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(gate: Mapping[str, Any]) -> bytes:
    """gate.json's content as JUnit XML: a suite for each task, a case for each check.

    A failed check is a failure, one without enough evidence an error of that type; every
    must-keep example that flipped is a case of its own, skipped where a waiver allows it.
    """
    root = ElementTree.Element("testsuites", name="muscle gate")
    suites: dict[str, ElementTree.Element] = {}

    def case(task: str, name: str) -> ElementTree.Element:
        if task not in suites:
            suites[task] = ElementTree.SubElement(root, "testsuite", name=clean(task))
        return ElementTree.SubElement(
            suites[task], "testcase", classname=clean(task), name=clean(name)
        )

    for check in gate["checks"]:
        where = check["slice"]
        name = words.name(check["limit"], check["delta"], gate["pair"], check["plain"])
        name += f" ({words.slice_name(where)})" if where else ""
        element = case(check["task"], name)
        if check["verdict"] == "fail":
            ElementTree.SubElement(element, "failure", message=clean(check["text"]))
        elif check["verdict"] != "pass":
            ElementTree.SubElement(
                element, "error", type="not enough evidence", message=clean(check["text"])
            )
    flips = (gate["must_keep"] or {}).get("flipped", [])
    for flip in flips[:MOST_FLIPS]:
        element = case(flip["task"], f"must keep {flip['id']}")
        kind, message = ("skipped", "flipped, waived") if flip["waived"] else ("failure", "flipped")
        ElementTree.SubElement(element, kind, message=message)
    if len(flips) > MOST_FLIPS:
        rest = flips[MOST_FLIPS:]
        element = case(rest[0]["task"], f"must keep: {len(rest)} more flipped")
        if not all(flip["waived"] for flip in rest):
            ElementTree.SubElement(element, "failure", message="see gate.json for all of them")
    _count(root, list(suites.values()))
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def clean(text: str) -> str:
    """Text without what XML can't hold."""
    return _INVALID.sub("", text)


def _count(root: ElementTree.Element, suites: list[ElementTree.Element]) -> None:
    """Readers of JUnit want the totals as attributes."""
    paths = {"tests": "testcase", "failures": ".//failure", "errors": ".//error"}
    paths["skipped"] = ".//skipped"
    for name, path in paths.items():
        counts = [len(suite.findall(path)) for suite in suites]
        for suite, count in zip(suites, counts, strict=True):
            suite.set(name, str(count))
        root.set(name, str(sum(counts)))
