"""What a run has on disk: files, lock, metrics, checkpoints."""
