"""What both tasks do for training."""

from fairseq_fixedpoint.allocation import keep_freed_memory
from fairseq_fixedpoint.criterions.fixedpoint_cross_entropy import FixedPointCrossEntropy


class TrainingTask:
    """Mixed into a task of fairseq."""

    _in_training = None  # the model, if it was built to be trained, not loaded

    def build_model(self, args, from_checkpoint=False):
        """Builds the model."""
        model = super().build_model(args, from_checkpoint)
        self._in_training = None if from_checkpoint else model
        return model

    def build_criterion(self, cfg, *args, **kwargs):
        """Builds the criterion.

        Raises:
            ValueError: for options that the model to be trained cannot honour.
        """
        criterion = super().build_criterion(cfg, *args, **kwargs)
        if self._in_training is not None and isinstance(criterion, FixedPointCrossEntropy):
            criterion.check_training(getattr(self._in_training, "decoder", None))
        return criterion

    def begin_epoch(self, epoch, model):
        """Before an epoch of training."""
        super().begin_epoch(epoch, model)
        keep_freed_memory(next(model.parameters()).device)
