"""Tools of the repository; what Python runs of them is in `scripts.benchmarks`."""
