"""rdcurve train: images and a `models` entry -> a checkpoint that describes itself, its losses and its samples."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import fields
from typing import Any

import pandas as pd
import torch

from rdcurve.data.load import images, training_split
from rdcurve.device import resolve
from rdcurve.files import writing
from rdcurve.models.checkpoint import architecture_module, save_decoder
from rdcurve.progress import Progress
from rdcurve.training.samples import save_sample_grid


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    device = resolve(args.device)
    model, split = params["models"][args.name], params["training"]
    # loaded by name, so that a step depends on the code of its own trainer alone
    trainer = importlib.import_module(f"rdcurve.training.{model['trainer']}")
    dtype = getattr(torch, model["dtype"])
    everything = images(args.data, "train", dtype=dtype)
    training, validation = training_split(everything, split["n_validation"], split["split_seed"])
    module = architecture_module(model["architecture"])
    shape = {key: model[key] for key in ("hidden", "activation") if key in model}
    arguments = {"latent_dim": model["latent_dim"], "n_pixels": training.shape[1], **shape}
    settings = trainer.Settings(**{f.name: model[f.name] for f in fields(trainer.Settings) if f.name in model})
    torch.manual_seed(model["seed"])
    networks = [network.to(device, dtype) for network in trainer.networks(module, arguments, settings)]
    if hasattr(networks[0], "start_at"):
        networks[0].start_at(training.mean(0).to(device))
    trained = trainer.train(
        *networks, training.to(device), validation.to(device), settings, progress=Progress(f"train {args.name}")
    )
    facts = {"name": args.name, "dataset": model["dataset"], "settings": model, **trained.facts}
    args.guard.check()
    with writing(args.history) as temporary:
        pd.DataFrame(trained.history).to_csv(temporary, index=False)
    save_sample_grid(args.samples, trained.decoder, model["latent_dim"])
    save_decoder(args.output, trained.decoder, architecture=model["architecture"], arguments=arguments, facts=facts)
    print(f"{args.name}: {json.dumps(trained.facts)}")
