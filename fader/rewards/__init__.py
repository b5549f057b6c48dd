"""Rewards: how good a text is as an answer to its prompt."""
