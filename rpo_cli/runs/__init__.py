"""Making artifacts: plan, check, run, report."""
