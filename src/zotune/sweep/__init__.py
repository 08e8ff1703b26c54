"""Search for the settings of methods at a given budget, with Optuna: `zotune sweep`."""

import logging

# As the command line has it, which the processes of --jobs do not pass: what an optional library says at its import.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
