"""The packages that a machine with PyTorch and NumPy lacks, as wheels for scripts/gpu_first.py.

    python -m scripts.gpu.wheels FOLDER [NAME ...]

The names are those of further packages that the machine has, such as scipy and scikit-image.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NEEDED = (
    *("monai", "pytorch-ignite", "nibabel", "pydicom", "safetensors", "scipy", "scikit-image", "pillow"),
    *("tifffile", "imagecodecs", "matplotlib", "psutil", "pyyaml", "jinja2", "jsonschema", "fire", "typer", "rich"),
    *("lazy-loader", "pytest"),
)
PRESENT = ("torch", "numpy")  # with everything that they need
MAX_MIB = 60.0
PYTHON = "3.12"
ENVIRONMENT = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.3", "extra": ""}
ENVIRONMENT |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")
PLATFORMS += ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def _names(lines: Iterable[str]) -> list[str]:
    """Return the names of the requirements that apply to the GPU machine."""
    found = map(Requirement, lines)
    return [canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate(ENVIRONMENT)]


def closure(names: Iterable[str], *, without: Iterable[str] = ()) -> set[str]:
    """Return packages and all that they need, by what is installed here."""
    todo, done, left_out = [canonicalize_name(name) for name in names], set[str](), set(without)
    while todo:
        name = todo.pop()
        if name in done or name in left_out:
            continue
        try:
            todo += _names(requires(name) or ())
        except PackageNotFoundError:  # such as Triton on a CPU: nothing here needs it
            continue
        done.add(name)
    return done


def pack(folder: Path, *, present: Sequence[str] = ()) -> str:
    """Download the wheels and check them; return what they are."""
    there = closure([*PRESENT, *present])
    wanted = sorted(closure(NEEDED, without=there))
    tags = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *tags]
    pins = [f"{name}=={version(name)}" for name in wanted]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(folder), *pins], check=True)
    return check(folder, there)


def check(folder: Path, present: Iterable[str]) -> str:
    """Return the size of the wheels; end the program if they are too large or incomplete."""
    wheels = sorted(folder.glob("*.whl"))
    names = {canonicalize_name(wheel.name.split("-")[0]) for wheel in wheels} | set(present)
    missing = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            [path] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            lines = Parser().parsestr(archive.read(path).decode()).get_all("Requires-Dist") or []
        missing |= {f"{name} (of {wheel.name})" for name in _names(lines) if name not in names}
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    if missing:
        sys.exit(f"wheels are missing: {', '.join(sorted(missing))}")
    if size > MAX_MIB:
        largest = sorted(wheels, key=lambda wheel: -wheel.stat().st_size)[:4]
        shown = ", ".join(f"{wheel.name} {wheel.stat().st_size / 2**20:.0f} MiB" for wheel in largest)
        sys.exit(f"{size:.0f} MiB of wheels, at most {MAX_MIB:.0f}; name what the machine has: {shown}")

    return f"{len(wheels)} wheels, {size:.1f} MiB"


if __name__ == "__main__":
    print(pack(Path(sys.argv[1]), present=sys.argv[2:]))
