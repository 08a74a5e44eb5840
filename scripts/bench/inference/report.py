"""Tables (markdown) and plot of what `scripts.bench.inference` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from scripts.bench.measure import describe, table

mpl.use("agg")

Rows = dict[str, dict[str, Any]]
ZOO = "MONAI, zoo setting"


def tables(sections: dict[str, Rows]) -> str:
    """One table a section, in the order of the issue's list; sections without a row are left out."""
    makers = {
        "systems": ("Volumes: image in memory to labels on its source grid", _systems),
        "restore": ("Back to the source grid", _restore),
        "floor": ("Share of the fastest possible rate", _floor),
        "memory": ("Memory and time against voxels (20 classes)", _memory),
        "paper": ("The paper's network on one image of 512x512", _paper),
        "throughput": ("Programs on a folder of hippocampus cases", _throughput),
    }
    parts = []
    for name, (title, maker) in makers.items():
        rows = sections.get(name)
        if rows:
            machine = next(iter(rows.values()))["machine"]
            parts.append(f"### {title}\n\n{maker(rows)}\n\n{describe(machine)}")
    return "\n\n".join(parts)


def _systems(rows: Rows) -> str:
    body = []
    for row in rows.values():
        cells = [row["volume"], row["network"], row["system"]]
        if "median_seconds" not in row:
            body.append([*cells, row.get("skipped") or row.get("error") or "", "", "", "", ""])
            continue
        zoo = _seconds(rows, row, ZOO)
        body.append(
            [
                *cells,
                _number(row["median_seconds"]),
                "" if zoo is None else f"{zoo / row['median_seconds']:.1f}",
                f"{100 * row['share_outside_network']:.0f} %",
                " ".join(f"{value:.4f}" for value in row.get("dice", [])),
                "" if "disagreement" not in row else f"{100 * row['disagreement']:.3f} %",
            ]
        )
    ratios = _nnunet_ratios(rows)
    head = ["volume", "network", "system", "s", "times MONAI", "outside the network", "Dice", "differs from fp32"]
    return table(head, body) + (f"\n\n{ratios}" if ratios else "")


def _seconds(rows: Rows, like: dict[str, Any], system: str) -> float | None:
    """Median of another system on the same volume with the same network."""
    for row in rows.values():
        if (row["volume"], row["network"], row["system"]) == (like["volume"], like["network"], system):
            value = row.get("median_seconds")
            return None if value is None else float(value)
    return None


def _nnunet_ratios(rows: Rows) -> str:
    lines = []
    for row in rows.values():
        if row["system"].startswith("nnU-Net") and "median_seconds" in row:
            ours = _seconds(rows, row, "medunet")
            if ours:
                times = row["median_seconds"] / ours
                where = f"{row['volume']}, {row['network']}"
                lines.append(f"- {where}: medunet is {times:.1f} times as fast as {row['system']}")
    return "\n".join(lines)


def _restore(rows: Rows) -> str:
    body = []
    for row in rows.values():
        ours = next(
            (r["median_seconds"] for r in rows.values() if r["case"] == row["case"] and r["way"].startswith("medunet")),
            None,
        )
        times = "" if ours is None else f"{row['median_seconds'] / ours:.1f}"
        unlike = str(row["voxels_unlike_torch"])
        body.append([row["case"], row["way"], _number(row["median_seconds"]), times, unlike])
    return table(["14 classes", "method", "s", "times medunet's", "voxels that differ from full trilinear"], body)


def _floor(rows: Rows) -> str:
    body = []
    for row in rows.values():
        choice = row.get("choice") or {}
        cells = [row["network"], row["mode"], "x".join(map(str, row["window"])), f"{row['gflop']:.0f}"]
        backend = f"{choice.get('backend', '')} {choice.get('dtype', '')}".strip()
        rate = f"{row['tflops']:.2f} of {row['matmul_tflops']['bfloat16']:.2f}"
        shares = [f"{row[key]:.2f}" for key in ("share_of_matmul_rate", "share_of_own_rate")]
        body.append([*cells, backend, _number(row["seconds"]), rate, *shares])
    head = ["network", "mode", "window", "GFLOP", "choice", "s", "TFLOP/s of bf16 matmul", "share", "own-format share"]
    return table(head, body)


def _memory(rows: Rows) -> str:
    body = []
    for row in rows.values():
        cells = [f"{row['voxels'] / 1e6:.0f}", row["system"]]
        if "peak_gb" in row:
            body.append([*cells, f"{row['peak_gb']:.2f}", f"{row['before_gb']:.2f}", _number(row["seconds"])])
        else:
            body.append([*cells, row.get("skipped") or row.get("error") or "", "", ""])
    return table(["million voxels", "system", "peak GB", "before the call", "s"], body)


def _paper(rows: Rows) -> str:
    body = [[*key.split(" | "), _number(row["seconds"]), _number(row["first_seconds"])] for key, row in rows.items()]
    return table(["device", "mode", "tile", "s", "first call, s"], body)


def _throughput(rows: Rows) -> str:
    body = []
    for row in rows.values():
        if "cases_per_second" not in row:
            body.append([row.get("program", ""), row.get("error") or row.get("skipped") or "", "", "", ""])
            continue
        running = row.get("cases_per_second_running")
        dice = row.get("mean_dice")
        body.append(
            [
                row["program"],
                str(row["cases"]),
                f"{row['cases_per_second']:.2f}",
                "" if running is None else f"{running:.2f}",
                f"{dice:.4f}" if isinstance(dice, float) else str(dice or ""),
            ]
        )
    return table(["program", "cases", "cases/s", "without its start", "mean Dice"], body)


def plot(sections: dict[str, Rows], path: Path) -> None:
    """Time and peak memory against voxels, a line a system."""
    rows = [row for row in sections.get("memory", {}).values() if "peak_gb" in row]
    if not rows:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, key, unit in zip(panels, ("seconds", "peak_gb"), ("time in s", "peak memory in GB"), strict=True):
        for system in dict.fromkeys(row["system"] for row in rows):
            points = sorted((row["voxels"] / 1e6, row[key]) for row in rows if row["system"] == system)
            panel.plot(*zip(*points, strict=True), marker="o", label=system)
        panel.set(xlabel="million voxels", ylabel=unit, xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[1].axhline(8, color="black", linewidth=0.8, linestyle="--", label="8 GB")
    panels[1].set_ylim(0, 8.4)
    panels[1].legend(frameon=False, fontsize="small", loc="lower right")
    figure.savefig(path, dpi=130)


def _number(seconds: float) -> str:
    """Three digits."""
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"
