"""The exceptions that are shown to the user without a traceback."""


class UserError(Exception):
    """Something the user can put right: what is wrong, the value, what is allowed, the fix."""


class Diverged(UserError):
    """NaN or infinity while training: this recipe can't go on, another one can."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C while training: the state is saved, the same command goes on from it."""
