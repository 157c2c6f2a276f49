"""Speed and memory beside named baselines. A package by this file, since old pyarrow brings another of its name."""
