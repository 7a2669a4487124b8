"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Bad input: one line that says key, value, reason and fix. Commands print it and exit with code 2."""


class RankError(UserError):
    """What one rank alone may meet, so that this rank says it. Others are met by all ranks, and rank 0 says them."""
