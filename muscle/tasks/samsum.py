"""Functions of `yaml/samsum.yaml`."""

from typing import Any


def process_docs(dataset: Any) -> Any:
    """Unix line ends (the original has "\\r\\n"), no null texts (one dialogue is empty)."""

    def clean(doc: dict[str, Any]) -> dict[str, str]:
        return {key: _clean(doc[key]) for key in ("dialogue", "summary")}

    return dataset.map(clean)


def _clean(text: str | None) -> str:
    return (text or "").replace("\r\n", "\n").strip()
