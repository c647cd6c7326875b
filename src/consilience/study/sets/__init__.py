"""Readers of the study's sets, one module a science: from the files of a set to one Collection."""
