"""What the package costs, as ratios to a plain path measured in the same run; `python -m benchmarks` prints a table."""
