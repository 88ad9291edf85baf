"""`python -m weightspace`: the command line, as `torchrun -m weightspace` starts it on every process."""

from weightspace.cli import main

if __name__ == "__main__":
    main()
