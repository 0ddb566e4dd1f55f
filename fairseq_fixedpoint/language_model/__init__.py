"""A language model of order K, with torch alone.

:class:`LanguageModel` is what all else stands on: fairseq's decoder is one, and a folder that
:func:`.folder.read_folder` reads holds one.
"""

from fairseq_fixedpoint.language_model.config import LanguageModelConfig
from fairseq_fixedpoint.language_model.model import LanguageModel, StepCache
from fairseq_fixedpoint.language_model.stream import StreamState

__all__ = ["LanguageModel", "LanguageModelConfig", "StepCache", "StreamState"]
