"""`python -m distill`: the command `distill`."""

from distill.cli.commands import distill

if __name__ == "__main__":
    distill()
