import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from loomsight import __version__, cli
from loomsight.cli import app
from loomsight.cli.doctor import Check, examine
from loomsight.errors import ImageError

WRITTEN = [name for name in app.COMMANDS if find_spec(f"loomsight.cli.{name}")]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    shown = capsys.readouterr()
    return left.value.code, shown.out, shown.err  # type: ignore[return-value]


def seconds(*words: str) -> float:
    """The processor time of Python with ``words``, the least of three: a busy machine is not measured."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


def test_help_starts_at_once() -> None:
    assert seconds("-c", "import loomsight") < 0.3
    assert seconds("-m", "loomsight", "--help") < 0.6


def test_help_of_no_command_loads_what_only_its_work_needs() -> None:
    code = (
        "import sys; from loomsight.cli import app\n"
        "root = app.command(); context = root.make_context('loomsight', [], resilient_parsing=True)\n"
        "print(root.get_help(context))\n"
        "print([name for name in ('torch', 'cv2', 'scipy', 'h5py', 'PIL') if name in sys.modules])\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
    for name in WRITTEN:
        assert f"\n  {name} " in shown


GROUPS = {"data": ("check",), "train": ("base",), "weave": ("cloth", "roll", "dataset")}


@pytest.mark.parametrize(
    "words", [(name, *below) for name in WRITTEN for below in ([(b,) for b in GROUPS.get(name, ())] or [()])]
)
def test_every_command_has_help_with_a_summary_and_examples(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: loomsight {' '.join(words)}" in out
    assert f"    loomsight {' '.join(words)}" in out.partition("Examples:")[2]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"loomsight {__version__}\n", "")
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert out == run(capsys, "--help")[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["doctr"], "loomsight: no such command: doctr: the nearest is doctor (see 'loomsight --help')"),
        (["doctor", "--jso"], "loomsight: No such option: --jso"),
        (["data", "check"], "loomsight: Missing argument"),
        (["data", "chek"], "loomsight: No such command 'chek'"),
        (["--debg"], "loomsight: No such option: --debg"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_failure_is_one_json_object_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "data", "check", "/no/such/布", "--json")
    error = json.loads(out)["error"]
    assert (code, err) == (error["exit_code"], "")
    assert code in (2, 3)
    assert error["where"] == "/no/such/布"
    assert set(error) == {"type", "message", "what", "where", "why", "do", "exit_code"}


def fail(error: BaseException) -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ImageError("cannot read", where="a.png"), 3, "loomsight: cannot read: a.png\n"),
        (KeyboardInterrupt(), 130, "loomsight: stopped\n"),
        (
            MemoryError(),
            3,
            "loomsight: out of memory (close other programs; 'loomsight doctor' tells what is needed)\n",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            3,
            "loomsight: out of memory (close other programs; 'loomsight doctor' tells what is needed)\n",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/a"),
            3,
            "loomsight: cannot write: /out/a: the disk is full (free some space)\n",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/out/a"),
            3,
            "loomsight: cannot read or write: /out/a: permission denied\n",
        ),
        (
            KeyError("threshold"),
            3,
            "loomsight: this is a bug: KeyError: 'threshold' "
            "(run the same command with --debug and report what it prints)\n",
        ),
    ],
)
def test_whatever_goes_wrong_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["learn"], fail(error)) == code
    assert capsys.readouterr().err == line


def test_a_traceback_comes_only_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["learn"], fail(KeyError("threshold")), debug=True)
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("loomsight: this is a bug")
    assert "Traceback" in run(capsys, "data", "check", "/no/such", "--debug")[2]
    assert "Traceback" not in run(capsys, "data", "check", "/no/such")[2]


def test_a_reader_that_has_gone_is_no_failure() -> None:
    command = [sys.executable, "-m", "loomsight", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == cli.READER_GONE


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", cli.TERMINATED), ("SIGHUP", 129)])
def test_a_service_that_is_stopped_cleans_up(tmp_path: Path, name: str, code: int) -> None:
    program = (
        "import sys, time; from pathlib import Path; from loomsight import cli, files\n"
        "def command(words):\n"
        "    with files.new_folder(Path(words[0])) as work:\n"
        "        (work / 'half').write_text('1'); print('ready', flush=True); time.sleep(30)\n"
        "cli.stop_politely(); cli.run(sys.argv[1:], command)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(getattr(signal, name))
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_knows_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    checks = {check["name"]: check for check in report["checks"]}
    assert (code, report["ok"]) == (0, True)
    assert checks["torch"]["ok"]
    assert checks["EfficientNet-Lite0 (ImageNet)"]["found"].startswith("sha256 579344248a93")
    assert all(check["do"] for check in report["checks"] if not check["ok"])
    lines = run(capsys, "doctor")[1].splitlines()
    assert [line[:5].strip() for line in lines[: len(checks)]] == [
        "ok" if check["ok"] else "lacks" for check in report["checks"]
    ]


def test_the_doctor_finds_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    found: dict[str, Check] = {check.name: check for check in examine(gone)}
    assert not found["writing"].ok
    assert found["writing"].essential
    assert "no such file or directory" in found["writing"].found
    assert not found["disk"].ok


@pytest.mark.parametrize(
    ("given", "waits"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_give_their_core_to_another_program_unless_told_otherwise(
    given: dict[str, str], waits: str
) -> None:
    plain = {
        key: value for key, value in os.environ.items() if key not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    }
    said = "import loomsight, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", said], env=plain | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == waits
