"""Runs of several methods on the same data at the same budget, and what they say: `zotune compare`."""
