"""One script per paper: its claims, measured. Run by hand; each keeps what it measured in runs/ and
goes on where it was stopped."""
