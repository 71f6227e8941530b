"""Numbers and foreign text as people read them.

Percent appears here and nowhere before. Text that a model or a data file wrote is made
harmless here: it may hold terminal codes, Markdown, markup or half a page.
"""

import re
import unicodedata

NOTHING = "–"
# What has a meaning inside a line; "www." and "://" would become links, ":smile:" a picture.
_MARKDOWN = re.compile(r"([\\`*_\[\]#!|~$@]|:(?=//|[\w+-]+:)|(?<=www)\.)", re.IGNORECASE)
# What GitHub makes mentions and links to issues of, escaped or not: @name, #12, GH-12. A
# comment in between is not seen, not copied, and no part of either.
_REFERENCE = re.compile(r"(@(?=\w)|#(?=\d)|GH-(?=\d))", re.IGNORECASE)
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def percent(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """0.1027 -> "10.27"; the unit stands in the row's name. None -> a dash."""
    return NOTHING if value is None else number(100 * value, digits, signed)


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A plain number with a true minus sign; never "-0.00"."""
    if value is None:
        return NOTHING
    rounded = round(value, digits) + 0.0  # + 0.0 turns -0.0 into 0.0
    text = f"{abs(rounded):.{digits}f}"
    return ("−" if rounded < 0 else "+" if signed and rounded > 0 else "") + text


def p_value(p: float | None) -> str:
    """ "p < 0.001" or "p = 0.032"; a dash for None."""
    if p is None:
        return NOTHING
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def plain(text: str) -> str:
    """Text without control, format and surrogate characters (terminal codes, bidi
    overrides); line breaks and tabs stay."""
    return "".join(
        c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )


def visible(text: str) -> str:
    """Text in which what `plain` takes away is named instead: "\u202e" -> "[U+202E]".

    For places where two texts are compared: a difference that nobody sees must be seen.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if plain(c) else f"[U+{ord(c):04X}]" for c in text)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters: two thirds from the start, the rest from the end.

    The end stays since a prompt's question stands there.
    """
    if len(text) <= limit:
        return text
    head = max(1, (limit - 3) * 2 // 3)
    tail = max(0, limit - 3 - head)
    return f"{text[:head].rstrip()} … {text[len(text) - tail :].lstrip()}"


def one_line(text: str | None, limit: int = 300) -> str:
    """Foreign text for one table cell: harmless, on one line, cut. None -> a dash."""
    if text is None:
        return NOTHING
    return cut(" ".join(plain(text).split()), limit)


def markdown(text: object) -> str:
    """Any text as literal Markdown on one line: nothing in it can open a cell, a tag,
    a link, code or emphasis, and as a comment on GitHub it mentions nobody."""
    line = " ".join(plain(str(text)).split())
    escaped = _MARKDOWN.sub(r"\\\1", line).translate(_ENTITIES)
    return _REFERENCE.sub(r"\1<!-- -->", escaped)
