"""What a method did: tasks, figures with intervals, comparison with baselines, a report."""
