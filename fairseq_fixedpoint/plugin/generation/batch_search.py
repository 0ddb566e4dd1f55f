"""The search for the hypotheses of one batch, token by token."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_fixedpoint.plugin.generation import waiting
from fairseq_fixedpoint.plugin.generation.backpointers import Backpointers
from fairseq_fixedpoint.plugin.generation.beam import Beam, Candidates, Ended
from fairseq_fixedpoint.plugin.generation.prefixes import ForcedPrefixes
from fairseq_fixedpoint.plugin.generation.stepping import IncrementalEnsemble
from fairseq_fixedpoint.plugin.generation.strategy import Strategy
from fairseq_fixedpoint.plugin.generation.token_rules import TokenRules

logger = logging.getLogger(__name__)

# To ask which sentences are finished is to wait for the device: not at every step on a GPU.
STEPS_BETWEEN_QUESTIONS = 16


class SearchResult(NamedTuple):
    """What a search has found.

    Attributes:
        history: of the hypotheses.
        ended: step by step.
        saw_nan: whether a model's log-probabilities were not numbers, bool ``()``.
    """

    history: Backpointers
    ended: list[Ended]
    saw_nan: Tensor


class BatchSearch:
    """Goes from the beginning of B sentences' hypotheses to their ends.

    Args:
        models: at their beginning.
        strategy: with the batch's constraints.
        rules: what the options say of the next token.
        prefixes: what the hypotheses begin with.
        beam_size: N, hypotheses a sentence.
        is_exact: whether the beam holds a hypothesis for every K tokens, so that what is found is
            the best of all if nothing is cut short.
        bos: what comes before a hypothesis.
    """

    def __init__(
        self,
        models: IncrementalEnsemble,
        strategy: Strategy,
        rules: TokenRules,
        prefixes: ForcedPrefixes,
        *,
        beam_size: int,
        is_exact: bool,
        bos: int,
    ):
        self.models = models
        self.strategy = strategy
        self.rules = rules
        self.prefixes = prefixes
        self.is_exact = is_exact
        self.bos = bos
        # What stands before the first step of the models: as much as all sentences have.
        self.known = prefixes.shortest if models.takes_blocks else 0
        self.beginnings = F.pad(prefixes.tokens[:, : self.known], (1, 0), value=bos)  # (B, known+1)
        self.saw_nan = torch.zeros((), dtype=torch.bool, device=self.beginnings.device)
        self.given_scores = self._given_scores()  # (B, longest)
        self.first = self.known if strategy.can_begin_after_prefix else 0
        self.beam = self._beam(beam_size)
        self.ended: list[Ended] = []

    def run(self) -> SearchResult:
        """Searches until all sentences are finished, or as long as they may be."""
        beam, eos, max_len = self.beam, self.rules.eos, self.rules.max_len
        for step in range(self.first, max_len + 1):
            log_probs, forced_log_probs = self._log_probs(step)  # (R, N, V), (R, N)
            eos_log_probs = log_probs[:, :, eos].clone()  # a strategy may change them
            if forced_log_probs is not None:
                eos_log_probs += forced_log_probs
            candidates = self.strategy.candidates(
                self.first, step, log_probs, forced_log_probs, beam, self.prefixes
            )
            ends = candidates.tokens.eq(eos) & candidates.scores.ne(-torch.inf)  # (R, C)
            if step < self.prefixes.longest:
                tokens = self.prefixes.put_back(candidates.tokens, step, beam.sentences)
                candidates = Candidates(candidates.scores, tokens, candidates.parents)
            going_on = ends.to(torch.uint8).argsort(dim=1, stable=True)[:, : beam.size]  # (R, N)

            may_read = (
                not waiting.reading_waits(ends.device) or (step + 1) % STEPS_BETWEEN_QUESTIONS == 0
            )
            ends = self._ended_hypotheses(ends, step)
            if not may_read or ends.any():
                self.ended.append(beam.end(candidates, ends, step))
            if step == max_len:
                self._cut_off(eos_log_probs, step)
                break
            beam.extend(candidates.select(going_on))
            self.strategy.update(going_on)
            if may_read:
                self._drop_finished()
                if len(beam) == 0:
                    break
        return SearchResult(beam.history, self.ended, self.saw_nan)

    def _given_scores(self) -> Tensor:
        """Log-probabilities of given tokens, ``(B, longest)``, 0 where a sentence has none.

        They come from one pass, also of what the models step through because another sentence of
        the batch is given less: so they do not depend on the batch, nor on the type of a step's
        output layer. Empty where the models take no blocks, and each step scores its own.
        """
        longest = self.prefixes.longest if self.models.takes_blocks else 0
        if longest == 0:
            return self.beginnings.new_empty(len(self.beginnings), 0, dtype=torch.float32)
        inputs = F.pad(self.prefixes.tokens[:, : longest - 1], (1, 0), value=self.bos)
        targets = self.prefixes.scored[:, :longest]
        log_probs = self.models.prefix_log_probabilities(inputs, targets)
        log_probs = log_probs.where(self.prefixes.is_given(), 0.0)
        is_nan = log_probs.isnan()
        self.saw_nan |= is_nan.any()
        return log_probs.masked_fill(is_nan, -torch.inf)

    def _beam(self, size: int) -> Beam:
        """The beam before the search."""
        history = Backpointers(len(self.beginnings), self.beginnings.device)
        rows = torch.arange(len(self.beginnings), device=self.beginnings.device)
        for position in range(self.first):
            tokens = self.beginnings[:, position + 1]
            history.extend(rows, tokens, self.given_scores[:, position])
        scores = self.given_scores[:, : self.first].sum(1, dtype=torch.float64)
        return Beam(self.beginnings[:, : self.first + 1], scores, history, size, self._window())

    def _window(self) -> int | None:
        """How many last tokens a step asks for; None for all."""
        if (
            not self.models.needs_last_token_only
            or self.rules.need_whole_text
            or self.strategy.needs_whole_text
        ):
            return None
        return max(1, (self.strategy.order or 1) - 1)

    def _log_probs(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the next token under the options, ``(R, N, V)``.

        A given token is certain there, and so is the end of a sample at the maximal length; its
        log-probability is the second result, ``(R, N)``, 0 where a sentence has none; None where
        no sentence has one.
        """
        beam, prefixes, rules = self.beam, self.prefixes, self.rules
        by_sentence = (len(beam), beam.size, -1)
        forced_log_probs: Tensor | None
        if step < self.known:
            forced_log_probs = self._given_scores_at(step)
            nothing = forced_log_probs.new_full(
                (*forced_log_probs.shape, prefixes.vocabulary), -torch.inf
            )
            return prefixes.force(nothing, step, beam.sentences), forced_log_probs
        log_probs, attention = self._step_models(step)  # (R * N, V), (R * N, S)
        if attention is not None:
            beam.history.attend(attention)
        beam.scores = beam.scores.type_as(log_probs)
        saw_nan = log_probs.sum().isnan()
        self.saw_nan |= saw_nan
        if waiting.reading_waits(log_probs.device) or saw_nan:
            log_probs.masked_fill_(log_probs.isnan(), -torch.inf)
        log_probs[:, rules.pad] = -torch.inf
        forced_log_probs = None
        if step < prefixes.longest:  # as the models see them: penalties are for chosen ones
            forced_log_probs = (
                self._given_scores_at(step)
                if self.models.takes_blocks
                else prefixes.scores(log_probs.view(by_sentence), step, beam.sentences)
            )
        log_probs = rules.apply(log_probs, step, beam.contexts).view(by_sentence)
        if forced_log_probs is not None:
            log_probs = prefixes.force(log_probs, step, beam.sentences)
        if step == rules.max_len and self.strategy.draws:
            forced_log_probs = log_probs[:, :, rules.eos].clone()
            log_probs[:, :, rules.eos] = 0
        return log_probs, forced_log_probs

    def _given_scores_at(self, step: int) -> Tensor:
        """Log-probabilities of the tokens that are given at this step, ``(R, N)``."""
        return self.given_scores[self.beam.sentences, step, None].expand(-1, self.beam.size)

    def _step_models(self, step: int) -> tuple[Tensor, Tensor | None]:
        """As :meth:`IncrementalEnsemble.step`, from where the beam stands."""
        if step == self.known:
            return self.models.first_step(self.beginnings[self.beam.sentences], self.beam.size)
        if self.beam.order is not None:
            self.models.reorder(self.beam.order)
        return self.models.step(self.beam.contexts)

    def _ended_hypotheses(self, ends: Tensor, step: int) -> Tensor:
        """Which of those that end, ``(R, C)``, are hypotheses; notes which sentences this ends."""
        beam = self.beam
        if not self.is_exact:  # as in fairseq: one that ends must be among the best N
            ends = ends[:, : beam.size]
        if step < self.prefixes.longest:
            by_prefix = self.prefixes.ends(step, beam.sentences)  # (R,)
            ends[:, 1:] &= ~by_prefix.unsqueeze(1)
            beam.finished = torch.where(by_prefix, beam.size, beam.finished)
        return ends

    def _cut_off(self, eos_log_probs: Tensor, length: int) -> None:
        """Ends what a strategy has kept from ending until nothing longer is allowed."""
        beam = self.beam
        scores = beam.scores + eos_log_probs
        which = (beam.finished.eq(0).unsqueeze(1)) & scores.ne(-torch.inf)  # (R, N)
        unended = int(which.any(1).sum())
        if unended:
            logger.warning(
                f"{unended} sentences end at the maximal length, {length} tokens, without meeting "
                "their constraints: raise --max-len-b."
            )
        tokens = torch.full_like(beam.rows(), self.rules.eos)
        self.ended.append(beam.end(Candidates(scores, tokens, beam.rows()), which, length))

    def _drop_finished(self) -> None:
        """Takes sentences out of the batch that have N hypotheses, or none to go on with."""
        beam = self.beam
        is_left = beam.scores.ne(-torch.inf).any(1)  # (R,)
        if not self.is_exact:
            is_left &= beam.finished < beam.size
        left = is_left.nonzero().squeeze(1)
        if len(left) == len(beam):
            return
        rows = beam.keep(left)
        self.models.reorder_encoder_out(rows)
        self.strategy.keep(left)
