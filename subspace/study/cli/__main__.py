"""`python -m subspace.study.cli` is the command `subspace`."""

from subspace.study.cli import main

if __name__ == "__main__":  # worker processes import this module too, under another name
    main()
