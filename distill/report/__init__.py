"""Sweeps as people read them: figures and a page, from files alone."""
