"""``serve``: images of a finished run over HTTP, drawn by a stock engine that it starts."""

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mm_cca.cli.commands.engine_cache import cached_export
from mm_cca.cli.commands.engine_process import EngineProcess, running_engine
from mm_cca.cli.commands.engine_python import find_engine
from mm_cca.cli.commands.export_engine import EngineExport, refuse_dial
from mm_cca.cli.commands.image_server import PATH, ImageServer, open_server
from mm_cca.cli.commands.image_service import IN_FLIGHT, ImageService
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.draw import sampling_settings
from mm_cca.sampling.engine_server import EngineServer, ServerLost
from mm_cca.sampling.weights import load_image_parts


def serve(args: argparse.Namespace) -> int:
    """Run ``mm-cca serve``."""
    refuse_dial(args.dial, args.source)
    recipe, run = open_run(args.run)
    arm = Arm(args.source, 1.0, dial=args.dial)
    if arm.source != "base":
        run.trained_model(arm.source)  # before anything is loaded
    model = load_image_parts(recipe)
    python = find_engine(args.python, needs_plugin=model.engine_serving.needs_plugin)
    export, was_there = cached_export(recipe, run, model, arm)
    print(f"{export.folder} {'is used again' if was_there else 'was written'}", file=sys.stderr)
    log = export.folder.with_name(f"{arm.name}.log")
    arguments = (*export.arguments, *args.engine_args)
    settings = sampling_settings(recipe, arm, model.defaults)
    with _ended_by_signals(), running_engine(python, arguments, log) as engine:
        engine.wait_until_ready()
        service = ImageService(
            model, recipe, settings, export.served_name, _connect(engine), engine.why_dead
        )
        with open_server(service, args.host, args.port) as server:
            _announce(server, export)
            _serve_until_the_end(server, engine)
    return 0


def _connect(engine: EngineProcess) -> EngineServer:
    try:
        return EngineServer(engine.url, connections=IN_FLIGHT)
    except ServerLost as error:
        raise UserError(engine.why_dead() or f"the engine does not answer: {error}") from error


def _announce(server: ImageServer, export: EngineExport) -> None:
    host, port = server.server_address[:2]
    print(f"serving {export.served_name} at http://{host!s}:{port}{PATH} (Ctrl-C ends it)")
    print(f"engine: {export.command}", flush=True)


def _serve_until_the_end(server: ImageServer, engine: EngineProcess) -> None:
    """Answer until Ctrl-C, or until the engine has ended and its requests are refused.

    Raises:
        UserError: the engine has ended.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(server, engine, ended), daemon=True)
    watcher.start()
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print()
        return
    finally:
        ended.set()
    reason = engine.why_dead()
    if reason is not None:
        raise UserError(reason)


def _watch(server: ImageServer, engine: EngineProcess, ended: threading.Event) -> None:
    """End the server some seconds after the engine, when its requests have got their errors."""
    while not ended.wait(1.0):
        if engine.why_dead() is not None:
            ended.wait(5.0)
            server.shutdown()
            return


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that the engine is ended too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
