"""What a run records: metrics, boards, warnings."""
