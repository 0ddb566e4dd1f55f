"""The commands `fixedpoint-score` and `fixedpoint-rescore`: what they read and write."""
