"""The command line: parse, call one function, print. Nothing heavy is imported at module level."""

from rpo_cli.cli.program import app, entry
