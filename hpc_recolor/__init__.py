"""Train colorizers of gray photographs, from one laptop to a SLURM cluster."""

__version__ = "0.1.0"
