"""What a process is: its errors, exit codes, ranks, signals and progress."""
