"""fairseq's strategies of search, as the search of a batch asks them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq import search
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_fixedpoint.plugin.generation.beam import Beam, Candidates
from fairseq_fixedpoint.plugin.generation.prefixes import ForcedPrefixes
from fairseq_fixedpoint.plugin.generation.recombination import best_continuations

# Those that can begin after a prefix: what they choose does not depend on it.
PREFIX_BLIND = (
    search.BeamSearch,
    search.Sampling,
    search.LexicallyConstrainedBeamSearch,
    search.PrefixConstrainedBeamSearch,
)


class Strategy:
    """One of fairseq's, made to offer 2N candidates for any beam, vocabulary and prefix.

    Args:
        strategy: of fairseq.
        dictionary: of the output.
        numbers: of the batch's sentences in the data set, ``(B,)``.
        src_lengths: of their sources, ``(B,)``.
        order: how many last tokens decide what follows (`LanguageModel.order`), if beam search
            recombines hypotheses that end in the same ones.
    """

    def __init__(
        self,
        strategy: search.Search,
        dictionary: Dictionary,
        numbers: Tensor,
        src_lengths: Tensor,
        order: int | None,
    ):
        self.search = strategy
        self.numbers = numbers
        self.src_lengths = src_lengths
        self.order = order
        self.pad = dictionary.pad()
        self.eos = dictionary.eos()
        self._beam_search = search.BeamSearch(dictionary)

    @property
    def can_begin_after_prefix(self) -> bool:
        """Whether it chooses as if the search had begun with the prefix."""
        return type(self.search) in PREFIX_BLIND

    @property
    def needs_whole_text(self) -> bool:
        """Whether it goes by all tokens before."""
        return isinstance(self.search, search.PrefixConstrainedBeamSearch)

    @property
    def draws(self) -> bool:
        """Whether it goes by probabilities, which can be too small for floating point."""
        return isinstance(self.search, search.Sampling)

    def init_constraints(self, constraints: Tensor | None, beam_size: int) -> None:
        """Takes a batch's constraints, packed as fairseq does.

        Raises:
            ValueError: if there are some and the strategy takes none, or the other way about.
        """
        if constraints is not None and not self.search.supports_constraints:
            raise ValueError(
                f"{type(self.search).__name__} takes no constraints: give --constraints, without "
                "another strategy of search."
            )
        if constraints is None and self.search.supports_constraints:
            raise ValueError(
                "--constraints needs text with constraints, which fairseq-interactive reads after "
                "a tab in each line: give them there, or drop --constraints."
            )
        self.search.init_constraints(constraints, beam_size)

    def candidates(
        self,
        first: int,
        step: int,
        log_probs: Tensor,
        forced_log_probs: Tensor | None,
        beam: Beam,
        prefixes: ForcedPrefixes,
    ) -> Candidates:
        """What the strategy offers, and impossible ones to make them 2N at least.

        With N that end among 2N there are N to go on with. At its step 0, a strategy takes the
        first hypothesis alone, since all are equal, and leaves the score before it out.

        Args:
            first: the position at which the search has begun.
            step: the position.
            log_probs: of the next token, ``(R, N, V)``; may be overwritten.
            forced_log_probs: of what is certain there, ``(R, N)``; None if nothing is.
            beam: the hypotheses.
            prefixes: of all sentences.
        """
        if getattr(self.search, "needs_src_lengths", False):
            self.search.set_src_lengths(self.src_lengths[beam.sentences])
        if self.draws:
            forced_log_probs = self._draw_nothing_(log_probs, forced_log_probs)
        if type(self.search) is search.BeamSearch:
            scores, tokens, parents = self._best(log_probs, beam, is_first=step == first)
        else:
            scores, tokens, parents = self._ask(first, step, log_probs, beam, prefixes)
        if forced_log_probs is not None:
            # In beam search they are the same for all of a sentence, so the order stays.
            scores = scores + forced_log_probs.gather(1, parents)
        missing = 2 * beam.size - scores.size(1)
        if missing > 0:
            scores = F.pad(scores, (0, missing), value=-torch.inf)
            tokens = F.pad(tokens, (0, missing), value=self.pad)
            parents = F.pad(parents, (0, missing))
        return Candidates(scores, tokens, parents + beam.rows()[:, :1])

    def update(self, going_on: Tensor) -> None:
        """Lets its state follow the candidates ``(R, N)`` that the beam goes on with."""
        self.search.update_constraints(going_on)

    def keep(self, which: Tensor) -> None:
        """Drops its state of all sentences but those in `which` ``(R',)``."""
        self.search.prune_sentences(which)

    def _best(
        self, log_probs: Tensor, beam: Beam, *, is_first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `BeamSearch` offers, recombined; in fewer passes over all words."""
        rows = 1 if is_first else beam.size
        return best_continuations(
            log_probs[:, :rows],
            beam.scores[:, :rows],
            beam.contexts.view(len(beam), beam.size, -1)[:, :rows],
            2 * beam.size,
            order=self.order,
            eos=self.eos,
        )

    def _ask(
        self, first: int, step: int, log_probs: Tensor, beam: Beam, prefixes: ForcedPrefixes
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What another strategy of fairseq offers; arguments as of :meth:`candidates`."""
        vocabulary, num_candidates = log_probs.size(2), 2 * beam.size
        if vocabulary <= num_candidates:
            # They want as many continuations of one hypothesis, and leave the last entry out.
            log_probs = F.pad(log_probs, (0, num_candidates + 1 - vocabulary), value=-torch.inf)
        scores_before = beam.scores.unsqueeze(2).expand(-1, -1, step - first)  # the last is read
        if self.needs_whole_text and step < prefixes.longest:
            is_forced = prefixes.holds(step, beam.sentences)  # (R,)
            self._exclude_not_allowed_(log_probs, beam, is_forced)
            scores, tokens, parents = self._beam_search.step(
                step - first, log_probs, scores_before, candidate_multiple=1
            )
        else:
            scores, tokens, parents = self.search.step(
                step - first,
                log_probs,
                scores_before,
                beam.contexts,
                self.numbers[beam.sentences] if self.needs_whole_text else beam.sentences,
            )
        if step == first:
            scores = scores + beam.scores[:, :1]
        return scores, tokens.where(tokens < vocabulary, self.pad), parents

    def _draw_nothing_(self, log_probs: Tensor, forced_log_probs: Tensor | None) -> Tensor:
        """Lets hypotheses end here that nothing can follow, where one cannot draw.

        Padding is made certain after them, and impossible by `forced_log_probs`, ``(R, N)``.
        """
        nothing = log_probs.amax(2).isneginf()  # (R, N)
        log_probs[:, :, self.pad].masked_fill_(nothing, 0)
        if forced_log_probs is None:
            forced_log_probs = torch.zeros_like(nothing, dtype=log_probs.dtype)
        return forced_log_probs.masked_fill(nothing, -torch.inf)

    def _exclude_not_allowed_(self, log_probs: Tensor, beam: Beam, is_forced: Tensor) -> None:
        """As `PrefixConstrainedBeamSearch`, but where a token is given nobody is asked."""
        free = (~is_forced).nonzero().squeeze(1)  # (R',)
        if len(free) == 0:
            return
        rows = beam.rows()[free].flatten()  # (R' * N,)
        mask = self.search.apply_mask(
            log_probs[free].view(len(rows), 1, -1),
            beam.contexts[rows],
            self.numbers[beam.sentences[free]],
        )
        log_probs[free] += mask.view(len(free), *log_probs.shape[1:])
