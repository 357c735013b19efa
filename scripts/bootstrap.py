"""
Make ``.venv`` and install the project into it, with the extras named as arguments; nothing is done where it is current.

Standard library only, Python 3.11 or newer. A stamp per set of extras (a hash of ``pyproject.toml``,
``constraints.txt``, the Python and the folder) says what is current, so a second run needs no network. ``uv`` is used
where it is found, ``pip`` otherwise. Must never touch anything outside ``.venv``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
LINES_SHOWN = 12


def main(extras: list[str]) -> int:
    """Exit code 0 when ``.venv`` holds the project with the extras, 1 with the reason on stderr."""
    stamp, wanted = VENV / ".m17" / "+".join(["base", *sorted(extras)]), _fingerprint()
    if _is_current(stamp, wanted):
        return 0
    VENV.mkdir(exist_ok=True)
    lock = os.open(VENV, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another script may be at it: wait, then look again
        if _is_current(stamp, wanted):
            return 0
        if not _works():
            _make_venv()
        _install(extras)
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(wanted)
    except InstallError as error:
        print(f"\nThe environment in {VENV} could not be made: {error}", file=sys.stderr)
        return 1
    finally:
        os.close(lock)
    return 0


class InstallError(Exception):
    """What failed, and what to do; for people."""


def _fingerprint() -> str:
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def _is_current(stamp: Path, wanted: str) -> bool:
    return stamp.is_file() and stamp.read_text() == wanted and PYTHON.exists()


def _works() -> bool:
    """Whether ``.venv`` has a Python that runs and is new enough; a moved or half-made one does not."""
    check = "import sys; sys.exit(sys.version_info < (3, 11) or sys.prefix == sys.base_prefix)"
    try:
        return subprocess.run([PYTHON, "-c", check], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _make_venv() -> None:
    python = getattr(sys, "_base_executable", sys.executable)
    say(f"making .venv with Python {sys.version.split()[0]}")
    for entry in VENV.iterdir():  # not the folder itself: the lock is on it
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    made = subprocess.run([python, "-m", "venv", VENV], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        return
    uv = shutil.which("uv")
    if uv and subprocess.run([uv, "venv", "--quiet", "--clear", "--python", python, VENV], check=False).returncode == 0:
        return
    # Some distributions ship Python without ensurepip: their pip, where there is one, can install into a bare venv.
    bare = subprocess.run([python, "-m", "venv", "--without-pip", VENV], capture_output=True, text=True, check=False)
    if bare.returncode == 0 and _pip() is not None:
        return
    reason = (made.stdout + made.stderr).strip().splitlines()[-1:] or ["no reason given"]
    raise InstallError(
        f"{python} -m venv failed ({reason[0]}). Install the venv package of your distribution "
        f"(Debian, Ubuntu: apt install python3-venv), or uv, and run this again."
    )


def _pip() -> list[str] | None:
    """The pip inside ``.venv``, or the one outside told to install there."""
    if subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return [str(PYTHON), "-m", "pip"]
    outside = [getattr(sys, "_base_executable", sys.executable), "-m", "pip", "--python", str(PYTHON)]
    return (
        outside if subprocess.run([*outside, "--version"], capture_output=True, check=False).returncode == 0 else None
    )


def _install(extras: list[str]) -> None:
    what = ["-c", "constraints.txt", "-e", f".[{','.join(extras)}]" if extras else "."]
    uv, pip = shutil.which("uv"), _pip()
    say("installing " + (f"with the extras {', '.join(extras)}" if extras else "what M17 needs") + ", once")
    commands = []
    if uv is not None:
        commands.append([uv, "pip", "install", "--python", str(PYTHON), *what])
    if pip is not None:
        commands.append([*pip, "install", "--disable-pip-version-check", "--no-input", *what])
    if not any(_run(command) for command in commands):  # uv reads no pip configuration: pip has the last word
        tail = LOG.read_text(errors="replace").splitlines()[-LINES_SHOWN:] if LOG.exists() else ["neither pip nor uv"]
        raise InstallError(
            "\n  "
            + "\n  ".join(tail)
            + f"\nA first run needs a package index within reach (PyPI or a mirror that pip is "
            f"configured for) and about 2 GB of disk. The whole log: {LOG}"
        )
    say("")


def _run(command: list[str]) -> bool:
    """Run an installer with its output in the log and, on a terminal, its last line shown."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    with LOG.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            say(line.strip(), passing=True)
    return process.wait() == 0


def say(text: str, *, passing: bool = False) -> None:
    """Tell how far it is, on stderr; a passing line is shown on a terminal only and overwritten by the next."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r\x1b[K" + f"M17: {text}"[:width] if text else "\r\x1b[K")
        sys.stderr.flush()
    elif text and not passing:
        print(f"M17: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
