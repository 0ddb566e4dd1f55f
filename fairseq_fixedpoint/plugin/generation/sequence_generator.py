"""Generation from cached iterates: a token costs the same however long the text is.

fairseq's generator copies the whole text of every hypothesis at every token and hands it to the
model. This one gives a model of order K the last token, from which and from its K cached iterates
the next state follows; keeps what was chosen as a pointer to the hypothesis before; and reads the
hypotheses off at the end. The strategies of search are fairseq's.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from fairseq import search, utils
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from fairseq_fixedpoint.plugin.generation.batch_search import BatchSearch
from fairseq_fixedpoint.plugin.generation.hypotheses import read_off
from fairseq_fixedpoint.plugin.generation.prefixes import ForcedPrefixes
from fairseq_fixedpoint.plugin.generation.stepping import (
    IncrementalEnsemble,
    IncrementalModel,
    has_full_softmax,
    memory_of,
)
from fairseq_fixedpoint.plugin.generation.strategy import Strategy
from fairseq_fixedpoint.plugin.generation.token_rules import TokenRules

logger = logging.getLogger(__name__)

ALIGNMENTS = {"hard": utils.extract_hard_alignment, "soft": utils.extract_soft_alignment}


class FixedPointSequenceGenerator(SequenceGenerator):
    """fairseq's `SequenceGenerator` with constant work a token, and recombination.

    It takes what fairseq's takes (strategies, ensembles, prefixes, penalties) and finds the same
    hypotheses and scores, but for this:

    - Recombination (:mod:`~fairseq_fixedpoint.plugin.generation.recombination`) keeps one of the
      hypotheses that end in the same K tokens. With a beam of at least V^K, for V words that can
      be chosen, the best hypothesis is the best of all up to the maximal length.
    - `</s>` in the prefix of a language model is part of the text: hypotheses go on after it. In
      the prefix of a translation it ends the one hypothesis there is.
    - A sentence does not depend on its batch: the minimal length and suppressed tokens hold from
      the end of its own prefix on, not of the longest.
    - The penalty of unknown words is for those that the search chooses, not for given ones.
    - A hypothesis that has ended never goes on. (fairseq's can, where a strategy gives no more than
      `beam` candidates, as diverse beam search does in groups of more than one.)
    - Given words need not be among those that a `prefix_allowed_tokens_fn` allows.
    - The beam may be larger than the vocabulary; `--no-repeat-ngram-size` works on a CPU as well,
      where fairseq's does nothing; and a sentence whose constraints did not come true within the
      maximal length keeps what it has.

    Args:
        models: the ensemble.
        tgt_dict: dictionary of the output.
        beam_size: N, hypotheses a sentence.
        recombination: whether to recombine where the models and the strategy allow it.
        bf16_output: whether the full softmax of fixed-point models has its product in bfloat16.
        print_alignment: ``hard`` or ``soft``, as in fairseq, for models with attention.
        options: the others of fairseq's `SequenceGenerator`.

    Raises:
        ValueError: for options that the models cannot honour.
    """

    beam_size: int

    def __init__(
        self,
        models: Sequence[BaseFairseqModel],
        tgt_dict: Dictionary,
        beam_size: int = 1,
        *,
        recombination: bool = True,
        bf16_output: bool = False,
        print_alignment: str | None = None,
        **options: Any,
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
            _check_language_model(self.lm_model, tgt_dict)
        topk = getattr(self.search, "sampling_topk", -1)
        if topk > self.vocab_size:
            raise ValueError(
                f"--sampling-topk {topk} is more than the dictionary's {self.vocab_size} entries: "
                "lower it, or drop it to draw from all."
            )
        if self.match_source_len and not self.model.has_encoder():
            raise ValueError(
                "--match-source-len: a language model has no source: give --min-len, --max-len-b."
            )
        self.extract_alignment = None
        if print_alignment:
            self._check_alignment()
            self.extract_alignment = ALIGNMENTS[str(print_alignment)]
        every_model = [*self.model.models, *filter(None, [self.lm_model])]
        if bf16_output and not any(map(has_full_softmax, every_model)):
            raise ValueError(
                "--bf16-output is for the full softmax of a fixed-point model, and none of these "
                "models has one: drop it."
            )
        self._output_type = torch.bfloat16 if bf16_output else None
        self._recombination = recombination
        if recombination and self.beam_size > 1 and (reason := self._why_no_recombination()):
            logger.info(f"no recombination of hypotheses that end in the same tokens: {reason}.")

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

    @property
    def order(self) -> int | None:
        """How many last tokens decide what follows (`LanguageModel.order`, the most of all models),
        if hypotheses that end in the same ones are recombined."""
        if not self._recombination or self.beam_size == 1 or self._why_no_recombination():
            return None
        return self._memory

    @property
    def _memory(self) -> int | None:
        return memory_of([*self.model.models, *filter(None, [self.lm_model])])

    def _why_no_recombination(self) -> str | None:
        """Why hypotheses that end in the same tokens need not have the same future, if so."""
        if self._memory is None:
            return "a model sees more of the text than its last tokens"
        if type(self.search) is not search.BeamSearch:
            return f"{type(self.search).__name__} goes by more than the best score"
        if self.repeat_ngram_blocker is not None:
            return "--no-repeat-ngram-size depends on the whole text"
        return None

    @property
    def is_exact(self) -> bool:
        """Whether the beam holds whatever K tokens a hypothesis can end in."""
        if self.order is None:
            return False
        impossible = {self.pad, self.eos}
        if self.token_indices_to_suppress is not None:
            impossible.update(self.token_indices_to_suppress.tolist())
        # Two words at least give more contexts than the beam holds at its number of bits.
        order = min(self.order, self.beam_size.bit_length())
        return self.beam_size >= (self.vocab_size - len(impossible)) ** order

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
            FloatingPointError: if a sentence has no hypothesis because a model gives no numbers.
        """
        net_input = sample["net_input"]
        src_tokens, src_lengths = _source(net_input, self.pad, self.eos)
        max_len = self._max_len(src_tokens, src_lengths)
        numbers = sample.get("id")
        if not isinstance(numbers, Tensor):
            numbers = torch.arange(len(src_lengths), device=src_lengths.device)
        strategy = Strategy(self.search, self.tgt_dict, numbers, src_lengths, self.order)
        strategy.init_constraints(constraints, self.beam_size)
        if prefix_tokens is None:
            prefix_tokens = src_lengths.new_empty(len(src_lengths), 0, dtype=torch.long)
        result = BatchSearch(
            self._step_models(net_input),
            strategy,
            self._rules(max_len),
            self._prefixes(prefix_tokens, max_len),
            beam_size=self.beam_size,
            is_exact=self.is_exact,
            bos=self.eos if bos_token is None else bos_token,
        ).run()
        hypotheses = read_off(
            result.history,
            result.ended,
            len(src_lengths),
            self.beam_size,
            self.eos,
            all_count=self.is_exact,
            longest=src_lengths.cpu() if self.match_source_len else None,
            len_penalty=self.len_penalty if self.normalize_scores else 0.0,
        )
        self._check_numbers(hypotheses, result.saw_nan)
        return self._finished(hypotheses, src_tokens)

    def _max_len(self, src_tokens: Tensor, src_lengths: Tensor) -> int:
        """The longest hypothesis, without its end."""
        if self.match_source_len:
            max_len = int(src_lengths.max())
        else:
            requested = int(self.max_len_a * src_tokens.size(1) + self.max_len_b)
            max_len = min(requested, self.max_len - 1)
        if self.min_len > max_len:
            raise ValueError(
                f"--min-len {self.min_len} is above the maximal length, {max_len}: lower it, or "
                "raise --max-len-a or --max-len-b."
            )
        return max_len

    def _rules(self, max_len: int) -> TokenRules:
        blocker = self.repeat_ngram_blocker
        return TokenRules(
            pad=self.pad,
            unk=self.unk,
            eos=self.eos,
            unk_penalty=self.unk_penalty,
            min_len=self.min_len,
            max_len=max_len,
            suppressed=self.token_indices_to_suppress,
            no_repeat_ngram_size=0 if blocker is None else blocker.no_repeat_ngram_size,
        )

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

    def _step_models(self, net_input: dict) -> IncrementalEnsemble:
        encoder_outs = self.model.forward_encoder(net_input)
        if encoder_outs is None:
            encoder_outs = [None] * self.model.models_size
        return IncrementalEnsemble(
            [
                IncrementalModel(model, encoder_out, self.temperature, self._output_type)
                for model, encoder_out in zip(self.model.models, encoder_outs, strict=True)
            ],
            None
            if self.lm_model is None
            else IncrementalModel(self.lm_model, output_type=self._output_type),
            self.lm_weight,
        )

    def _check_numbers(self, hypotheses: list[list[dict[str, Tensor]]], saw_nan: Tensor) -> None:
        """Raises FloatingPointError if NaN has left a sentence without hypothesis."""
        if not saw_nan:
            return
        trouble = "probabilities of the next token are no numbers (NaN)"
        without = sum(not nbest for nbest in hypotheses)
        if not without:
            logger.warning(f"{trouble} after some hypotheses, which are left out.")
            return
        raise FloatingPointError(
            f"{trouble}, so that {without} of {len(hypotheses)} sentences have no hypothesis: "
            + self._cause_of_nan()
        )

    def _cause_of_nan(self) -> str:
        models = [("model", model) for model in self.model.models]
        if self.lm_model is not None:
            models.append(("language model", self.lm_model))
        for number, (kind, model) in enumerate(models, start=1):
            broken = [name for name, w in model.named_parameters() if not w.isfinite().all()]
            if broken:
                return (
                    f"{kind} {number} of {len(models)} has weights that are not finite "
                    f"({broken[0]}), as after a training that diverged. Give an earlier checkpoint."
                )
        return "all weights are finite; if it is with --fp16, generate without it."

    def _finished(
        self, hypotheses: list[list[dict[str, Tensor]]], src_tokens: Tensor
    ) -> list[list[dict[str, Tensor]]]:
        """Hypotheses on the device of their sources, with alignments if they are wanted."""
        for sources, nbest in zip(src_tokens, hypotheses, strict=True):
            for hypothesis in nbest:
                if self.extract_alignment is not None:
                    hypothesis["alignment"] = self.extract_alignment(
                        hypothesis["attention"].t(),
                        sources.cpu(),
                        hypothesis["tokens"],
                        self.pad,
                        self.eos,
                    )
                for name in ("tokens", "score", "attention", "positional_scores"):
                    hypothesis[name] = hypothesis[name].to(src_tokens.device)
        return hypotheses


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


def _check_language_model(language_model: BaseFairseqModel, dictionary: Dictionary) -> None:
    if hasattr(language_model, "encoder"):
        raise ValueError(
            "--lm-path names a translation model, which has no probability of a text alone: give a "
            "language model, trained with --task fixedpoint_language_modeling."
        )
    lm_dictionary = language_model.decoder.dictionary
    if lm_dictionary.symbols != dictionary.symbols:
        raise ValueError(
            f"--lm-path: the language model's dictionary ({len(lm_dictionary)} entries) is not the "
            f"target dictionary ({len(dictionary)} entries): train it on text that was prepared "
            "with fairseq-preprocess --srcdict and the target's dict.txt."
        )
    predicted = getattr(language_model.decoder, "output_dictionary", None)
    if predicted is not None and len(predicted) != len(dictionary):
        raise ValueError(
            f"--lm-path: the language model predicts {len(predicted)} of the {len(dictionary)} "
            "entries of the target dictionary, and the others would have no probability: train it "
            "without --output-dictionary-size."
        )
