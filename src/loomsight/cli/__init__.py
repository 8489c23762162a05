"""The command line: thin commands, one line for every failure.

How a command is made
    ``loomsight NAME`` is the function ``NAME`` of the module ``loomsight.cli.NAME``, listed in
    :data:`loomsight.cli.app.COMMANDS`; a module with sub-commands has a ``typer.Typer`` called
    ``app`` instead. The module is imported for ``--help`` too, so it imports at its top only typer,
    the standard library and the ground floor; everything heavy is imported inside the function.

    Parameters are ``Annotated[T, typer.Argument(help=…)]`` or ``typer.Option``. The docstring is the
    help: its first line stands in the list of commands, and what follows a line ``Examples:`` is
    printed as it stands and goes into the reference.

    A command returns None and prints its result on stdout; progress goes to stderr. It raises
    ``typer.Exit(1)`` when the cloth failed its policy, and lets every
    :class:`~loomsight.errors.LoomsightError` pass: :func:`main` turns it into one line on stderr,
    ``loomsight: what: where: why (do)``, or with the command's ``--json`` into
    ``{"error": {…}}`` on stdout, and into the exit code.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from loomsight.errors import LoomsightError, StorageError, UsageError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM
READER_GONE = 141  # 128 + SIGPIPE: what follows in the pipe has had enough


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    0 done, 1 the cloth failed its policy, 2 a wrong argument, 3 could not, 130 stopped by Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words  # taken before or after the command's name
    words = [word for word in words if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name that is no UTF-8 must not stop a command
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        stop_politely()
    sys.exit(run(words, debug=debug))


def stop_politely() -> None:
    """Let SIGTERM and a closed terminal unwind the program, so that it leaves nothing half-written."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))


def run(words: list[str], command: Callable[[list[str]], int] | None = None, *, debug: bool = False) -> int:
    """Run ``command``, loomsight's own if None, with ``words``; tell a failure; return the exit code."""
    try:
        code = (command or _command)(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _tell(LoomsightError("stopped"), words, debug=debug, code=INTERRUPTED)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more on its way out; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except Exception as error:  # the outermost boundary: whatever went wrong becomes one line
        failure = _failure(error)
        _tell(failure, words, debug=debug, code=failure.exit_code)
        return failure.exit_code
    return code


def _command(words: list[str]) -> int:
    import typer

    from loomsight.cli.app import command

    root = command()
    try:
        with root.make_context("loomsight", words) as context:
            result = root.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return result if isinstance(result, int) else 0


def _failure(error: Exception) -> LoomsightError:
    """What a failure is called: an expected one is itself, everything else is sorted here."""
    import typer

    if isinstance(error, LoomsightError):
        return error
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "loomsight"
        return UsageError(error.format_message().rstrip("."), do=f"see '{path} --help'")
    if isinstance(error, typer.Abort):
        return LoomsightError("stopped")
    return _of_the_machine(error) or LoomsightError(
        "this is a bug",
        why=f"{type(error).__name__}: {error}"[:300],
        do="run the same command with --debug and report what it prints",
    )


def _of_the_machine(error: Exception) -> LoomsightError | None:
    """The failure of a machine that is too small, too full or closed to the user; None for any other."""
    # torch and OpenCV tell that memory is short in errors of their own.
    told = any(
        words in str(error) for words in ("can't allocate memory", "out of memory", "Failed to allocate")
    )
    if isinstance(error, MemoryError) or told:
        return LoomsightError(
            "out of memory", do="close other programs; 'loomsight doctor' tells what is needed"
        )
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            "cannot write", where=error.filename, why="the disk is full", do="free some space"
        )
    return LoomsightError("cannot read or write", where=error.filename, why=os.strerror(error.errno).lower())


def _tell(failure: LoomsightError, words: list[str], *, debug: bool, code: int) -> None:
    if debug:
        traceback.print_exc()
    if "--json" in words:
        where = None if failure.where is None else str(failure.where)
        error = {
            "type": type(failure).__name__,
            "message": str(failure),
            "what": failure.what,
            "where": where,
            "why": failure.why,
            "do": failure.do,
            "exit_code": code,
        }
        print(json.dumps({"error": error}, ensure_ascii=False), flush=True)  # noqa: T201
    else:
        print(f"loomsight: {failure}", file=sys.stderr, flush=True)  # noqa: T201
