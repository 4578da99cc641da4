"""What the benchmarks share: facts about the machine, targets to measure on, recipes, tables, results on disk."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from rdcurve.sampler.ais import Groups
    from rdcurve.sampler.hmc import Kernel
    from rdcurve.sampler.prerun import PrerunSettings
    from rdcurve.sampler.target import Target
    from rdcurve.types import Decoder

# torch is imported where it is used: a parent that measures the memory of its children must stay small
ROOT = Path(__file__).parents[1]
PIXELS = 784


def parser(script: str, summary: str | None, repeats: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark."""
    result = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--output", type=Path, default=Path(script).with_suffix(".json"), help="JSON to write")
    if repeats is not None:
        result.add_argument("--repeats", type=int, default=repeats)
    return result


def machine() -> dict[str, Any]:
    """Where and when: everything that a time depends on, and no name of a host or folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {
        "date": date.today().isoformat(),
        "machine": cpu,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": version("torch"),
        "python": platform.python_version(),
        "code": code()[:16],
    }


def code() -> str:
    """A hash of the package's source, read without importing it."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "src/rdcurve").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def settings(args: argparse.Namespace, *leave_out: str) -> dict[str, Any]:
    """The arguments as JSON, without those that are paths."""
    values = {name: value for name, value in vars(args).items() if name not in leave_out}
    return {name: value for name, value in values.items() if not isinstance(value, Path)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and least and most over the repeats."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "repeats": len(values)}


def save(path: Path, args: argparse.Namespace, **result: Any) -> None:
    """The result as JSON, whole or not at all; what is not a number becomes null."""
    from rdcurve.files import write_json

    write_json(path, _plain({**machine(), "arguments": settings(args), **result}))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.12g}") if math.isfinite(value) else None  # log Z of 900,000 nats, to a millionth
    return value


class Cells:
    """Results that are kept one by one, so that a rerun goes on where the last one stopped. Each names its code.

    Args:
        args: where to write, and the arguments.
        same: what must not differ between the results in one file.
        any_code: whether results of other code may stand beside new ones.
    """

    def __init__(self, args: argparse.Namespace, same: dict[str, Any], any_code: bool = True) -> None:
        self.args, self.same = args, _plain(same)
        self.values: dict[str, Any] = {}
        if args.output.exists():
            found = json.loads(args.output.read_text())
            if found.get("same") != self.same:
                raise SystemExit(f"{args.output} was made with other settings; remove it or choose another --output")
            self.values = found["cells"]
            if not any_code and {cell["machine"].get("code") for cell in self.values.values()} - {code()[:16]}:
                raise SystemExit(
                    f"{args.output} holds results of other code; remove it, choose another --output, or add "
                    "--reproduced once one of them was seen to come out the same"
                )

    def put(self, name: str, value: Any) -> None:
        """Keep a result."""
        self.values[name] = {**_plain(value), "machine": machine()}
        self.write()

    def write(self, **result: Any) -> None:
        """Write the file, with more beside the cells."""
        save(self.args.output, self.args, same=self.same, **result, cells=self.values)


def show(rows: list[dict[str, Any]], digits: int = 3) -> pd.DataFrame:
    """Print a table."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False, float_format=lambda v: f"{v:,.0f}" if abs(v) >= 1e4 else f"{v:.{digits}g}"))
    return frame


@dataclass
class Clock:
    """Wall and CPU seconds; the latter are those of all threads, and other programs do not lengthen them much."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def timed() -> Iterator[Clock]:
    """Times what is inside."""
    clock, wall, cpu = Clock(), time.perf_counter(), time.process_time()
    yield clock
    clock.wall, clock.cpu = time.perf_counter() - wall, time.process_time() - cpu


def random_target(
    latent_dim: int, n_images: int, hidden: Sequence[int] = (1024, 1024, 1024), seed: int = 0
) -> tuple[Target, Decoder]:
    """The paper's MNIST decoder with random weights, and random images: cost does not depend on values."""
    import torch

    from rdcurve.models.mlp import Decoder as Network
    from rdcurve.sampler.distortion import SquaredError
    from rdcurve.sampler.prior import standard_normal
    from rdcurve.sampler.target import Target

    torch.manual_seed(seed)
    decoder = Network(latent_dim, PIXELS, list(hidden), "tanh").eval().requires_grad_(False)
    return Target(standard_normal(latent_dim), decoder, SquaredError(), torch.rand(n_images, PIXELS)), decoder


def trained_target(decoder: Path, x: Tensor | None) -> tuple[Target, int]:
    """A target on a trained decoder and data (or one image of zeros, where there are none), and its code size."""
    import torch

    from rdcurve.models.checkpoint import load_decoder
    from rdcurve.sampler.distortion import SquaredError
    from rdcurve.sampler.prior import standard_normal
    from rdcurve.sampler.target import Target

    loaded = load_decoder(decoder)
    x = torch.zeros(1, PIXELS) if x is None else x
    prior = standard_normal(loaded.latent_dim, loaded.dtype)
    return Target(prior, loaded.decoder, SquaredError(), x.to(loaded.dtype)), loaded.latent_dim


class Recipe(NamedTuple):
    """How to sample, and how to learn how."""

    kernel: Kernel
    groups: Groups
    prerun: PrerunSettings


def recipe(params: Path, name: str | None = None, **changes: Any) -> Recipe:
    """The shared settings of params.yaml, overridden by one of its recipes and by single keys."""
    import yaml

    from rdcurve.sampler.ais import Groups
    from rdcurve.sampler.hmc import Kernel
    from rdcurve.sampler.prerun import PrerunSettings

    everything = yaml.safe_load(params.read_text())
    chosen = everything["recipes"][name] if name else {}
    sampler = {**everything["sampler"], **chosen.get("sampler", {}), **changes}
    prerun = {**everything["prerun"], **chosen.get("prerun", {}), **changes}
    known = {field.name for field in fields(PrerunSettings)}
    return Recipe(
        Kernel(sampler["n_leapfrog"], sampler["jitter"], sampler["persistence"]),
        Groups(sampler["group_size"], sampler["resample_below"]),
        PrerunSettings(**{key: value for key, value in prerun.items() if key in known}),
    )


def with_betas(betas: Tensor, wanted: Sequence[float]) -> tuple[Tensor, list[int]]:
    """The schedule with its nearest inner points moved onto the wanted betas, and their indices.

    So every schedule holds them exactly, and data simulated at them are the same for all.
    """
    from rdcurve.sampler.schedule import check_schedule

    betas, chosen = betas.clone(), []
    for beta in sorted(wanted, reverse=True):
        if beta == float(betas[-1]):
            chosen.append(len(betas) - 1)
            continue
        stop = min(chosen, default=len(betas) - 1)  # below those that are taken
        index = int((betas[1:stop].log() - math.log(beta)).abs().argmin()) + 1
        betas[index] = beta
        chosen.append(index)
    return check_schedule(betas), sorted(chosen)
