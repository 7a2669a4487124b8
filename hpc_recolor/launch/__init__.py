"""Training runs as SLURM jobs, or as jobs on this machine: submit, run on the nodes, watch, cancel, restart."""
