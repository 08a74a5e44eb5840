"""The tests that need CUDA."""

import subprocess
import sys

from scripts.gpu.measure import Job

FILES = (
    "tests/runtime/test_autocast.py",
    "tests/transforms/test_intensity.py",
    "tests/transforms/test_spatial.py",
    "tests/prediction/test_steps.py",
    "tests/inferers/test_overlap_tile.py",
    "tests/planning/test_plan.py",
    "tests/runs/test_cuda_training.py",
)


def tests(job: Job) -> None:
    """Run the tests marked `cuda`, file by file in this order, so that the first results remain if time runs out."""
    # as the package's own tests, but warnings of the libraries of this machine are no errors
    options = ["-q", "-m", "cuda", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--tb=short"]
    for files in job.size([[file] for file in FILES], [FILES]):
        command = [sys.executable, "-m", "pytest", *options, *(["--collect-only"] if job.pretend else []), *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr, flush=True)
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        job.emit(" ".join(files), lines[-1].strip(" =") if lines else done.stderr.strip()[-200:])
        job.failed |= done.returncode != 0
