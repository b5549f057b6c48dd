"""Speed claims, one script each: ours and theirs interleaved in one run, medians, the ratio
printed."""
