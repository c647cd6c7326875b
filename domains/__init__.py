"""The sciences: readers, bundled data, tasks, baselines and figures."""
