"""``loomsight doctor``: what this machine has and what it lacks."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import loomsight
from loomsight.errors import LoomsightError, UsageError, WeightsError
from loomsight.machine import cores, processor

if TYPE_CHECKING:
    from loomsight.profile import Profile
    from loomsight.progress import Progress
    from loomsight.runtime.throughput import Speed

NEEDED_MEMORY = 4.0  # GB that learning stays under
NEEDED_DISK = 2.0  # GB for a run folder, a profile and the maps of a roll
GB = 1e9


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor.

    Attributes:
        name: what was looked at.
        ok: whether the machine has it.
        found: what was found.
        do: what to do when it is lacking; empty when it is there.
        essential: nothing works without it.
    """

    name: str
    ok: bool
    found: str
    do: str = ""
    essential: bool = False


def doctor(
    *,
    throughput: Annotated[
        bool,
        typer.Option(
            "--throughput", help="Measure how many metres a minute this machine inspects; a minute."
        ),
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="For --throughput: the fabric whose networks and gate are measured, on its own good cloth.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[float, typer.Option(help="Of the web in metres, for --throughput.")] = 1.8,
    mm_per_px: Annotated[
        float | None,
        typer.Option(
            help="Millimetres of cloth a pixel, for --throughput; the profile's, or 0.2.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Tell what this machine has and lacks for inspecting fabric, or how fast it inspects.

    Each line is 'ok' or 'lacks', with what to do. Leaves with 3 when something essential is lacking.

    Examples:
      loomsight doctor
      loomsight doctor --json
      loomsight doctor --throughput --width 1.8 --mm-per-px 0.2
      loomsight doctor --throughput --profile twill
    """
    if profile is not None and not throughput:
        raise UsageError("--profile goes with --throughput", do="loomsight doctor --throughput --profile …")
    for option, given in (("--width", width), ("--mm-per-px", mm_per_px)):
        if given is not None and not 0 < given < float("inf"):
            raise UsageError(f"bad {option}", where=f"{given:g}", why="it must be a number above 0")
    if throughput:
        _throughput(profile, width, mm_per_px, as_json)
        return
    checks = list(examine())
    healthy = all(check.ok for check in checks if check.essential)
    if as_json:
        value = {"ok": healthy, "checks": [asdict(check) for check in checks]}
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            line = f"{'ok' if check.ok else 'lacks':5}  {check.name:{width}}  {check.found}"
            typer.echo(line if check.ok else f"{line} → {check.do}")
        typer.echo("\nReady." if healthy else "\nSomething essential is lacking: see the lines above.")
    if not healthy:
        raise typer.Exit(LoomsightError.exit_code)


_ENGINES = {
    "torch": "torch, as learned",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO float32",
    "openvino-fp16": "OpenVINO float16",
    "openvino-int8": "OpenVINO INT8",
    "gated": "INT8 behind a gate",
}


def _throughput(folder: Path | None, width: float, mm_per_px: float | None, as_json: bool) -> None:
    """Measure a profile, or the segmenter alone, in every runtime, and say how fast a web may run."""
    from loomsight.profile import Profile
    from loomsight.progress import for_stream
    from loomsight.runtime.throughput import PASSING, metres_per_minute, of_machine

    profile = None if folder is None else Profile.open(folder)
    mm_per_px = mm_per_px or (profile.scale if profile is not None else None) or 0.2
    with for_stream() as progress:
        speeds = of_machine(progress=progress) if profile is None else _of_profile(profile, progress)
    rows = {
        name: {
            "best": round(speed.best, 1),
            "median": round(speed.median, 1),
            "metres_per_minute": round(
                metres_per_minute(speed.median, width_m=width, mm_per_px=mm_per_px), 1
            ),
        }
        for name, speed in speeds.items()
    }
    if as_json:
        machine = {"cores": cores(), "processor": processor(), "width_m": width, "mm_per_px": mm_per_px}
        typer.echo(json.dumps({**machine, "engines": rows}, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{cores()} cores of {processor()}; a web of {width:g} m at {mm_per_px:g} mm per pixel")
    typer.echo(f"{'':22}{'Mpx/s':>8}{'best':>8}{'m/min':>9}")
    for name, row in rows.items():
        line = f"{row['median']:8.1f}{row['best']:8.1f}{row['metres_per_minute']:9.1f}"
        typer.echo(f"{_ENGINES[name] if profile is None or name != 'gated' else 'behind its gate':22}{line}")
    if profile is None:
        said = f"Behind a gate: computed for cloth of which {PASSING:.0%} has to be looked at."
        typer.echo(f"The segmenter alone, from pictures in memory. {said}")
    else:
        beside = "; without its detector" if profile.card.detector is not None else ""
        typer.echo(f"All networks of {profile.name}, on the good cloth that it keeps, in memory{beside}.")


def _of_profile(profile: Profile, progress: Progress) -> dict[str, Speed]:
    """A profile in every runtime that it was exported for, and the fastest behind its gate."""
    from loomsight.card import EXPORTS
    from loomsight.runtime.throughput import by_turns, scoring

    pictures = profile.samples()
    if not pictures:
        raise UsageError(
            "nothing to measure on", where=profile.folder, why="it keeps no pictures of its cloth"
        )
    contenders = {"torch": scoring(profile.engine("torch", largest="measured"), pictures)}
    for name, (format_, precision) in EXPORTS.items():
        if any(
            (one.network, one.format, one.precision) == ("segmenter", format_, precision)
            for one in profile.card.engines
        ):
            contenders[name] = scoring(profile.engine(name, largest="measured"), pictures)
    if profile.fastest != "torch":
        gated = profile.gated(profile.engine(profile.fastest), audits=False)
        if gated is not None:
            contenders["gated"] = scoring(gated, pictures)
    return by_turns(contenders, rounds=5, progress=progress)


def examine(folder: Path | None = None) -> Iterator[Check]:
    """Look at this machine, one thing after another.

    Args:
        folder: where results would be written; the current folder if None.
    """
    folder = folder or Path.cwd()
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Check(
        "Python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer", essential=True
    )
    yield Check("loomsight", True, loomsight.__version__)
    yield from _torch()
    yield _memory()
    yield from _weights()
    yield _video()
    yield _disk(folder)
    yield _writing(folder)


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch does not load
        yield Check(
            "torch",
            False,
            f"does not load: {error}",
            "pip install -c constraints.txt loomsight",
            essential=True,
        )
        return
    yield Check("torch", True, torch.__version__, essential=True)
    yield Check("processor", True, f"{cores()} cores, torch uses {torch.get_num_threads()} threads")
    yield _bf16(torch.cpu.get_capabilities())
    if torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory / GB
        yield Check("GPU", True, f"{torch.cuda.get_device_name(0)}, {size:.0f} GB")
    else:
        yield Check("GPU", False, "none that torch can use", "not needed; learning takes minutes longer")


def _bf16(capabilities: Mapping[str, object]) -> Check:
    units = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if capabilities.get(name)]
    if units:
        return Check("bf16 on processor", True, ", ".join(units))
    return Check("bf16 on processor", False, "no such unit", "not needed; learning runs in float32, slower")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    total = min(memory.total, _container_limit() or memory.total) / GB
    found = f"{total:.1f} GB, {min(memory.available / GB, total):.1f} GB free"
    return Check("memory", total >= NEEDED_MEMORY, found, f"learning needs up to {NEEDED_MEMORY:.0f} GB")


def _container_limit() -> int | None:
    """The memory limit of the Linux container that this runs in, bytes; None without one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _weights() -> Iterator[Check]:
    from loomsight.backbones.weights import LITE0, PRETRAINED

    for file in PRETRAINED:
        essential = file == LITE0
        try:
            file.verified()
        except WeightsError as error:
            found = error.why or "not installed"
            yield Check(file.network, False, found, file.install, essential)
        else:
            yield Check(file.network, True, f"sha256 {file.sha256[:12]}…, as known", essential=essential)


def _video() -> Check:
    """Write two frames and read them back: a build without codecs imports well and fails in the mill."""
    try:
        import cv2
        import numpy as np
    except (ImportError, OSError) as error:
        return Check(
            "OpenCV", False, f"does not load: {error}", "pip install opencv-python-headless", essential=True
        )
    name = f"OpenCV {cv2.__version__}"
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "two_frames.avi")
        writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
        for value in (60, 180):
            writer.write(np.full((48, 64, 3), value, np.uint8))
        writer.release()
        video = cv2.VideoCapture(path)
        ok = video.read()[0] and video.read()[0]
        video.release()
    if ok:
        return Check(name, True, "decodes video")
    return Check(name, False, "does not decode video", "pip install --force-reinstall opencv-python-headless")


def _disk(folder: Path) -> Check:
    try:
        free = shutil.disk_usage(folder).free / GB
    except OSError as error:
        return Check("disk", False, f"{folder}: {(error.strerror or str(error)).lower()}", "choose a folder")
    return Check("disk", free >= NEEDED_DISK, f"{free:.1f} GB free in {folder}", "free some space")


def _writing(folder: Path) -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".loomsight-"):
            return Check("writing", True, str(folder), essential=True)
    except OSError as error:
        found = f"{folder}: {(error.strerror or str(error)).lower()}"
        return Check("writing", False, found, "work in a folder of your own", essential=True)
