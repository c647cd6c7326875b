"""Figures of the report, one file each: `draw(tables, preset)` gives a matplotlib figure, or None without data."""
