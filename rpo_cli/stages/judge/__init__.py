"""Verdicts of a judge on evaluated samples, and win rates."""
