"""Words that several reports have for the same thing."""

from typing import Final

LAST_BLOCKS: Final = "the last sixth of the blocks, the final norm and the head"
"""What is trained without --full_parameter; see `zotune.hf.partial`."""

BEHIND: Final = "the last sixth of the blocks and what is behind them"
"""The same of a language model, whose head may be tied to the embeddings and is not trained then."""
