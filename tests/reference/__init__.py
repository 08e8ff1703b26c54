"""Slow, dense float64 twins of the methods, from the equations alone, independent of the package under test."""
