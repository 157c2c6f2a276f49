"""Captionary: pictures and sentences in, a captioner out. Run from the repository's root: `python -m src.train`."""

__version__ = "0.1.0"
