"""Train on cells: `python -m consilience.domains.cells.train --help`; options as in `consilience train`."""

from consilience.domains.script import train_script

if __name__ == "__main__":
    raise SystemExit(train_script("cells"))
