"""Generation from cached iterates: a token costs the same however long the text is.

fairseq's generator copies the whole text of every hypothesis at every token and hands it to the
model. This one gives a model of order K the last token, from which and from its K cached iterates
the next state follows; keeps what was chosen as a pointer to the hypothesis before; and reads the
hypotheses off at the end. The strategies of search are fairseq's.
"""

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fairseq import search, utils
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from fairseq_fixedpoint.generation.beam import Beam, Candidates, Ended
from fairseq_fixedpoint.generation.history import History
from fairseq_fixedpoint.generation.prefixes import ForcedPrefixes
from fairseq_fixedpoint.generation.recombination import recombine_
from fairseq_fixedpoint.generation.repetition import block_repetition
from fairseq_fixedpoint.generation.stepping import StepEnsemble, StepModel, memory_of

logger = logging.getLogger(__name__)

ALIGNMENTS = {"hard": utils.extract_hard_alignment, "soft": utils.extract_soft_alignment}
# Strategies that can begin after a prefix: what they choose does not depend on it.
PREFIX_BLIND = (
    search.BeamSearch,
    search.Sampling,
    search.LexicallyConstrainedBeamSearch,
    search.PrefixConstrainedBeamSearch,
)
# To ask which sentences are finished is to wait for the device: not at every step on a GPU.
STEPS_BETWEEN_QUESTIONS = 16


class FixedPointSequenceGenerator(SequenceGenerator):
    """fairseq's `SequenceGenerator` with constant work a token, and recombination.

    It takes what fairseq's takes (strategies, ensembles, prefixes, penalties) and finds the same
    hypotheses and scores, but for this:

    - Recombination (see :mod:`~fairseq_fixedpoint.generation.recombination`) keeps one of the
      hypotheses that end in the same K tokens. With a beam of at least V^K, for V words that can
      be chosen, the best hypothesis is the best of all up to the maximal length.
    - `</s>` in the prefix of a language model is part of the text: hypotheses go on after it. In
      the prefix of a translation it ends the one hypothesis there is.
    - A sentence does not depend on its batch: the minimal length and suppressed tokens hold from
      the end of its own prefix on, not of the longest.
    - The penalty of unknown words is for those that the search chooses, not for given ones.
    - A hypothesis that has ended never goes on. (fairseq's can, where a strategy gives no more than
      `beam` candidates, as diverse beam search does in groups of more than one.)
    - The beam may be larger than the vocabulary; `--no-repeat-ngram-size` works on a CPU as well,
      where fairseq's does nothing; and a sentence whose constraints did not come true within the
      maximal length keeps what it has.

    Args:
        models: the ensemble.
        tgt_dict: dictionary of the output.
        beam_size: N, hypotheses a sentence.
        recombination: whether to recombine where the models and the strategy allow it.
        print_alignment: ``hard`` or ``soft``, as in fairseq, for models with attention.
        options: the others of fairseq's `SequenceGenerator`.

    Raises:
        ValueError: for options that the models cannot honour.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        tgt_dict: Dictionary,
        beam_size: int = 1,
        *,
        recombination: bool = True,
        print_alignment: str | None = None,
        **options,
    ):
        if beam_size < 1:
            raise ValueError(f"--beam must be at least 1, not {beam_size}.")
        if options.get("temperature", 1.0) <= 0:
            raise ValueError(f"--temperature must be above 0, not {options['temperature']}.")
        super().__init__(models, tgt_dict, beam_size, **options)
        if self.beam_size != beam_size:  # fairseq allows no more than the dictionary has words
            self.beam_size = beam_size
            self.model.set_decoder_beam_size(beam_size)
        if self.lm_model is not None:
            _check_dictionary(self.lm_model, tgt_dict)
        if self.match_source_len and not self.model.has_encoder():
            raise ValueError(
                "--match-source-len: a language model has no source: give --min-len, --max-len-b."
            )
        self.extract_alignment = None
        if print_alignment:
            self._check_alignment()
            self.extract_alignment = ALIGNMENTS[str(print_alignment)]
        self.order = self._order_to_recombine() if recombination else None
        self.is_exact = self.order is not None and self._has_room_for_every_context()

    def _check_alignment(self) -> None:
        if not self.model.has_encoder():
            raise ValueError(
                "--print-alignment: a language model has no source to align with: drop it."
            )
        if any(getattr(model, "full_context_alignment", False) for model in self.model.models):
            raise ValueError(
                "--print-alignment: a model that was trained for alignments with the full context "
                "is aligned by fairseq's own task: use --task translation."
            )

    def _order_to_recombine(self) -> int | None:
        """K, if hypotheses that end in the same K tokens have the same future."""
        order = memory_of([*self.model.models, *filter(None, [self.lm_model])])
        if self.beam_size == 1:
            return None
        if order is None:
            reason = "a model sees more of the text than its last tokens"
        elif type(self.search) is not search.BeamSearch:
            reason = f"{type(self.search).__name__} goes by more than the best score"
        elif self.repeat_ngram_blocker is not None:
            reason = "--no-repeat-ngram-size depends on the whole text"
        else:
            return order
        logger.info(f"no recombination of hypotheses that end in the same tokens: {reason}.")
        return None

    def _has_room_for_every_context(self) -> bool:
        """Whether the beam holds whatever K tokens a hypothesis can end in."""
        impossible = {self.pad, self.eos}
        if self.token_indices_to_suppress is not None:
            impossible.update(self.token_indices_to_suppress.tolist())
        return self.beam_size >= (self.vocab_size - len(impossible)) ** self.order

    def _generate(
        self,
        sample: dict,
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """The hypotheses of each sentence, best first.

        Args:
            sample: a batch of B sentences.
            prefix_tokens: what hypotheses begin with, ``(B, P)``, padded at the end.
            constraints: packed as fairseq does, for a strategy that takes them.
            bos_token: what comes before a hypothesis; `</s>` if not given.

        Returns:
            For each sentence up to `beam_size` dictionaries: `tokens` ``(T,)``; `score`, a natural
            logarithm, normalised as the options say; `positional_scores` ``(T,)``; `attention`
            ``(S, T)`` and `alignment`, empty where there is none.

        Raises:
            ValueError: if constraints and strategy do not go together, or the lengths do not.
        """
        src_tokens, src_lengths = _source(sample["net_input"], self.pad, self.eos)
        max_len = self._max_len(src_tokens, src_lengths)
        self._init_constraints(constraints)
        if prefix_tokens is None:
            prefix_tokens = src_lengths.new_empty(len(src_lengths), 0, dtype=torch.long)
        prefixes = self._prefixes(prefix_tokens, max_len)
        models = self._step_models(sample["net_input"])
        # What stands before the first step of the models: as much as all sentences have.
        known = prefixes.shortest if models.takes_blocks else 0
        bos = self.eos if bos_token is None else bos_token
        beginnings = F.pad(prefix_tokens[:, :known], (1, 0), value=bos)  # (B, known + 1)
        known_scores = self._known_scores(models, beginnings, prefixes)  # (B, known)
        beam, first = self._begin(models, beginnings, known_scores)

        ended: list[Ended] = []
        for step in range(first, max_len + 1):
            log_probs, given = self._log_probs(
                models, beam, step, beginnings, known_scores, prefixes, max_len
            )  # (R, N, V), (R, N)
            if self.order is not None and step > first:
                contexts = beam.contexts.view(len(beam), beam.size, -1)
                recombine_(log_probs, beam.scores, contexts, self.order, self.eos)
            eos_log_probs = log_probs[:, :, self.eos].clone()  # a strategy may change them
            if given is not None:
                eos_log_probs += given
            if self.should_set_src_lengths:
                self.search.set_src_lengths(src_lengths[beam.sentences])
            candidates = self._candidates(step - first, log_probs, given, beam, sample)
            ends = candidates.tokens.eq(self.eos) & candidates.scores.ne(-math.inf)  # (R, C)
            if step < prefixes.longest:
                tokens = prefixes.put_back(candidates.tokens, step, beam.sentences)
                candidates = Candidates(candidates.scores, tokens, candidates.parents)
            going_on = ends.to(torch.uint8).argsort(dim=1, stable=True)[:, : beam.size]  # (R, N)

            if not self.is_exact:  # as in fairseq: one that ends must be among the best N
                ends = ends[:, : beam.size]
            if step < prefixes.longest:
                by_prefix = prefixes.ends(step, beam.sentences)  # (R,)
                ends[:, 1:] &= ~by_prefix.unsqueeze(1)
                beam.found = torch.where(by_prefix, beam.size, beam.found)
            may_ask = ends.device.type == "cpu" or (step + 1) % STEPS_BETWEEN_QUESTIONS == 0
            if not may_ask or ends.any():
                ended.append(beam.end(candidates, ends, step))
            if step == max_len:
                ended.append(self._cut_off(beam, eos_log_probs, step))
                break
            beam.extend(candidates.select(going_on))
            self.search.update_constraints(going_on)
            if may_ask:
                self._drop_finished(models, beam)
                if len(beam) == 0:
                    break
        return self._hypotheses(beam.history, ended, src_tokens, src_lengths)

    def _max_len(self, src_tokens: Tensor, src_lengths: Tensor) -> int:
        """The longest hypothesis, without its end."""
        if self.match_source_len:
            max_len = int(src_lengths.max())
        else:
            wanted = int(self.max_len_a * src_tokens.size(1) + self.max_len_b)
            max_len = min(wanted, self.max_len - 1)
        if self.min_len > max_len:
            raise ValueError(
                f"--min-len {self.min_len} is above the maximal length, {max_len}: lower it, or "
                "raise --max-len-a or --max-len-b."
            )
        return max_len

    def _init_constraints(self, constraints: Tensor | None) -> None:
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
        self.search.init_constraints(constraints, self.beam_size)

    def _prefixes(self, tokens: Tensor, max_len: int) -> ForcedPrefixes:
        prefixes = ForcedPrefixes(
            tokens,
            max_len,
            pad=self.pad,
            unk=self.unk,
            eos=self.eos,
            vocabulary=self.vocab_size,
            eos_ends=self.model.has_encoder(),
        )
        if max_len > 0 and prefixes.longest == max_len:
            logger.warning(
                f"{int(prefixes.lengths.eq(max_len).sum())} prefixes are as long as a hypothesis "
                f"may be, {max_len} tokens, or longer and cut off: raise --max-len-b."
            )
        return prefixes

    def _step_models(self, net_input: dict) -> StepEnsemble:
        encoder_outs = self.model.forward_encoder(net_input)
        if encoder_outs is None:
            encoder_outs = [None] * self.model.models_size
        return StepEnsemble(
            [
                StepModel(model, encoder_out, self.temperature)
                for model, encoder_out in zip(self.model.models, encoder_outs, strict=True)
            ],
            None if self.lm_model is None else StepModel(self.lm_model),
            self.lm_weight,
        )

    def _known_scores(
        self, models: StepEnsemble, beginnings: Tensor, prefixes: ForcedPrefixes
    ) -> Tensor:
        """Log-probabilities of the tokens that all sentences are given, ``(B, known)``."""
        known = beginnings.size(1) - 1
        if known == 0:
            return beginnings.new_empty(len(beginnings), 0, dtype=torch.float32)
        targets = prefixes.scored[:, :known]
        found = models.prefix_log_probabilities(beginnings[:, :-1], targets)
        return found.masked_fill(found.isnan(), -math.inf)

    def _begin(
        self, models: StepEnsemble, beginnings: Tensor, known_scores: Tensor
    ) -> tuple[Beam, int]:
        """The beam before the search, and the step at which the search begins."""
        sentences, known = known_scores.shape
        history = History(sentences, beginnings.device)
        scores = known_scores.new_zeros(sentences, self.beam_size)
        first = 0
        if known and type(self.search) in PREFIX_BLIND:
            first, total = known, known_scores.cumsum(1)
            rows = torch.arange(sentences, device=beginnings.device)
            for position in range(known):
                history.extend(rows, beginnings[:, position + 1], total[:, position])
            scores = scores + total[:, -1:]
        return Beam(beginnings[:, : first + 1], scores, history, self._window(models)), first

    def _window(self, models: StepEnsemble) -> int | None:
        """How many last tokens a step asks for; None for all."""
        if (
            not models.needs_last_token_only
            or self.repeat_ngram_blocker is not None
            or isinstance(self.search, search.PrefixConstrainedBeamSearch)
        ):
            return None
        return max(1, (self.order or 1) - 1)

    def _log_probs(
        self,
        models: StepEnsemble,
        beam: Beam,
        step: int,
        beginnings: Tensor,
        known_scores: Tensor,
        prefixes: ForcedPrefixes,
        max_len: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the next token under the options, ``(R, N, V)``.

        A given token is certain there, and so is the end of a sample at the maximal length; its
        log-probability is the second result, ``(R, N)``, 0 where a sentence has none; None where
        no sentence has one.
        """
        shape = (len(beam), beam.size, self.vocab_size)
        known = known_scores.size(1)
        if step < known:
            nothing = known_scores.new_full(shape, -math.inf)
            given = known_scores[beam.sentences, step, None].expand(shape[:2])
            return prefixes.force(nothing, step, beam.sentences), given
        if step == known:
            log_probs, attention = models.first_step(beginnings[beam.sentences], beam.size)
        else:
            if beam.order is not None:
                models.reorder(beam.order)
            log_probs, attention = models.step(beam.contexts)
        if attention is not None:
            beam.history.attend(attention)
        beam.scores = beam.scores.type_as(log_probs)
        log_probs.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        log_probs[:, self.pad] = -math.inf
        given = None
        if step < prefixes.longest:  # as the models see them: penalties are for chosen ones
            given = prefixes.scores(log_probs.view(shape), step, beam.sentences)
        log_probs[:, self.unk] -= self.unk_penalty
        if step == max_len:
            eos_log_probs = log_probs[:, self.eos].clone()
            log_probs.fill_(-math.inf)
            if isinstance(self.search, search.Sampling):  # as with given tokens
                log_probs[:, self.eos] = 0
                given = eos_log_probs.view(shape[:2])
            else:
                log_probs[:, self.eos] = eos_log_probs
            return log_probs.view(shape), given
        if step < self.min_len:
            log_probs[:, self.eos] = -math.inf
        if self.token_indices_to_suppress is not None:
            log_probs[:, self.token_indices_to_suppress] = -math.inf
        if self.repeat_ngram_blocker is not None:
            written = beam.contexts[:, 1:]  # not what stands before the text
            size = self.repeat_ngram_blocker.no_repeat_ngram_size
            log_probs = block_repetition(log_probs, written, size)
        log_probs = log_probs.view(shape)
        if given is not None:
            log_probs = prefixes.force(log_probs, step, beam.sentences)
        return log_probs, given

    def _candidates(
        self, step: int, log_probs: Tensor, given: Tensor | None, beam: Beam, sample: dict
    ) -> Candidates:
        """What the strategy offers, and impossible ones to make them 2N at least.

        With N that end among 2N there are N to go on with. At its step 0, a strategy takes the
        first hypothesis alone, since all are equal, and leaves the score before it out.
        """
        numbers = beam.sentences
        if isinstance(self.search, search.PrefixConstrainedBeamSearch):
            numbers = sample["id"][numbers] if isinstance(sample.get("id"), Tensor) else numbers
        scores, tokens, parents = self.search.step(
            step,
            log_probs,
            beam.scores.unsqueeze(2).expand(-1, -1, step),  # strategies read the last alone
            beam.contexts,
            numbers,
        )
        missing = max(0, 2 * beam.size - scores.size(1))
        if step == 0:
            scores = scores + beam.scores[:, :1]
        if given is not None:  # in beam search equal for all of a sentence, so the order stays
            scores = scores + given.gather(1, parents)
        return Candidates(
            F.pad(scores, (0, missing), value=-math.inf),
            F.pad(tokens, (0, missing), value=self.pad),
            F.pad(parents, (0, missing)) + beam.rows()[:, :1],
        )

    def _cut_off(self, beam: Beam, eos_log_probs: Tensor, length: int) -> Ended:
        """Ends what a strategy has kept from ending until nothing longer is allowed."""
        scores = beam.scores + eos_log_probs
        which = (beam.found.eq(0).unsqueeze(1)) & scores.ne(-math.inf)  # (R, N)
        unended = int(which.any(1).sum())
        if unended:
            logger.warning(
                f"{unended} sentences end at the maximal length, {length} tokens, without meeting "
                "their constraints: raise --max-len-b."
            )
        tokens = torch.full_like(beam.rows(), self.eos)
        return beam.end(Candidates(scores, tokens, beam.rows()), which, length)

    def _drop_finished(self, models: StepEnsemble, beam: Beam) -> None:
        """Takes sentences out of the batch that have N hypotheses, or none to go on with."""
        is_left = beam.scores.ne(-math.inf).any(1)  # (R,)
        if not self.is_exact:
            is_left &= beam.found < beam.size
        left = is_left.nonzero().squeeze(1)
        if len(left) == len(beam):
            return
        rows = beam.keep(left)
        models.reorder_encoder_out(rows)
        self.search.prune_sentences(left)

    def _hypotheses(
        self, history: History, ended: Sequence[Ended], src_tokens: Tensor, src_lengths: Tensor
    ) -> list[list[dict[str, Tensor]]]:
        """Reads the best ended hypotheses of each sentence off the history."""
        if not ended:  # a strategy has allowed nothing
            return [[] for _ in src_lengths]
        which = _flat(step.which for step in ended).nonzero().squeeze(1)  # in order of time
        nodes = _flat(step.nodes for step in ended)[which]  # (M,)
        scores = _flat(step.scores for step in ended)[which]
        sentences = _flat(s.sentences.unsqueeze(1).expand_as(s.which) for s in ended)[which]
        lengths = torch.cat([torch.full((s.which.numel(),), s.length) for s in ended])[which]
        normalized = scores
        if self.normalize_scores:
            normalized = scores / (lengths + 1).to(scores.dtype) ** self.len_penalty
        if self.match_source_len:
            too_long = lengths > src_lengths.cpu()[sentences]
            normalized = normalized.masked_fill(too_long, -math.inf)

        # The first N of each sentence, as fairseq; the best N where the search goes on to the end.
        by_score = normalized.argsort(descending=True, stable=True)
        first = by_score if self.is_exact else torch.arange(len(which))
        first = first[_rank_in(sentences[first]) < self.beam_size]
        chosen = by_score[torch.isin(by_score, first)]
        nodes, scores, sentences = nodes[chosen], scores[chosen], sentences[chosen]
        normalized, lengths = normalized[chosen], lengths[chosen]

        path, tokens, totals = history.paths(nodes, lengths)  # (M, T)
        ends = lengths.unsqueeze(1)
        tokens = F.pad(tokens, (0, 1)).scatter_(1, ends, self.eos)
        totals = F.pad(totals, (0, 1)).scatter_(1, ends, scores.unsqueeze(1))
        positional = totals - F.pad(totals[:, :-1], (1, 0))
        device = src_lengths.device
        tokens, positional, normalized = (
            tensor.to(device) for tensor in (tokens, positional, normalized)
        )
        sizes = lengths.tolist()
        attention = history.attention(
            [nodes[:size] for nodes, size in zip(path, sizes, strict=True)],
            (sentences * self.beam_size).tolist(),
        )
        found: list[list[dict[str, Tensor]]] = [[] for _ in src_lengths]
        for number, sentence in enumerate(sentences.tolist()):
            size = sizes[number] + 1
            hypothesis = {
                "tokens": tokens[number, :size].clone(),  # callers change them in place
                "score": normalized[number],
                "attention": torch.empty(0) if attention is None else attention[number].to(device),
                "alignment": torch.empty(0),
                "positional_scores": positional[number, :size].clone(),
            }
            if self.extract_alignment is not None:
                hypothesis["alignment"] = self.extract_alignment(
                    hypothesis["attention"].t().cpu(),
                    src_tokens[sentence].cpu(),
                    hypothesis["tokens"].cpu(),
                    self.pad,
                    self.eos,
                )
            found[sentence].append(hypothesis)
        return found


def _source(net_input: dict, pad: int, eos: int) -> tuple[Tensor, Tensor]:
    """What the batch holds, ``(B, S, ...)``, and the lengths of its sentences, ``(B,)``."""
    for name in ("src_tokens", "source", "features"):
        if name in net_input:
            break
    else:
        raise ValueError(
            "a batch to generate from needs src_tokens, source or features, and has "
            f"{', '.join(net_input) or 'nothing'}."
        )
    source = net_input[name]
    if name != "src_tokens":  # speech
        padding = net_input["padding_mask"]
        full = torch.full((len(source),), source.size(-1), device=source.device)
        return source, full if padding is None else padding.size(-1) - padding.sum(-1)
    if "src_lengths" in net_input:
        return source, net_input["src_lengths"]
    return source, (source.ne(eos) & source.ne(pad)).sum(1)


def _check_dictionary(language_model: nn.Module, dictionary: Dictionary) -> None:
    theirs = language_model.decoder.dictionary
    if theirs.symbols != dictionary.symbols:
        raise ValueError(
            f"--lm-path: the language model's dictionary ({len(theirs)} entries) is not the target "
            f"dictionary ({len(dictionary)} entries): train it on text that was prepared with "
            "fairseq-preprocess --srcdict and the target's dict.txt."
        )


def _flat(tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).cpu()


def _rank_in(groups: Tensor) -> Tensor:
    """How many before each have the same number, ``(M,)``."""
    ordered, order = groups.sort(stable=True)
    _, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(groups)) - starts.repeat_interleave(counts)
    return torch.empty_like(rank).scatter_(0, order, rank)
