"""rdcurve train: images and a `models` entry -> a checkpoint that describes itself, and its loss history."""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
import torch

from rdcurve.data.load import images, training_split
from rdcurve.device import resolve
from rdcurve.files import writing
from rdcurve.models.checkpoint import architecture_module, save_decoder
from rdcurve.progress import Progress
from rdcurve.training.vae import VAESettings, train


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    device = resolve(args.device)
    model, split = params["models"][args.name], params["training"]
    dtype = getattr(torch, model["dtype"])
    everything = images(args.data, "train", dtype=dtype)
    training, validation = training_split(everything, split["n_validation"], split["split_seed"])
    module = architecture_module(model["architecture"])
    arguments = {"latent_dim": model["latent_dim"], "n_pixels": training.shape[1]}
    torch.manual_seed(model["seed"])
    decoder = module.Decoder(**arguments).to(device, dtype)
    encoder = module.Encoder(**arguments).to(device, dtype)
    settings = VAESettings(**{key: model[key] for key in VAESettings.__dataclass_fields__})
    trained = train(
        decoder,
        encoder,
        training.to(device),
        validation.to(device),
        settings,
        progress=Progress(f"train {args.name}"),
    )
    best = trained.history[trained.best_epoch - 1]
    facts = {"name": args.name, "dataset": model["dataset"], "settings": model, "best": best}
    args.guard.check()
    with writing(args.history) as temporary:
        pd.DataFrame(trained.history).to_csv(temporary, index=False)
    save_decoder(args.output, trained.decoder, architecture=model["architecture"], arguments=arguments, facts=facts)
    print(
        f"{args.name}: best of {model['epochs']} epochs is {trained.best_epoch}, "
        f"validation -ELBO {best['validation_loss']:.3f} nats"
    )
