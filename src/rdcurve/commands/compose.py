"""rdcurve compose: a decoder and a classifier -> the decoder of the classifier's features, in one checkpoint."""

from __future__ import annotations

import argparse
import os
from typing import Any, NamedTuple

import torch

from rdcurve.files import FileError
from rdcurve.models.checkpoint import load_classifier, load_decoder, save_decoder
from rdcurve.models.featured import Decoder

__all__ = ["compose"]


class _Composed(NamedTuple):
    decoder: Decoder
    arguments: dict[str, Any]
    facts: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        save_decoder(path, self.decoder, architecture="featured", arguments=self.arguments, facts=self.facts)


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    composed = _composed(args.decoder, args.features)
    args.guard.check()
    composed._replace(facts={"name": args.name, **composed.facts}).save(args.output)
    print("{}: images of {decoder}, seen by {classifier}".format(args.name, **composed.facts["parts"]))


def compose(
    decoder_path: str | os.PathLike[str], classifier_path: str | os.PathLike[str], output_path: str | os.PathLike[str]
) -> None:
    """Write the decoder z -> phi(f(z)) of a checkpoint's decoder f and another's features phi.

    Its facts: the data set, and the names of its parts. Both networks are stored in the type of the decoder.

    Raises:
        FileError: either cannot be read, or they do not go together.
    """
    _composed(decoder_path, classifier_path).save(output_path)


def _composed(decoder_path: str | os.PathLike[str], classifier_path: str | os.PathLike[str]) -> _Composed:
    images, features = load_decoder(decoder_path), load_classifier(classifier_path)
    dataset = images.facts.get("dataset")
    if features.facts.get("dataset") != dataset:
        raise FileError(
            f"{classifier_path}: trained on {features.facts.get('dataset')}, but {decoder_path} on {dataset}"
        )
    parts = {"decoder": images.facts, "classifier": features.facts}
    described = {part: {key: facts[key] for key in ("architecture", "arguments")} for part, facts in parts.items()}
    arguments = {"latent_dim": images.latent_dim, **described}
    decoder = Decoder(**arguments).to(images.dtype)
    decoder.decoder.load_state_dict(images.decoder.state_dict())
    decoder.classifier.load_state_dict(features.classifier.state_dict())
    try:
        decoder(torch.zeros(1, images.latent_dim, dtype=images.dtype))
    except RuntimeError as error:
        raise FileError(f"{decoder_path}: its images do not fit {classifier_path}: {error}") from error
    names = {part: facts.get("name") for part, facts in parts.items()}
    return _Composed(decoder, arguments, {"dataset": dataset, "parts": names})
