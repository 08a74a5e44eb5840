"""Windows that the planner would use on GPUs of several sizes, the wait for reading, and what an upload as int16 costs.

Everything is computed or measured without a GPU.

`before`: the memory of a pass was estimated with the constants of CPUs, and the halo was whole. `now`: the memory is
measured on the device, here the bytes of the tensors of the bfloat16 network; pooling reads at most 2^31 - 1 numbers
(cuDNN 9.3 or later); and a part of the halo is used where whole ones evaluate more than four times the image.

    python -m scripts.bench.gpu_plan [--read SECONDS --write SECONDS] [--readme docs/benchmarks/inference.md]
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch

from medunet.errors import ConfigError
from medunet.inferers import OverlapTileInferer, memory, peak_bytes
from medunet.inferers.tiling import TilePlan
from medunet.networks import UNet
from medunet.prediction.pipeline import overlap
from medunet.runtime.fast import Form, convert_network
from scripts.bench.measure import RESULTS, describe, machine, table, write_between, write_json

SIZE = (512, 512, 600)
CARDS_GB = (12, 24, 80, 141)
USED_GB = 2.0  # of a card, by the driver, the weights and a case that waits
NETWORKS = {"16-192": (16, 48, 96, 192), "32-320": (32, 64, 128, 256, 320)}
COMPUTE_SECONDS = 0.6  # of the network on an H200, by arithmetic
MARKS = ("<!-- gpu plan -->", "<!-- end of gpu plan -->")


def plans() -> list[dict[str, Any]]:
    """Return the windows of each network on each card, with the old and the new estimate."""
    torch.backends.cudnn.version = lambda: memory.CUDNN_64_BITS  # type: ignore[assignment,return-value]
    rows = []
    for name, channels in NETWORKS.items():
        network = UNet(3, 1, 14, channels=channels, norm="batch").eval()
        probe = memory._window(network.shapes, [128] * 3)
        fast = convert_network(network, Form("bfloat16", channels_last=True))
        small = memory._window(network.shapes, [4 * stride for stride in network.shapes.total_stride])
        before = peak_bytes(network, (1, 1, *small)) / math.prod(small) * memory.WORKSPACE * memory.AUTOCAST_SHARE
        now = (peak_bytes(fast, (1, 1, *probe)) / math.prod(probe) + 4) * memory.FRAGMENTS  # the float32 image
        limit = memory.most_voxels(network, 1, torch.device("cuda"))
        for card in CARDS_GB:
            budget = memory.SHARE_OF_FREE * (card - USED_GB) * 1e9
            for kind, most, halo in (("before", budget / before, "exact"), ("now", min(budget / now, limit), "auto")):
                plan = _plan(network, most, channels[0], halo)
                rows.append({"network": name, "card_gb": card, "kind": kind, **plan})
    return rows


def _plan(network: UNet, most: float, widest: int, halo: Any) -> dict[str, Any]:
    try:
        plan: TilePlan = OverlapTileInferer("auto", halo=halo)._plan(SIZE, network, extend=1, max_voxels=most)
    except ConfigError as error:
        return {"error": str(error)}
    sizes = [math.prod(tile.window_size) for tile in plan.tiles]
    times, numbers = sum(sizes) / math.prod(SIZE), max(sizes) * widest / 2**31
    return {"windows": len(sizes), "voxels": sum(sizes), "times_the_image": times, "largest_tensor": numbers}


def waits(read: float, write: float, *, cases: int = 200, speed: float = 60.0) -> dict[str, float]:
    """Return the share of the time in which the GPU waits, by number of threads; stages only sleep."""
    shares = {}
    for threads in (1, 2, 4, 6):

        def stage(seconds: float) -> Any:
            return lambda case: time.sleep(seconds / speed) or case

        stages = {"read": stage(read), "compute": stage(COMPUTE_SECONDS), "write": stage(write)}
        begun = time.perf_counter()
        for _ in overlap(range(cases), **stages, in_flight=2 * threads + 1, threads=threads):
            pass
        shares[str(threads)] = max(0.0, 1 - cases * COMPUTE_SECONDS / speed / (time.perf_counter() - begun))
    return shares


def conversion_seconds() -> float:
    """Return the shortest of five conversions of an image from float32 to int16 by one thread."""
    torch.set_num_threads(1)
    image = torch.randn(SIZE).mul_(100).round_()
    target, seconds = torch.empty(SIZE, dtype=torch.int16), math.inf
    for _ in range(5):
        begun = time.perf_counter()
        target.copy_(image)
        seconds = min(seconds, time.perf_counter() - begun)
    return seconds


def main() -> None:
    """Compute, write the JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--read", type=float, required=True, help="seconds in which one thread reads a CT")
    parser.add_argument("--write", type=float, required=True, help="seconds in which one thread writes a label map")
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    where, rows = machine(), plans()
    shares = waits(options.read, options.write)
    times = {"read_s": options.read, "write_s": options.write, "to_int16_s": conversion_seconds()}
    document = {"machine": where, "plans": rows, **times, "waits": shares}
    write_json(RESULTS / "gpu_plan.json", document)
    head = ("channels", "card, GB", "estimate", "windows", "voxels evaluated, times the image", "pooled tensor / 2^31")
    cells = [
        (row["network"], row["card_gb"], row["kind"], row.get("windows", "none fits"))
        + (tuple(f"{row[key]:.2f}" for key in ("times_the_image", "largest_tensor")) if "windows" in row else ("", ""))
        for row in rows
    ]
    columns = ("threads that read, and that write", "share of the time in which the GPU waits")
    waiting = table(columns, [(threads, f"{100 * share:.0f} %") for threads, share in shares.items()])
    reading = f"{options.read:g} s and writing {options.write:g} s (measured), the GPU {COMPUTE_SECONDS:g} s"
    converting = f"One thread converts the image to int16 in {1e3 * times['to_int16_s']:.0f} ms."
    text = f"Reading a case takes {reading} (assumed). {converting}\n\n{describe(where)}"
    text = f"{table(head, cells)}\n\n{waiting}\n\n{text}"
    print(text)
    if options.readme:
        write_between(options.readme, MARKS, text)


if __name__ == "__main__":
    main()
