"""Single cells: tables of counts, their labels, baselines, writers and figures."""
