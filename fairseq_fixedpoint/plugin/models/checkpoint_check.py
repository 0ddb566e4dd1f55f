"""A checkpoint is looked at before a model of fairseq takes its parameters."""

from typing import Any

from fairseq.models import BaseFairseqModel


class ChecksCheckpoint(BaseFairseqModel):
    """A model that may refuse a checkpoint."""

    def check_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for one that is of another model than its shapes tell."""
        raise NotImplementedError

    def load_state_dict(
        self,
        state_dict: dict[str, Any],
        strict: bool = True,
        model_cfg: Any = None,
        args: Any = None,
    ) -> Any:
        """Loads a checkpoint that :meth:`check_checkpoint` does not refuse."""
        self.check_checkpoint(state_dict)
        return super().load_state_dict(state_dict, strict, model_cfg, args)
