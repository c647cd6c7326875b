"""The report of a study: one self-contained page, a table for the terminal, figures and tables beside it."""

from consilience.report.page import write_report
from consilience.report.questions import questions
from consilience.report.tables import print_table
from consilience.report.verdicts import verdicts

__all__ = ["print_table", "questions", "verdicts", "write_report"]
