"""Images from several servers at once: a bounded number in flight, and none is lost with a server.

Every server has as many threads as it may have requests; all take from one list. A thread spends
its time waiting for an answer, so the interpreter's lock is no limit.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mm_cca.errors import UserError
from mm_cca.sampling.engine_requests import ImageRequest, ImageTask, codes_of
from mm_cca.sampling.engine_server import EngineServer, ServerLost

log = logging.getLogger(__name__)


class DrawnCodes(NamedTuple):
    """The [N] codes of one image."""

    request: ImageRequest
    codes: np.ndarray


def draw_codes(
    servers: Sequence[EngineServer],
    task: ImageTask,
    requests: Sequence[ImageRequest],
    *,
    in_flight: int,
    most: int,
) -> Iterator[list[DrawnCodes]]:
    """Draw every image on one of the servers, and give them in groups as they are answered.

    A server that fails for good is left out with a warning, and its images go to the others.

    Args:
        servers: that serve the task's model.
        task: what the images have in common.
        requests: the images, in any order.
        in_flight: most requests at a time for each server.
        most: images in a group; the last may have fewer.

    Raises:
        UserError: an answer is not an image of the layout, a request is refused, or no server is
            left. What was drawn before is given first.
    """
    pool = _Pool(requests, most_waiting=2 * in_flight * len(servers) + most)
    alive = [server for server in servers if not server.is_lost]
    if requests and not alive:
        raise UserError(f"no server of {', '.join(s.url for s in servers)} answers any more.")
    # In turn, so that few images are divided evenly, too.
    for server in alive * min(in_flight, len(requests)):
        threading.Thread(target=_work, args=(pool, server, alive, task), daemon=True).start()
    try:
        yield from pool.groups(most)
    finally:
        pool.stop()


def _work(
    pool: "_Pool", server: EngineServer, alive: Sequence[EngineServer], task: ImageTask
) -> None:
    """Draw images until there are none left or the server is lost."""
    while not server.is_lost and (request := pool.take()) is not None:
        try:
            pool.give(DrawnCodes(request, drawn_codes(server, task, request)))
        except ServerLost as error:
            pool.give_back(request)
            _leave_out(pool, server, alive, str(error))
        except BaseException as error:  # also a mistake of ours must end the waiting
            pool.fail(error)


def drawn_codes(server: EngineServer, task: ImageTask, request: ImageRequest) -> np.ndarray:
    """The [N] codes of one image.

    Raises:
        ServerLost: the server fails again and again.
        UserError: it refuses the request, or its answer is not an image of the layout.
    """
    answer = server.draw(server.dialect.body(task, request))
    try:
        tokens = server.dialect.tokens(answer)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{server.url} answers image {request.index} without token ids. {_HINT}"
        ) from error
    try:
        return codes_of(tokens, task)
    except UserError as error:
        raise UserError(
            f"{server.url} drew image {request.index} of {task.served} in another form than this "
            f"model's: {error}. {_HINT}"
        ) from error


_HINT = (
    "The server must know return_token_ids and structured_outputs.grammar (vLLM 0.11 or newer; "
    "SGLang with --grammar-backend llguidance), and serve the folder that `mm-cca export RUN DIR "
    "--for-engine` wrote. Images drawn before are kept."
)


def _leave_out(
    pool: "_Pool", server: EngineServer, alive: Sequence[EngineServer], problem: str
) -> None:
    with pool.change:
        if server.is_lost:
            return
        server.is_lost = True
        left = [other.url for other in alive if not other.is_lost]
    if left:
        log.warning(
            "%s is left out: %s. Its images go to %s.", server.url, problem, ", ".join(left)
        )
        return
    pool.fail(
        UserError(
            f"no engine is left to draw with; the last was {server.url}: {problem}\nFinished "
            "images are kept. Start the servers again and run the same command to resume."
        )
    )


class _Pool:
    """The images to draw and those that are drawn, shared by all threads."""

    def __init__(self, requests: Sequence[ImageRequest], *, most_waiting: int) -> None:
        self.change = threading.Condition()
        self._todo = deque(requests)
        self._drawn: deque[DrawnCodes] = deque()
        self._unfinished = len(requests)
        self._most_waiting = most_waiting
        self._failure: BaseException | None = None
        self._stopped = False

    def take(self) -> ImageRequest | None:
        """The next image, as soon as there is one: another server may yet give one back."""
        with self.change:
            self.change.wait_for(lambda: self._is_over() or self._has_room())
            return None if self._is_over() else self._todo.popleft()

    def _is_over(self) -> bool:
        return self._stopped or not self._unfinished or self._failure is not None

    def _has_room(self) -> bool:
        # Where decoding is slower than the engine, drawn codes must not fill the memory.
        return bool(self._todo) and len(self._drawn) < self._most_waiting

    def give(self, drawn: DrawnCodes) -> None:
        with self.change:
            self._drawn.append(drawn)
            self._unfinished -= 1
            self.change.notify_all()

    def give_back(self, request: ImageRequest) -> None:
        with self.change:
            self._todo.appendleft(request)
            self.change.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.change:
            self._failure = self._failure or error
            self.change.notify_all()

    def stop(self) -> None:
        with self.change:
            self._stopped = True
            self.change.notify_all()

    def groups(self, most: int) -> Iterator[list[DrawnCodes]]:
        """What is drawn, so many at once, until all is or something failed."""
        while True:
            with self.change:
                self.change.wait_for(
                    lambda: (
                        len(self._drawn) >= most
                        or not self._unfinished
                        or self._failure is not None
                    )
                )
                if not self._drawn:
                    break
                group = [self._drawn.popleft() for _ in range(min(most, len(self._drawn)))]
                self.change.notify_all()
            yield group
        if self._failure is not None:
            raise self._failure
