"""A table of one's own molecules and labels as a benchmark: rows that must be beaten, frozen and fine-tuned cores."""
