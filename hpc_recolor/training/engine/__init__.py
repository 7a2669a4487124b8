"""DeepSpeed engines, their configuration and their state."""
