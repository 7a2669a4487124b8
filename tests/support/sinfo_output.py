"""Output of sinfo on other clusters."""

# SLURM 22.05, GPUs on some nodes; the last row is from a cluster whose nodes did not register.
MIXED = """\
sinfo: error: Ignoring ControlMachine since SlurmctldHost is set.
main*|up|1-00:00:00|1:00:00|1|idle~|2|1000|(null)|cpu
main*|up|1-00:00:00|1:00:00|1|mixed#|8|4000|gpu:a100:4|a100,nvme
main*|up|1-00:00:00|1:00:00|1|idle*|8|4000|gpu:v100:2|v100
main*|up|1-00:00:00|1:00:00|1|idle|8|4000|gpu:v100:2|v100
main*|up|1-00:00:00|1:00:00|2|inval|16|8000|gpu:v100:8|v100,big
"""
