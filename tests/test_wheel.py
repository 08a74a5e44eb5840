"""The wheel is complete: configs and bundles inside, and the demo runs without a checkout."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_demo_runs_from_the_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    wheel = zipfile.ZipFile(next(tmp_path.glob("medunet-*.whl")))
    assert not [name for name in wheel.namelist() if name.endswith((".pt", ".db")) or "/models/" in name]
    # the dependencies are this environment's; scripts/test_install.sh installs them afresh
    wheel.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    script = "import medunet, sys; sys.argv = ['medunet', 'demo', '--epochs', '1']\n"
    script += f"assert medunet.__file__.startswith({str(tmp_path)!r}), medunet.__file__\n"
    script += "from medunet.cli.app import main; main()"
    command, options = [sys.executable, "-c", script], {"cwd": tmp_path / "empty", "env": environment, "timeout": 300}
    done = subprocess.run(command, **options, capture_output=True, text=True, check=False)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr[-3000:]
    output = tmp_path / "empty" / "medunet_demo"
    page = (output / "report.html").read_text()
    assert "liver" in page
    assert not re.search(r"""(src|href)=["']?http""", page)
    assert (output / "run" / "models" / "model.pt").is_file()
