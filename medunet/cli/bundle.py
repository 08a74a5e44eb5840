"""`medunet bundle`: init, import, show, render, verify, tune-inference, unpack; `export.py` has export and package."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from medunet.cli import export
from medunet.cli import options as opt
from medunet.cli.output import print_json, with_json
from medunet.cli.registry import add, examples, group
from medunet.config import parse_settings
from medunet.errors import ConfigError
from medunet.files import check_target, reject_other_files, require_path
from medunet.resources import find_bundle

SIZE_HELP = "Voxels per axis of the timed window. Default: 96; in 2D 512."
MODEL_HELP = "Folder with plans.json, fold_0, ...; several whose models divide the classes become one bundle."
ANY_TRAINER_HELP = "Accept a trainer that nnU-Net does not ship, if it builds the network of the plan."
COMPILE_HELP = "Also time torch.compile, on CUDA also with CUDA graphs: a minute each, and needs a C++ compiler."


@examples("medunet bundle init unet_3d -o mine", "medunet bundle init unet_3d -o mine --preset few --set epochs=50")
def init(
    bundle: opt.Bundle,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    preset: opt.Preset = None,
    settings: opt.Set = None,
    trust: opt.Trust = False,
) -> None:
    """Create a self-contained copy of a bundle with changed values."""
    folder, changes = find_bundle(bundle), parse_settings(settings)
    reject_other_files(output, own="configs")
    check_target(output)
    from medunet.bundle import specialise

    specialise(folder, output, changes, presets=preset or (), trust=trust)
    typer.echo(f"bundle: {output}")


@examples("medunet bundle show unet_3d", "medunet bundle show runs/mine augment learning_rate")
@with_json("bundle show")
def show(
    bundle: opt.Bundle,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Ids, or the beginnings of ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also show ids that only connect components.")] = False,
) -> None:
    """Show the ids that --set accepts: value, meaning, type and origin of each."""
    folder = find_bundle(bundle)
    from medunet.bundle.explain import list_ids
    from medunet.bundle.explain import show as as_text

    starts = [f"{id_.replace('#', '::')}::" for id_ in ids or ()]
    entries = [entry for entry in list_ids(folder) if starts or every or entry.meaning]
    if starts:
        entries = [entry for entry in entries if f"{entry.id}::".startswith(tuple(starts))]
    if not entries:
        raise ConfigError("unknown config id", file=folder, received=", ".join(ids or ()))
    print_json(ids=[vars(entry) for entry in entries])
    table = Table("id", "value", "meaning", "type", "origin")
    for entry in entries:
        value = "..." if entry.type == "mapping" else as_text(entry.value)  # its parts have ids of their own
        table.add_row(*map(escape, (entry.id, value, entry.meaning, entry.type, entry.origin)))
    opt.wide_console().print(table)


def render(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with code 4 if a file differs.")] = False,
    sources: Annotated[Path | None, typer.Option(help="Folder of YAML sources. Default: the shipped ones.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the bundles. Default: the shipped ones.")] = None,
) -> None:
    """Render bundles from their YAML sources."""
    require_path(sources)
    from medunet.bundle import render_all

    console = opt.plain_console()
    changed = render_all(sources=sources, output=output, check=check)
    for path in changed:
        console.print(f"{'differs' if check else 'written'}: {path}")
    if check and changed:
        raise typer.Exit(opt.EXIT_CHECK_FAILED)
    console.print("up to date" if not changed else opt.count(len(changed), "file"))


@examples("medunet bundle verify runs/mine", "medunet bundle verify downloaded --trust")
@with_json("bundle verify")
def verify(bundle: opt.Bundle, trust: opt.Trust = False) -> None:
    """Report whether a bundle could run its own code, then check its files, metadata, references, network and weights.

    The first step only reads the files. Checks that run parts of the bundle are skipped if it is not trusted.
    """
    folder = find_bundle(bundle)
    from medunet.bundle import verify_bundle
    from medunet.trust import judge, require_trust

    console = opt.plain_console()
    verdict = require_trust(folder, trust=True) if trust else judge(folder)
    for line in verdict.lines():
        console.print(escape(line), style=None if verdict.is_trusted else "red")
    results = verify_bundle(folder)
    print_json(trusted=verdict.is_trusted, findings=[*map(str, verdict.findings)], faults=results)
    for name, fault in results.items():
        console.print(f"ok   {name}" if fault is None else f"[bold red]FAIL[/] {name}: {escape(fault)}")
    if any(fault is not None for fault in results.values()):
        raise typer.Exit(opt.EXIT_CHECK_FAILED)


@examples(
    "medunet bundle tune-inference runs/mine", "medunet bundle tune-inference runs/mine --size 128,128,64 --compile"
)
def tune_inference(
    bundle: opt.Trained,
    device: opt.Device = "auto",
    size: Annotated[str, typer.Option(metavar="X,Y,Z", help=SIZE_HELP)] = "",
    compile_: Annotated[bool, typer.Option("--compile", help=COMPILE_HELP)] = False,
    trust: opt.Trust = False,
) -> None:
    """Measure number formats, memory layouts and backends, and write the fastest into inference.json and evaluate.json.

    The choice is valid for this machine. If the default is within 5 % of the fastest, it is kept.
    """
    folder = find_bundle(bundle)
    window = [int(part) if part.isdecimal() else 0 for part in size.split(",")] if size else []
    from medunet.prediction.tuning import tune_inference

    console = opt.plain_console()
    timings, values = tune_inference(folder, device=device, size=window, compiled=compile_, trust=trust)
    for timing in timings:
        result = f"rejected: {timing.rejected}" if timing.rejected else f"{timing.milliseconds:.1f} ms"
        console.print(f"{timing.form!s:34} {escape(result)}")
    for id_, value in values.items():
        console.print(escape(f"{id_}: {'null' if value is None else value}"))


@examples(
    "medunet bundle import nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres -o hippocampus",
    "medunet bundle import MODEL_FOLDER -o mine --folds 0,1 --checkpoint best",
    "medunet bundle import ~/.totalsegmentator/nnunet/results/Dataset29[1-5]_*/* -o organs",
)
@with_json("bundle import")
def import_(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL_FOLDER...", help=MODEL_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    folds: Annotated[str, typer.Option(metavar="all|0,1", help="Folds to import; several become an ensemble.")] = "all",
    checkpoint: Annotated[Literal["final", "best"], typer.Option(help="Checkpoint of each fold.")] = "final",
    any_trainer: Annotated[bool, typer.Option("--any-trainer", help=ANY_TRAINER_HELP)] = False,
) -> None:
    """Turn a trained nnU-Net v2 model into a bundle that predicts the same labels.

    Nothing in the model's files is run. Mirroring, which nnU-Net does by default, is off: pass --tta mirror to predict.
    """
    require_path(*models)
    from medunet.runs.imports import import_nnunet

    done = import_nnunet(*models, output=output, folds=folds, checkpoint=checkpoint, any_trainer=any_trainer)
    print_json(**vars(done))
    console = opt.plain_console()
    console.print(escape(f"network: {done.network}"))
    console.print(escape(f"folds:   {', '.join(done.folds)} (trainer {done.trainer})"))
    console.print(escape(f"classes: {', '.join(done.labels)}"))
    if done.views > 1:
        times = f"{done.views} times the work"
        console.print(f"mirroring is off; nnU-Net does it by default: predict with --tta mirror for {times}")
    console.print(f"bundle:  {output}")
    opt.print_next("predict", output, "IMAGES", "--output", "PREDICTIONS")


@examples(
    "medunet bundle to-nnunet runs/mine -o nnUNet_raw/Dataset101_Mine",
    "medunet bundle to-nnunet runs/mine -o nnUNet_raw/Dataset101_Mine --data DATA",
)
def to_nnunet(
    run: opt.Trained,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder, named DatasetXXX_NAME.")],
    data: Annotated[Path | None, typer.Option("--data", help="Data set. Default: that of the run.")] = None,
) -> None:
    """Write the training data of a run as a raw folder of nnU-Net, with the run's folds in splits_final.json.

    Copy splits_final.json to nnUNet_preprocessed/DatasetXXX_NAME before nnUNetv2_train, so that both train on the same
    cases.
    """
    folder = find_bundle(run)
    require_path(data)
    from medunet.runs.nnunet_raw import write_nnunet_raw

    dataset = write_nnunet_raw(folder, output, data=data)
    opt.plain_console().print(escape(f"{opt.count(len(dataset.cases), 'case')} written to {output}"))


@examples("medunet bundle unpack liver.zip -o liver", "medunet bundle unpack liver.tar.gz -o models/liver")
def unpack(
    archive: Annotated[Path, typer.Argument(help="Archive of a bundle: .zip, .tar or .tar.gz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bundle; must not exist.")],
) -> None:
    """Unpack a third-party bundle (no links or outside paths, limited size) and report whether it is trusted."""
    require_path(archive)
    from medunet import trust

    folder = trust.unpack(archive, output)
    for line in trust.judge(folder).lines():
        opt.plain_console().print(escape(line))
    typer.echo(f"bundle: {folder}")
    opt.print_next("bundle", "verify", folder)


COMMANDS = (init, show, verify, export.export, export.package, tune_inference, unpack, import_, to_nnunet)
app = group("Create, verify, export and package bundles.", *COMMANDS)
add(app, render, hidden=True)
