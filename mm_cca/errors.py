"""The exceptions that are shown to the user without a traceback."""


class UserError(Exception):
    """An error that the user can fix: what is wrong, the value, what is allowed, how to fix it."""


class Diverged(UserError):
    """NaN or infinity while training: this recipe stops, and a sweep continues with the next."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C while training: the state is saved, and the same command resumes."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of a GPU, or of torch's allocator on a CPU, which has no type of its own."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
