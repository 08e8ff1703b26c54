"""The report of a comparison: figures, tables and one page."""
