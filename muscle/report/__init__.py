"""From predictions to the report: numbers (`build`), words (`view`), page, table."""

from muscle.report.build import build_report
from muscle.report.card import adapter_card
from muscle.report.csv_files import write_csv
from muscle.report.examples import FlipExample, pick_examples
from muscle.report.html import write_page
from muscle.report.page import write_markdown, write_report
from muscle.report.scores import print_scores
from muscle.report.table import print_examples, print_table

__all__ = [
    "FlipExample",
    "adapter_card",
    "build_report",
    "pick_examples",
    "print_examples",
    "print_scores",
    "print_table",
    "write_csv",
    "write_markdown",
    "write_page",
    "write_report",
]
