"""Speed and memory beside named baselines: `python -m benchmarks`. A package of ours by this file: old pyarrow brings another."""
