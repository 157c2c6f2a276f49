"""The targets by name: which there are is known before anything is imported that is to be instrumented."""

GUIDED = ("tsv", "captions", "vocabulary", "importer", "predictions", "vectors", "manifest", "calibration", "config")
"""Those whose readers are our own Python, which atheris watches branch by branch."""
OTHERS = (
    "rows",
    "images",
    "regions",
    "detector",
    "shards",
    "index",
    "bundle",
    "checkpoint",
    "pictures",
    "service",
    "schema",
)
NAMES = (*GUIDED, *OTHERS)
