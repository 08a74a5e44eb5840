"""What all commands have in common: help pages, completion, options before and after a name, errors and exit codes."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Capture, Medunet
from small import untrained_run
from typer.main import get_command

from medunet.cli import info
from medunet.cli.app import app
from medunet.io import write_volume

# each is rejected for its words alone, in one line
MISTYPED = (
    "nosuch",
    "predict unet_3d . -o new --nosuch",
    "predict unet_3d . -o new --device gpu",
    "predict unet_3d . -o new --uneven guess",
    "predict unet_3d . -o new --case-timeout 60",
    "predict nosuch . -o new",
    "predict unet_3d nosuch -o new",
    "predict unet_3d . -o new --ensemble nosuch",
    "predict unet_3d . -o new --set x",
    "predict unet_3d . -o new --force --skip-existing",
    "predict unet_3d . -o new --deidentify --pseudonym-key nosuch",
    "predict unet_3d . -o new --deidentify --pseudonym-table file",
    "predict unet_3d . -o file",
    "train nosuch --data .",
    "train unet_3d --data nosuch",
    "train unet_3d --data . --output other",
    "train unet_3d --data . --folds all --output other",
    "train unet_3d --data . --folds none",
    "train unet_3d --data . --fold 0 --folds all",
    "train unet_3d --data . --init-from nosuch",
    "train unet_3d --data . --set x",
    "train unet_3d --data . --device cuda:x",
    "train unet_3d --data . --quiet --verbose",
    "train unet_3d --data . --no-tracking --tracking-uri x",
    "tune unet_3d --data nosuch --trials 1 --set-range epochs=1|2",
    "tune unet_3d --data . --trials 1 --set-range epochs=1|2 --time soon",
    "plan nosuch -o new",
    "plan . -o other",
    "plan . -o new --dims 4",
    "plan . -o new --time 4 --memory 8GB",
    "plan . -o new --memory 8",
    "check nosuch",
    "check . --headers --sheet x.png",
    "check . --sheet file",
    "evaluate nosuch --data .",
    "evaluate unet_3d --data nosuch",
    "evaluate unet_3d --data . --cases some",
    "evaluate --pred nosuch --ref .",
    "evaluate --pred . --ref . --cases test",
    "evaluate --pred . --ref . --labels liver",
    "evaluate --pred . --ref . --labels liver=one",
    "evaluate",
    "report nosuch",
    "report unet_3d",
    "report run -o file",
    "report run --max-size big",
    "runs list --runs nosuch",
    "runs compare --runs nosuch",
    "runs best --runs nosuch",
    "runs resume mine --runs nosuch",
    "runs sync nosuch",
    "cache --limit 1GB",
    "cache --prune --unused 30",
    "cache --folder nosuch",
    "bundle init nosuch -o new",
    "bundle init unet_3d -o other",
    "bundle show nosuch",
    "bundle export nosuch --to onnx -o new",
    "bundle export unet_3d --to zip -o new",
    "bundle export unet_3d --to onnx -o new --image nosuch",
    "bundle package nosuch -o new",
    "bundle package unet_3d -o new.zip --nosuch",
    "bundle unpack nosuch -o new",
    "bundle verify nosuch",
    "measure nosuch",
    "get nosuch",
    "listen nosuch --store . -o new",
    "listen unet_3d --store nosuch -o new",
    "listen unet_3d -o new",
    "listen unet_3d --store . --dicom-port 11112 -o new",
    "listen unet_3d --store . -o new",
    "listen unet_3d --dicom-port 11112 -o new --host 0.0.0.0",
    "listen unet_3d --dicom-port 11112 -o new --send-to PACS:104",
    "listen unet_3d --dicom-port 11112 -o new --settle 5",
    "bundle import nosuch -o new",
    "bundle import . -o new --checkpoint last",
    "bundle to-nnunet nosuch -o Dataset001_New",
    "bundle tune-inference nosuch",
    "label serve nosuch --studies .",
    "label serve unet_3d --studies nosuch",
    "label serve unet_3d",
    "label setup --python",
)
WITHOUT_PATHS = {"demo", "info", "list"}
COMPLETIONS = {
    "medunet tra": "train",
    "medunet train unet_2": "unet_2015 unet_2d",
    "medunet train unet_3d --preset ": "few sgd_poly",
    "medunet train unet_3d --set learning_ra": "learning_rate=",
    "medunet predict ": "mine runs/first runs/folds hippocampus nuclei",
    "medunet predict runs/first . --device cuda:": "cuda:0",
    "medunet evaluate runs/first --cases v": "validation",
    "medunet -q plan . --verb": "--verbose",
    "medunet bundle show runs/fi": "runs/first",
}


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for inner_name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from commands(inner, f"{inner_name} ")
        elif not inner.hidden:
            yield name + inner_name, inner


COMMANDS = dict(commands(get_command(app)))


def without_torch(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that has `call(*words)`, which returns the exit code; the library must not be imported."""
    head = "import os, sys\nfrom medunet.cli.app import main\ndef call(*words):\n    sys.argv = ['medunet', *words]\n"
    head += "    try: main()\n    except SystemExit as end: return end.code or 0\n    finally:\n"
    head += "        assert not {'torch', 'monai', 'numpy'} & set(sys.modules), words\n"
    command = [sys.executable, "-c", head + program]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_mistyped_words_of_every_command_are_rejected_in_one_line_before_pytorch_is_imported(tmp_path: Path) -> None:
    assert all(any(line.startswith(name) for line in MISTYPED) for name in COMMANDS.keys() - WITHOUT_PATHS)
    for path in ("other/thesis.doc", "file", "run/configs/train.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    program = "assert call('--help') == 0\n"
    program += f"for line in {MISTYPED}: assert call(*line.split()) == 2, line\n"
    done = without_torch(program, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(MISTYPED), done.stderr
    assert all(line.startswith("error ") for line in lines), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"other", "file", "run"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_a_command_limits_how_long_threads_spin_before_pytorch_is_imported(
    given: dict[str, str], expected: str, tmp_path: Path
) -> None:
    unset = "for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'): os.environ.pop(name, None)\n"
    program = unset + f"os.environ |= {given}\ncall('--version')\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    done = without_torch(program, tmp_path)
    assert done.stdout.split()[-1] == expected, done.stderr


@pytest.fixture
def folder_of_runs(tmp_path: Path) -> Path:
    for name in ("runs/first/configs", "runs/folds/fold_0", "runs/notes", "mine/configs"):
        (tmp_path / name).mkdir(parents=True)
        if name.endswith("configs"):
            (tmp_path / name / "train.json").write_text('{"learning_rate": 0.1}')
    return tmp_path


def test_completion_offers_bundles_presets_runs_ids_and_choices(folder_of_runs: Path) -> None:
    program = "os.environ['_MEDUNET_COMPLETE'] = 'complete_bash'\n"
    program += f"for line in {list(COMPLETIONS)}:\n    words = line.split(' ')\n"
    program += (
        "    os.environ |= {'COMP_WORDS': line, 'COMP_CWORD': str(len(words) - 1)}\n    call()\n    print('---')\n"
    )
    done = without_torch(program, folder_of_runs)
    assert done.returncode == 0, done.stderr
    offered = [" ".join(block.split()) for block in done.stdout.split("---\n")[:-1]]
    assert dict(zip(COMPLETIONS, offered, strict=True)) == COMPLETIONS


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="bash is missing")
def test_bash_completes_with_the_script_that_medunet_prints(folder_of_runs: Path, tmp_path: Path) -> None:
    program = tmp_path / "medunet"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m medunet "$@"\n')
    program.chmod(0o755)
    script = 'eval "$(medunet --show-completion bash)"\nCOMP_WORDS=(medunet predict runs/fi)\nCOMP_CWORD=2\n'
    script += '_medunet_completion medunet\necho "${COMPREPLY[@]}"\n'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["/bin/bash", "--norc", "-c", script]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder_of_runs, env=environment, timeout=60, check=True
    )
    assert done.stdout.strip() == "runs/first", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_page_has_panels_terms_and_examples_that_parse(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.callback.examples) >= 2
    assert command.epilog
    for example in command.callback.examples:
        words = shlex.split(re.split(r" [|>] ", example)[0])
        length = 1 + len(name.split())
        assert " ".join(words[:length]) == f"medunet {name}"
        command.make_context(name, words[length:])  # raises if an option does not exist or a value is not valid
    for parameter in command.params:
        is_named = parameter.metavar is not None or parameter.type_descriptor.choices
        assert is_named, f"{parameter.name} shows the name of a type"


def test_quiet_and_verbose_work_before_and_after_the_name_of_a_command(
    tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    run = untrained_run(tmp_path / "run")
    image = write_volume(np.zeros((16, 16, 16), np.float32), tmp_path / "a.nii.gz", affine=np.eye(4))
    words = ["predict", run, image, "-o", tmp_path / "out", "--force"]
    for line in (["-q", *words], [*words, "--quiet"]):
        assert medunet(*line) == 0
        out, err = capsys.readouterr()
        assert out.startswith(str(tmp_path / "out" / "a.nii.gz"))
        assert (len(out.splitlines()), err) == (1, "")
    for line in (["-v", *words], [*words, "--verbose"]):
        assert medunet(*line) == 0
        assert "network " in capsys.readouterr().err
    assert medunet(*words) == 0
    err = capsys.readouterr().err
    assert "1 of 1 written" in err
    assert "network " not in err


def test_an_internal_error_is_one_line_that_says_what_a_report_needs(
    medunet: Medunet, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(info, "extras", fail)
    assert medunet("info") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error internal error: RuntimeError: first line; remedy: repeat with --debug")
    assert "medunet info" in line
    monkeypatch.setattr(sys, "argv", ["medunet", "info", "--debug"])
    from medunet.cli.app import main

    with pytest.raises(RuntimeError):
        main()


def test_ctrl_c_ends_any_command_with_its_exit_code(
    medunet: Medunet, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "extras", interrupt)
    assert medunet("info") == 130
    assert capsys.readouterr().err == "interrupted: rerun the same command to start again\n"
