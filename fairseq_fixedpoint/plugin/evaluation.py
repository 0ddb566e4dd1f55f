"""Perplexity of a text at many orders, from one pass over it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from fairseq.data import MonolingualDataset

from fairseq_fixedpoint.errors import InputError
from fairseq_fixedpoint.language_model import LanguageModel, StreamState
from fairseq_fixedpoint.perplexity import perplexity
from fairseq_fixedpoint.plugin.data import LeftContextDataset
from fairseq_fixedpoint.progress import counted


@dataclass(frozen=True)
class OrderReport:
    """What a model makes of a text at each order.

    Attributes:
        tokens: how many were predicted.
        perplexities: by order K, ascending.
        exact: that of the exact recurrence, its state carried through the whole text.
    """

    tokens: int
    perplexities: dict[int, float]
    exact: float

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        model: LanguageModel,
        blocks: MonolingualDataset,
        orders: Collection[int],
        progress: bool = False,
    ) -> OrderReport:
        """Evaluates a text.

        Args:
            model: what its own order is does not matter.
            blocks: consecutive blocks of one text; their size changes nothing but the speed.
            orders: K of each model, at least 1.
            progress: whether to show a bar.

        Raises:
            InputError: for a model that knows more than the tokens of its order, or if a
                perplexity is no finite number, as a broken model gives it.
        """
        if model.summary is not None:
            raise InputError(
                "a report of orders is for a model with --start constant and without "
                "--summary-input: evaluate this one order by order, with fairseq-eval-lm."
            )
        orders = sorted(set(orders))
        device = model.device
        softmax = model.softmax()
        at_orders, exactly = model.at_order(orders[-1]), model.at_order(0)
        text = LeftContextDataset(blocks, orders[-1] - 1, model.padding_idx)
        total = torch.zeros(len(orders) + 1, dtype=torch.float64, device=device)
        carried = StreamState()
        tokens = 0
        for number in counted(range(len(text)), progress, " blocks"):
            item = text[number]
            start = item["start"]
            source = item["source"].unsqueeze(0).to(device)  # (1, C + T)
            target = item["target"][start:].to(device)  # (T,)
            iterated = at_orders.evaluate(source, orders=orders[:-1])
            exact_features = exactly.evaluate(source[:, start:], carried_state=carried).features
            features = [iterated.iterates[order][0, start:] for order in orders[:-1]]
            position = torch.arange(target.numel(), device=device)
            for row, each in enumerate(
                [*features, iterated.features[0, start:], exact_features[0]]
            ):  # (T, C) each
                total[row] += softmax.log_probabilities(each, position, target).sum()
            tokens += target.numel()
        *perplexities, exact = (perplexity(each, tokens) for each in total.tolist())
        if not all(map(math.isfinite, [*perplexities, exact])):
            raise InputError("the model gives a perplexity that is no number: it is broken.")
        return cls(tokens, dict(zip(orders, perplexities, strict=True)), exact)

    def table(self) -> str:
        """The report as a person reads it, several lines without a newline at the end."""
        lines = [f"{'K':>5} {'perplexity':>11} {'vs exact':>9}"]
        for order, value in self.perplexities.items():
            more = round(100 * (value / self.exact - 1), 1) + 0.0  # no minus before a zero
            lines.append(f"{order:>5} {value:>11.2f} {more:>+8.1f}%")
        return "\n".join([*lines, f"exact {self.exact:>11.2f}"])
