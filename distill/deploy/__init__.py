"""Trained students in use: loaded, asked for classes, exported."""
