"""What a method did: tasks, metrics with intervals, comparison with baselines, a report."""
