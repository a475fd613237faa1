"""The tables that stand in README and docs, from committed results."""
