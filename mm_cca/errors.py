"""The one exception that is shown to the user without a traceback."""


class UserError(Exception):
    """Something the user can put right: what is wrong, the value, what is allowed, how to fix it."""
