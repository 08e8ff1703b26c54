"""Search for the settings of methods at a given budget, with Optuna: `zotune sweep`."""
