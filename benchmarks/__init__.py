"""Speed and memory, measured as ratios to named baselines within one run: `python -m benchmarks --help`."""
