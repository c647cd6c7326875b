"""The report of a study: one self-contained page, a table for the terminal, tables as CSV."""

from consilience.report.page import write_report
from consilience.report.tables import print_table, score_table

__all__ = ["print_table", "score_table", "write_report"]
