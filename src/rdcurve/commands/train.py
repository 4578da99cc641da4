"""rdcurve train: images and a `models` entry -> a checkpoint that describes itself, its losses and a picture of it."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rdcurve.data.load import images, labels, training_split
from rdcurve.device import resolve
from rdcurve.files import writing
from rdcurve.models.checkpoint import architecture_module, save_decoder
from rdcurve.progress import Progress
from rdcurve.state import Checkpoint, content_key
from rdcurve.training import trained
from rdcurve.training.samples import filter_grid, sample_grid, save_grid


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    device = resolve(args.device)
    model, split = params["models"][args.name], params["training"]
    # loaded by name, so that a step depends on the code of its own trainer alone
    trainer = importlib.import_module(f"rdcurve.training.{model['trainer']}")
    module = architecture_module(model["architecture"])
    decodes = hasattr(module, "Decoder")
    dtype = getattr(torch, model["dtype"])

    def divided(everything: Tensor) -> list[Tensor]:
        return [part.to(device) for part in training_split(everything, split["n_validation"], split["split_seed"])]

    training, validation = divided(images(args.data, "train", dtype=dtype))
    supervision = {} if decodes else {"labels": divided(labels(args.data, "train"))}
    available = {**model, "n_pixels": training[0].numel()}
    network = module.Decoder if decodes else module.Classifier
    arguments = {name: available[name] for name in inspect.signature(network).parameters if name in available}
    settings = trainer.Settings(**{f.name: model[f.name] for f in fields(trainer.Settings) if f.name in model})
    torch.manual_seed(model["seed"])
    networks = [network.to(device, dtype) for network in trainer.networks(module, arguments, settings)]
    if hasattr(networks[0], "start_at"):
        networks[0].start_at(training.mean(0))
    key = content_key(
        settings=model,
        data=[content_key(part=part) for part in (training, validation, *supervision.get("labels", []))],
        code=[_source(part) for part in (sys.modules[__name__], trained, trainer, module)],
        torch=torch.__version__,
        device=device.type,
    )
    with Checkpoint(args.state, key, args.save_every, args.time_limit) as checkpoint:
        result = trainer.train(
            *networks,
            training,
            validation,
            settings,
            **supervision,
            checkpoint=checkpoint,
            progress=Progress(f"train {args.name}"),
        )
        facts = {"name": args.name, "dataset": model["dataset"], "settings": model, **result.facts}
        args.guard.check()
        with writing(args.history) as temporary:
            pd.DataFrame(result.history).to_csv(temporary, index=False)
        grid = sample_grid(result.network, model["latent_dim"]) if decodes else filter_grid(result.network)
        save_grid(args.samples, grid)
        save_decoder(args.output, result.network, architecture=model["architecture"], arguments=arguments, facts=facts)
        checkpoint.remove()
    print(f"{args.name}: {json.dumps(result.facts)}")


def _source(module: ModuleType) -> str:
    return Path(inspect.getfile(module)).read_text()
