"""Ways to align: in the prompt, in the weights, on next-token scores, over sequences. One file per
family."""
