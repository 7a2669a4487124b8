"""The doctor's checks of data sets and machines, and trials of nodes."""
