"""Steps of the command line in a folder of their own, in processes that a test may kill."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import struct
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
import yaml

from rdcurve.models.checkpoint import save_decoder
from rdcurve.models.linear import Decoder

ROOT = Path(__file__).parents[1]

# Importing torch costs more than a small step. These processes are forked from one that has imported it and nothing
# else; they are real all the same, with a command line, signals, files and an exit code of their own.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [*(f"rdcurve.commands.{verb}" for verb in ("prerun", "ais", "bdmc", "guard")), "torch._dynamo"]  # jvp imports that
)


def few_settings() -> dict:
    """params.yaml with the linear decoder and its curve alone: reading all of it takes longer than a small step."""
    params = yaml.load((ROOT / "params.yaml").read_text(), Loader=yaml.CSafeLoader)
    for section in ("models", "curves", "closed_form"):
        params[section] = {"linear_vae100": params[section]["linear_vae100"]}
    for section in ("compositions", "repeats", "variational", "claims"):
        params[section] = {}
    params["figures"] = {"figure3": params["figures"]["figure3"]}
    params["likelihood"]["curves"] = {}
    return params


class Bench:
    """A folder with settings, images and a decoder, in which steps are run."""

    def __init__(self, folder: Path, n_temperatures: int = 60) -> None:
        self.folder = folder
        params = few_settings()
        small = {"beta_max": 5, "n_temperatures": n_temperatures, "n_recorded": 10}
        small |= {"ais": {"n_chains": 6}, "bdmc": {"n_chains": 3}}
        params["curves"]["linear_vae100"] |= small
        params["closed_form"]["linear_vae100"] = params["curves"]["linear_vae100"]
        params["sampler"] |= {"n_images": 4}
        params["prerun"] |= {"n_chains": 2}
        params["bdmc"] |= {"n_betas": 2, "n_images": 3}
        self.params = params
        self.save()
        (folder / "mnist").mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (10, 28, 28), dtype=np.uint8)
        header = struct.pack(">4i", 0x803, 10, 28, 28)
        (folder / "mnist/t10k-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        torch.manual_seed(0)
        decoder = Decoder(3, 784).double()
        arguments = {"latent_dim": 3, "n_pixels": 784}
        save_decoder(
            folder / "decoder", decoder, architecture="linear", arguments=arguments, facts={"dataset": "mnist"}
        )

    def copy(self, folder: Path) -> Bench:
        """The same files in another folder."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        other = object.__new__(Bench)
        other.folder, other.params = folder, yaml.load((folder / "params.yaml").read_text(), Loader=yaml.CSafeLoader)
        return other

    @property
    def entry(self) -> dict:
        """The curve that the steps are about."""
        return self.params["curves"]["linear_vae100"]

    def save(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.dump(self.params, Dumper=yaml.CSafeDumper))

    def command(self, verb: str, *more: str) -> list[str]:
        name = "figure3" if verb == "plot" else "linear_vae100"
        inputs = [] if verb == "plot" else ["--decoder", "decoder", "--data", "mnist"]
        outputs = {
            "prerun": ["--output", "tuning"],
            "ais": ["--step-sizes", "tuning", "--output", "curve"],
            "bdmc": ["--step-sizes", "tuning", "--output", "gap.csv", "--gap", "gap.json"],
            "exact": ["--curve", "curve", "--output", "exact", "--differences", "differences.json"],
        }[verb]
        return [verb, name, "--params", "params.yaml", *inputs, *outputs, *more]

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        """The program itself, as a user starts it."""
        return subprocess.Popen(
            [sys.executable, "-m", "rdcurve", *arguments],
            cwd=self.folder, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *arguments: str, **env: str) -> tuple[int, str]:
        process = self.start(*arguments, **env)
        output = process.communicate(timeout=300)[0]
        return process.returncode, output

    def fork(self, *arguments: str, largest_file: int | None = None) -> BaseProcess:
        """The same in a process that starts at once; what it prints is added to the file `log`."""
        process = _FORKS.Process(target=_main, args=(self.folder, arguments, largest_file), daemon=True)
        process.start()
        return process

    def finish(self, *arguments: str, largest_file: int | None = None) -> int:
        """Exit code of a fork left alone."""
        process = self.fork(*arguments, largest_file=largest_file)
        process.join(300)
        assert process.exitcode is not None, self.log()
        return process.exitcode

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def newest_state(self) -> int:
        """When the state of a run was last saved; 0 where there is none."""
        times = []
        for path in self.folder.glob("state/*/state"):
            with contextlib.suppress(FileNotFoundError):  # replaced at this very moment
                times.append(path.stat().st_mtime_ns)
        return max(times, default=0)


def _main(folder: Path, arguments: tuple[str, ...], largest_file: int | None) -> None:
    from rdcurve.cli import main

    os.chdir(folder)
    with open("log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    main(list(arguments))
