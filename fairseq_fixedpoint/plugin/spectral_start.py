"""What `fixedpoint-spectral` does: a `fixedpoint_features` model with weights from moments."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats.features import FeatureSplit, read_features
from fairseq_fixedpoint.plugin import registration
from fairseq_fixedpoint.plugin.checkpoints import untrained_checkpoint, write_checkpoint
from fairseq_fixedpoint.plugin.models.fixedpoint_features import (
    FeatureRecurrence,
)
from fairseq_fixedpoint.spectral import (
    Estimate,
    Network,
    Windows,
    elman_start,
    indicators,
    least_squares_readout,
)


def make_start(args: argparse.Namespace) -> list[str]:
    """Writes the checkpoint `args.output`.

    Returns:
        What there is to say of it, in sentences.

    Raises:
        InputError: for data that are malformed, or that say too little.
    """
    registration.register()
    split = read_features(args.data, "train")
    features, targets = split.sequences(split.features), _targets(split)
    units = min(args.hidden_size, split.features.shape[1]) if args.units is None else args.units
    if not 1 <= units <= args.hidden_size:
        raise InputError(
            f"--units {units} has to be at least 1, and at most --hidden-size ({args.hidden_size})."
        )
    windows = Windows(features, targets, args.window - 1)
    estimate = elman_start(windows, units, np.random.default_rng(args.seed))
    cfg = _configuration(args)
    utils.set_torch_seed(args.seed)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    network = widened(estimate.network, model.recurrence)
    if split.has_labels:  # E[y | h] is a softmax, not linear in h: that is left to training
        readout = np.zeros(network.output_weight.T.shape), np.zeros(split.target_size)
    else:
        of_model = Windows(features, targets, args.iterations - 1)
        readout = least_squares_readout(of_model, network.states)
    put_into(network, *readout, model.recurrence)
    with atomic_write(args.output) as made:
        write_checkpoint(untrained_checkpoint(cfg, model, "FixedPointFeaturesCriterion"), made)
    return _sentences(args, windows, units, estimate)


def widened(network: Network, recurrence: FeatureRecurrence) -> Network:
    """The network with further units, which have the weights that the layer has now.

    The others do not depend on them.
    """
    units = len(network.bias)
    layer = recurrence.rnn.effective_layers()[0]
    weight_ih, weight_hh, bias = (
        tensor.detach().double().numpy().copy()
        for tensor in (layer.weight_ih, layer.weight_hh, layer.bias_ih + layer.bias_hh)
    )
    weight_ih[:units], bias[:units] = network.input_weight, network.bias
    weight_hh[:units] = 0
    weight_hh[:units, :units] = network.recurrent_weight
    output_weight = np.zeros((len(bias), network.output_weight.shape[1]))
    output_weight[:units] = network.output_weight
    return replace(
        network,
        input_weight=weight_ih,
        recurrent_weight=weight_hh,
        bias=bias,
        output_weight=output_weight,
    )


@torch.no_grad()
def put_into(
    network: Network,
    output_weight: np.ndarray,
    output_bias: np.ndarray,
    recurrence: FeatureRecurrence,
) -> None:
    """Gives a model of one layer the weights of a network, and an output layer's."""
    layer = recurrence.rnn.layers[0]
    for parameter, values in (
        (layer.weight_ih_l0, network.input_weight),
        (layer.weight_hh_l0, network.recurrent_weight),
        (layer.bias_ih_l0, network.bias),
        (layer.bias_hh_l0, np.zeros(len(network.bias))),
        (recurrence.output.weight, output_weight),
        (recurrence.output.bias, output_bias),
    ):
        parameter.copy_(torch.from_numpy(values))


def _targets(split: FeatureSplit) -> list[np.ndarray]:
    """What each sequence's positions predict, ``(T, o)``.

    Raises:
        InputError: for labels all of which are one.
    """
    if not split.has_labels:
        return split.sequences(split.targets)
    if split.targets.min() == split.targets.max():
        raise InputError(
            f"all labels are {split.targets.max()}: there is nothing to tell apart, so no moment "
            "of them."
        )
    return split.sequences(indicators(split.targets, split.target_size))


def _configuration(args: argparse.Namespace) -> Any:
    """What `fairseq-train` stores of a training with the model's options."""
    parser = options.get_training_parser()
    given = options.parse_args_and_arch(
        parser, [str(args.data), *_training_options(args), "--restore-file", str(args.output)]
    )
    return convert_namespace_to_omegaconf(given)


def _training_options(args: argparse.Namespace) -> list[str]:
    name = "fixedpoint_features"
    return [
        *("--task", name, "--arch", name, "--criterion", name),
        *("--hidden-size", str(args.hidden_size), "--iterations", str(args.iterations)),
    ]


def _sentences(
    args: argparse.Namespace, windows: Windows, units: int, estimate: Estimate
) -> list[str]:
    report = estimate.report
    skipped = f", {windows.skipped:,} shorter sequences passed by" if windows.skipped else ""
    return [
        f"{windows.count:,} windows of {windows.size} inputs{skipped}; {units} of "
        f"{args.hidden_size} units come from their moments.",
        f"the decomposition leaves {report.residual:.3f} of the moment of order 3; condition "
        f"numbers {report.input_condition:.3g} and {report.output_condition:.3g}, least gap of "
        f"eigenvalues {report.gap:.2g}.",
        *(f"warning: {warning}" for warning in report.warnings),
        f"train it: fairseq-train {args.data} {' '.join(_training_options(args))} --restore-file "
        f"{args.output} ...",
    ]
