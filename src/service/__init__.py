"""The service: pictures come over HTTP, captions go back; `python -m src.serve` runs it."""
