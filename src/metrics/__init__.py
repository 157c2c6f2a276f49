"""Captions and references to scores: BLEU, METEOR, ROUGE-L and CIDEr-D as pycocoevalcap computes them."""
