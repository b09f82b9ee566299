"""The exceptions that are shown to the user without a traceback."""


class UserError(Exception):
    """An error that the user can fix: what is wrong, the value, what is allowed, how to fix it."""


class Diverged(UserError):
    """NaN or infinity while training: this recipe stops, and a sweep continues with the next."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C while training: the state is saved, and the same command resumes."""
