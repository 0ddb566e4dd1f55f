"""What `fixedpoint-spectral` does: a `fixedpoint_features` model with weights from moments."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import fairseq_fixedpoint
from fairseq_fixedpoint.cli.run import quantity
from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.files import atomic_write
from fairseq_fixedpoint.formats.features import FeatureSplit, read_features
from fairseq_fixedpoint.plugin import registration
from fairseq_fixedpoint.plugin.checkpoints import untrained_checkpoint, write_checkpoint
from fairseq_fixedpoint.plugin.models.fixedpoint_features import FeatureRecurrence
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
    if not 0 <= units <= args.hidden_size:
        raise InputError(
            f"--units {units} has to be at least 0, and at most --hidden-size ({args.hidden_size})."
        )
    cfg = _configuration(args)
    utils.set_torch_seed(args.seed)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    network = network_of(model.recurrence)
    sentences = []
    if units:
        windows = Windows(features, targets, args.window - 1)
        estimate = elman_start(windows, units, np.random.default_rng(args.seed))
        network = with_first_units(network, estimate.network)
        sentences = _described(windows, estimate, args.hidden_size)
    if split.has_labels:  # E[y | h] is a softmax, not linear in h: that is left to training
        output_weight, output_bias = 0 * network.output_weight.T, 0 * network.output_bias
    else:
        of_model = Windows(features, targets, args.iterations - 1)
        output_weight, output_bias = least_squares_readout(of_model, network.states)
    network = replace(network, output_weight=output_weight.T, output_bias=output_bias)
    put_into(network, model.recurrence)
    with atomic_write(args.output) as made:
        write_checkpoint(untrained_checkpoint(cfg, model, "FixedPointFeaturesCriterion"), made)
    plugin = Path(fairseq_fixedpoint.__file__).parent
    return [
        *sentences,
        f"train it: fairseq-train {args.data} --user-dir {plugin} "
        f"{' '.join(_training_options(args))} --restore-file {args.output} ...",
    ]


def network_of(recurrence: FeatureRecurrence) -> Network:
    """What a model of one Elman layer computes."""
    [layer] = recurrence.rnn.effective_layers()
    input_weight, recurrent_weight, bias, output_weight, output_bias = (
        tensor.detach().double().numpy()
        for tensor in (
            layer.weight_ih,
            layer.weight_hh,
            layer.bias_ih + layer.bias_hh,
            recurrence.output.weight.t(),
            recurrence.output.bias,
        )
    )
    return Network(input_weight, recurrent_weight, bias, output_weight, output_bias, np.tanh)


def with_first_units(network: Network, first: Network) -> Network:
    """The network with its first units replaced by those of another, which see no others."""
    units = len(first.bias)
    input_weight, bias = network.input_weight.copy(), network.bias.copy()
    recurrent_weight = network.recurrent_weight.copy()
    input_weight[:units], bias[:units] = first.input_weight, first.bias
    recurrent_weight[:units] = 0
    recurrent_weight[:units, :units] = first.recurrent_weight
    return replace(network, input_weight=input_weight, recurrent_weight=recurrent_weight, bias=bias)


@torch.no_grad()
def put_into(network: Network, recurrence: FeatureRecurrence) -> None:
    """Gives a model of one Elman layer the weights of a network."""
    [layer] = recurrence.rnn.effective_layers()  # the parameters themselves
    output = recurrence.output
    for parameter, values in (
        (layer.weight_ih, network.input_weight),
        (layer.weight_hh, network.recurrent_weight),
        (layer.bias_ih, network.bias),
        (layer.bias_hh, np.zeros(len(network.bias))),
        (output.weight, network.output_weight.T),
        (output.bias, network.output_bias),
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
    parsed = options.parse_args_and_arch(
        options.get_training_parser(), [str(args.data), *_training_options(args)]
    )
    with warnings.catch_warnings():  # by hydra, of a way of fairseq's
        warnings.filterwarnings("ignore", r"\s*'config' is validated", UserWarning)
        return convert_namespace_to_omegaconf(parsed)


def _training_options(args: argparse.Namespace) -> list[str]:
    name = "fixedpoint_features"
    return [
        *("--task", name, "--arch", name, "--criterion", name),
        *("--hidden-size", str(args.hidden_size), "--iterations", str(args.iterations)),
    ]


def _described(windows: Windows, estimate: Estimate, hidden_size: int) -> list[str]:
    report = estimate.report
    skipped = f", {quantity(windows.skipped, 'shorter sequence')} passed by"
    return [
        f"{quantity(windows.count, 'window')} of {windows.size} inputs"
        f"{skipped if windows.skipped else ''}; {len(estimate.network.bias)} of {hidden_size} "
        "units come from their moments.",
        f"the decomposition leaves {report.residual:.3f} of the moment of order 3; condition "
        f"numbers {report.input_condition:.3g} and {report.output_condition:.3g}, least gap of "
        f"eigenvalues {report.gap:.2g}.",
        *(f"warning: {warning}" for warning in report.warnings),
    ]
