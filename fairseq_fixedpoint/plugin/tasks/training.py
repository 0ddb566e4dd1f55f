"""What all tasks do for training."""

from typing import Any, ClassVar

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion
from fairseq.distributed import utils as distributed_utils
from fairseq.models import BaseFairseqModel
from fairseq.modules import LayerDropModuleList
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from fairseq_fixedpoint.plugin.allocation import keep_freed_memory
from fairseq_fixedpoint.plugin.criterions.fixedpoint_cross_entropy import FixedPointCrossEntropy
from fairseq_fixedpoint.plugin.small_moments import UPDATES_BETWEEN, zero_small_moments

# Between the seeds of two processes: odd, so that those of 32 bits, which PyTorch takes on a CPU,
# differ, too, and large, as the seed of each update is one more than the last one's.
BETWEEN_SEEDS = 0x9E3779B97F4A7C15


class TrainingTask(FairseqTask):
    """Mixed into a task of fairseq.

    Attributes:
        criterion_class: what its criterion has to be.
        criterion_name: what fairseq calls that.
    """

    criterion_class: ClassVar[type[FairseqCriterion]] = FairseqCriterion
    criterion_name: ClassVar[str] = ""

    _own_seed: int | None = None  # of this process in the update before

    # The model, if it was built to be trained, not loaded.
    _in_training: BaseFairseqModel | None = None

    def build_model(self, args: object, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Builds the model."""
        model = super().build_model(args, from_checkpoint)
        self._in_training = None if from_checkpoint else model
        return model

    def build_criterion(self, cfg: Any, *args: Any, **kwargs: Any) -> FairseqCriterion:
        """Builds the criterion.

        Raises:
            ValueError: for one that does not fit the task, or options that the model to be trained
                cannot honour.
        """
        criterion = super().build_criterion(cfg, *args, **kwargs)
        if not isinstance(criterion, self.criterion_class):
            raise ValueError(
                f"--criterion {self.criterion_name} is what this task is trained with, and not "
                f"{cfg._name}: give that."
            )
        decoder = getattr(self._in_training, "decoder", None)
        if self._in_training is not None and isinstance(criterion, FixedPointCrossEntropy):
            criterion.check_training(decoder)
        elif getattr(decoder, "gates", None) is not None:
            raise ValueError(
                "--l0-penalty is a term of --criterion fixedpoint_cross_entropy, and another "
                "criterion would train gates that nothing closes: choose it, or drop the penalty."
            )
        return criterion

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Before an epoch of training."""
        super().begin_epoch(epoch, model)
        keep_freed_memory(next(model.parameters()).device)

    def train_step(
        self, sample: dict[str, Any], model: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """One training step, whose dropout masks are not those of the other processes."""
        self._draw_apart(model)
        return super().train_step(sample, model, *args, **kwargs)

    def optimizer_step(
        self, optimizer: FairseqOptimizer, model: nn.Module, update_num: int
    ) -> None:
        """An update of the parameters."""
        super().optimizer_step(optimizer, model, update_num)
        if update_num % UPDATES_BETWEEN == 0:
            zero_small_moments(optimizer)

    def _draw_apart(self, model: nn.Module) -> None:
        """Folds the rank into the seed, which fairseq sets for each update, for all ranks alike.

        The first process keeps it, and so does a single one. The batches that an update accumulates
        go on drawing. Layers that are dropped are left to be the same everywhere, since processes
        that share parameters wait for one another at each layer.
        """
        seed = torch.initial_seed()
        if seed == self._own_seed or distributed_utils.get_data_parallel_world_size() == 1:
            return
        if any(isinstance(module, LayerDropModuleList) for module in model.modules()):
            return
        rank = distributed_utils.get_data_parallel_rank()
        self._own_seed = (seed + rank * BETWEEN_SEEDS) % 2**63
        if rank > 0:
            utils.set_torch_seed(self._own_seed)
