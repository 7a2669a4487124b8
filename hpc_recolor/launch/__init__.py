"""Runs as jobs, on SLURM or locally."""
