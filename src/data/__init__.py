"""TSV → batches."""
