"""The commands `fixedpoint-score` and `fixedpoint-rescore`: options, and nothing else."""
