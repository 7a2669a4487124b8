"""Exit codes of all commands."""

# A rank failed or hung; earlier checkpoints stay.
FAILED = 1
# Bad input: one line on stderr says what, nothing was written.
BAD_INPUT = 2
# Losses or gradients stayed non-finite: the last good checkpoint stays.
DIVERGED = 3
# EX_TEMPFAIL of sysexits.h: the state is saved, and the same command continues from there.
STOPPED = 75
# 128 + SIGINT, as shells report it.
INTERRUPTED = 130
