"""A language model for flashlight's beam search, which is torchaudio's `ctc_decoder`, too."""

from __future__ import annotations

from collections.abc import Sequence

from flashlight.lib.text.decoder import LM, LMState

from fairseq_fixedpoint.decoding.histories import History, StepModel
from fairseq_fixedpoint.rescoring.text import TextEncoder


class FlashlightModel(LM):
    """Scores the words of flashlight's lexicon decoder, by natural-log probabilities.

    For use as ``torchaudio.models.decoder.ctc_decoder(lm=..., lm_dict=FILE, lexicon=..., ...)``,
    where FILE has `words`, one a line. Hypotheses that end in the same K words have one state, so
    that flashlight merges them, which is exact for the best one.

    Args:
        model: a :class:`~fairseq_fixedpoint.decoding.one_step.OneStep`.
        words: the decoder's word dictionary, in order.
    """

    def __init__(self, model: StepModel, words: Sequence[str]):
        super().__init__()
        self._model = model
        self._tokens = TextEncoder(model.dictionary).indices(list(words))
        # The decoder holds the C++ part of a state alone; what belongs to it is kept here.
        self._history_of: dict[LMState, History] = {}
        self._state_of: dict[History, LMState] = {}

    def start(self, start_with_nothing: bool) -> LMState:
        """The state of a new text, with which all those of the one before are forgotten."""
        self._history_of.clear()
        self._state_of.clear()
        return self._state(History.start(self._model))

    def score(self, state: LMState, usr_token_idx: int) -> tuple[LMState, float]:
        """The state after a word, by its number, and the word's log-probability."""
        history, token = self._history_of[state], self._tokens[usr_token_idx]
        return self._state(history.then(token)), history.log_probability(token)

    def finish(self, state: LMState) -> tuple[LMState, float]:
        """The state after a text, and the log-probability of its end."""
        history, eos = self._history_of[state], self._model.dictionary.eos()
        return self._state(history.then(eos)), history.log_probability(eos)

    def _state(self, history: History) -> LMState:
        state = self._state_of.get(history)
        if state is None:
            state = LMState()
            self._state_of[history] = state
            self._history_of[state] = history
        return state
