"""Ways to embed a file piece by piece: in this process (`plain`), or over many (`ray`)."""
