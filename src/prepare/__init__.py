"""Makes data sets in the TSV form: `python -m src.prepare --help` lists them."""
