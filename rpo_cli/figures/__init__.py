"""Experiments: choose on validation, evaluate on test, keep, claim, draw."""
