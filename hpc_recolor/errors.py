"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Bad input: one line that says key, value, reason and fix. Commands print it and exit with code 2."""
