"""Recipes on TRL and PEFT that make vectors. Needs the extra `fader[train]`."""
