"""`python -m rpo_cli.cli`, where no console script is installed."""

from rpo_cli.cli.program import entry

if __name__ == "__main__":
    entry()
