"""A language model for pyctcdecode."""

from __future__ import annotations

import sys

from pyctcdecode.language_model import AbstractLanguageModel

from fairseq_fixedpoint.decoding.histories import History, StepModel
from fairseq_fixedpoint.rescoring.text import TextEncoder


class PyctcdecodeModel(AbstractLanguageModel):
    """Scores the words of pyctcdecode's beams; what it calls a state is a :class:`History`.

    For use with ``BeamSearchDecoderCTC(Alphabet.build_alphabet(labels), language_model)``. A beam
    gets `alpha` times the natural-log probability of its words and of the sentence's end, and
    `beta` a word.

    Args:
        model: a :class:`~fairseq_fixedpoint.decoding.one_step.OneStep`.
        alpha, beta: the weights.
        unknown_offset: added to the log-probability of `<unk>` for a word that the model does not
            know, before `alpha`; pyctcdecode gives kenlm's models -10.
    """

    def __init__(
        self, model: StepModel, alpha: float = 0.5, beta: float = 1.5, unknown_offset: float = -10.0
    ):
        self._model = model
        self._encoder = TextEncoder(model.dictionary)
        self.alpha = alpha
        self.beta = beta
        self.unknown_offset = unknown_offset

    @property
    def order(self) -> int:
        """One more than the words that a score depends on, K + 1; without bound if on all."""
        return sys.maxsize if self._model.order is None else self._model.order + 1

    def get_start_state(self) -> History:
        """The history that every text begins with."""
        return History.start(self._model)

    def score_partial_token(self, partial_token: str) -> float:
        """0: words are scored when they are whole."""
        return 0.0

    def score(
        self, prev_state: History, word: str, is_last_word: bool = False
    ) -> tuple[float, History]:
        """What a word adds to a beam's score, and the history with it.

        An empty word, with which pyctcdecode ends a text after a space, is none.
        """
        score, state = 0.0, prev_state
        if word:
            (token,) = self._encoder.indices([word])
            log_probability = prev_state.log_probability(token)
            if self._encoder.is_unknown([token]).item():
                log_probability += self.unknown_offset
            score += self.alpha * log_probability + self.beta
            state = prev_state.then(token)
        if is_last_word:
            score += self.alpha * state.log_probability(self._model.dictionary.eos())
        return score, state

    def reset_params(self, **params: float | None) -> None:
        """Takes the weights that pyctcdecode's `reset_params` names, `alpha` and `beta`."""
        for name in ("alpha", "beta"):
            if params.get(name) is not None:
                setattr(self, name, params[name])
        offset = params.get("unk_score_offset")
        if offset is not None:
            self.unknown_offset = offset
