"""Update a base model without breaking what already worked."""

__version__ = "0.1.0"
