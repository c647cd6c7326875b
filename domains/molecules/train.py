"""Train on molecules: `python -m consilience.domains.molecules.train --help`; options as in `consilience train`."""

from consilience.domains.script import train_script

if __name__ == "__main__":
    raise SystemExit(train_script("molecules"))
