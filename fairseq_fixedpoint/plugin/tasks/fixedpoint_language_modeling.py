"""`fixedpoint_language_modeling`: fairseq's `language_modeling` with blocks that keep the function.

The order-K model predicts from the last K tokens. A block cut off from what precedes it would
compute lower orders at its first positions, so blocks carry K-1 tokens of left context whose loss
is not counted: training, validation and evaluation then see one function whatever the block size.
The exact recurrence (`--iterations 0`) is trained on contiguous streams instead, its state carried
from block to block.

:class:`~fairseq_fixedpoint.plugin.generation.FixedPointSequenceGenerator` generates, from any text:
none at all, with sentence ends inside, or of another length than the others of its batch.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion
from fairseq.data import Dictionary, FairseqDataset
from fairseq.data.iterators import EpochBatchIterating
from fairseq.models import BaseFairseqModel, FairseqLanguageModel
from fairseq.optim import FairseqOptimizer
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from torch import Tensor, nn

from fairseq_fixedpoint.language_model import StreamState
from fairseq_fixedpoint.language_model.text_summary import TextSummary
from fairseq_fixedpoint.plugin.architectures import model_class, model_name
from fairseq_fixedpoint.plugin.data import (
    ContiguousStreamsDataset,
    LeftContextDataset,
    check_no_padding,
)
from fairseq_fixedpoint.plugin.data.occurrences import sentence_starts
from fairseq_fixedpoint.plugin.generation.generation_task import (
    GenerationTask,
    GenerationTaskConfig,
)
from fairseq_fixedpoint.plugin.generation.texts import prefixes_of, texts_dataset
from fairseq_fixedpoint.plugin.models.config_values import option
from fairseq_fixedpoint.plugin.models.decoder import FixedPointDecoder
from fairseq_fixedpoint.plugin.models.start import unused_options
from fairseq_fixedpoint.plugin.tasks.training import TrainingTask
from fairseq_fixedpoint.recurrence import Iterated

logger = logging.getLogger(__name__)

MIXED = "an exact recurrence (iterations 0) and models of some order K are evaluated together"


@dataclass
class FixedPointLanguageModelingConfig(LanguageModelingConfig, GenerationTaskConfig):
    """Options of `fixedpoint_language_modeling`."""

    reset_at_eos: bool = field(
        default=False,
        metadata={
            "help": "end every window at its sentence's start, so that a packed stream equals "
            "sentence-by-sentence scoring"
        },
    )
    bf16_products: bool = field(
        default=False,
        metadata={
            "help": "matrix products of training in bfloat16, weights and updates in float32; "
            "validation and evaluation stay in float32"
        },
    )


class FixedPointLanguageModelingTask(GenerationTask, TrainingTask, LanguageModelingTask):
    """Language modelling whose blocks see what the model's window needs."""

    def __init__(
        self,
        args: FixedPointLanguageModelingConfig,
        dictionary: Dictionary,
        output_dictionary: Dictionary | None = None,
        targets: list[str] | None = None,
    ):
        super().__init__(args, dictionary, output_dictionary, targets)
        self.reset_at_eos = args.reset_at_eos
        # Of the models built or loaded, while there are any.
        self._decoders: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._carried = {"train": StreamState(), "valid": StreamState()}
        self._warned_of_breaks = False

    @classmethod
    def setup_task(
        cls, args: FixedPointLanguageModelingConfig, **kwargs: Any
    ) -> "FixedPointLanguageModelingTask":
        """Loads the dictionary.

        Raises:
            FileNotFoundError: if the data folder has no dict.txt.
            ValueError: for options that this task cannot honour.
        """
        if args.data:
            dictionary = os.path.join(utils.split_paths(args.data)[0], "dict.txt")
            if not os.path.exists(dictionary):
                raise FileNotFoundError(
                    f"{dictionary} does not exist: give the folder that fairseq-preprocess "
                    "--only-source wrote."
                )
        for name in ("self_target", "past_target", "add_bos_token"):
            if getattr(args, name, False):
                raise ValueError(
                    f"{option(name)} does not fit a left-to-right model of a "
                    "stream: drop it, or use --task language_modeling."
                )
        return super().setup_task(args, **kwargs)

    def build_model(self, args: object, from_checkpoint: bool = False) -> FairseqLanguageModel:
        """Builds the model, whose order says how much left context blocks need.

        Raises:
            ValueError: for a model that is no language model, or one to be trained with a stride
                that it does not know.
        """
        kind = model_class(args)
        if kind is not None and not issubclass(kind, FairseqLanguageModel):
            raise ValueError(
                f"{model_name(args)} is no language model: choose another --arch or --path, "
                "or the --task that it is made for."
            )
        model = super().build_model(args, from_checkpoint)
        if not from_checkpoint and isinstance(model.decoder, FixedPointDecoder):
            model.decoder.check_stride()
            for sentence in unused_options(model.decoder.config):
                logger.warning(sentence)
        self._decoders.add(model.decoder)
        return model

    @property
    def _orders(self) -> set[int]:
        """K of each model there is; 0 for an exact recurrence, none for other models."""
        return {decoder.iterations for decoder in self._decoders if isinstance(decoder, Iterated)}

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Loads a split as consecutive blocks.

        Raises:
            ValueError: for an empty split, one with padding among its words, or a block size below
                1.
            FileNotFoundError: if the split is not there.
        """
        if self.args.tokens_per_sample < 1:
            raise ValueError(
                f"--tokens-per-sample leaves {self.args.tokens_per_sample} tokens a block: make it "
                "at least 1, and with fairseq-eval-lm larger than --context-window, which is "
                "taken off it."
            )
        paths = utils.split_paths(self.args.data)
        binary = os.path.join(paths[(epoch - 1) % len(paths)], f"{split}.bin")
        if os.path.exists(binary) and os.path.getsize(binary) == 0:
            raise ValueError(
                f"the {split} set {binary} is empty: check the text given to fairseq-preprocess."
            )
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        sentences = self.datasets[split].dataset.dataset
        check_no_padding(sentences, self.dictionary, f"the {split} set {binary}")

    def get_batch_iterator(
        self,
        dataset: FairseqDataset,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        num_shards: int = 1,
        shard_id: int = 0,
        **kwargs: Any,
    ) -> EpochBatchIterating:
        """Batches of blocks with left context, or of contiguous streams for `--iterations 0`.

        Raises:
            ValueError: for models that want both.
        """
        if self._carries_state and dataset in self.datasets.values():
            if self._are_mixed:
                raise ValueError(
                    f"{MIXED}: the one reads contiguous streams, the other blocks with left "
                    "context. Take them apart, or give --sample-break-mode eos."
                )
            rows = self._stream_rows(len(dataset), max_tokens, max_sentences, num_shards)
            streams = ContiguousStreamsDataset(
                dataset, rows * num_shards, rows * shard_id, rows * (shard_id + 1)
            )
            iterator = super().get_batch_iterator(
                streams, max_tokens=max_tokens, max_sentences=max_sentences, **kwargs
            )
            iterator.disable_shuffling = True
            return iterator
        with_context = self._with_context(dataset)
        _check_room(with_context, max_tokens)
        return super().get_batch_iterator(
            with_context,
            max_tokens=max_tokens,
            max_sentences=max_sentences,
            num_shards=num_shards,
            shard_id=shard_id,
            **kwargs,
        )

    def _stream_rows(
        self, blocks: int, max_tokens: int | None, max_sentences: int | None, processes: int
    ) -> int:
        """Streams of each process: what the batch size allows, as far as the blocks go."""
        size = self.args.tokens_per_sample
        if max_tokens is not None and max_tokens < size:
            raise ValueError(
                f"--max-tokens {max_tokens} is less than one block of --tokens-per-sample {size}: "
                "raise the one or lower the other."
            )
        if blocks < processes:
            raise ValueError(
                f"{blocks} blocks of --tokens-per-sample {size} are too few for {processes} "
                "processes, each of which needs a stream: use fewer, or smaller blocks."
            )
        limits = [blocks // processes]
        if max_sentences is not None:
            limits.append(max_sentences)
        if max_tokens is not None:
            limits.append(max_tokens // size)
        return min(limits)

    @property
    def _carries_state(self) -> bool:
        return 0 in self._orders and self._is_stream

    @property
    def _are_mixed(self) -> bool:
        return 0 in self._orders and len(self._orders) > 1

    @property
    def _is_stream(self) -> bool:
        return str(self.args.sample_break_mode) in {"none", "None"}

    def _with_context(self, dataset: FairseqDataset, context: int = 0) -> FairseqDataset:
        """Adds left context: K-1 tokens for the largest K, or `context` if that is more, and what a
        summary sees; blocks of whole sentences stand alone."""
        if dataset not in self.datasets.values():
            return dataset  # text to generate from, or a data set made elsewhere
        decoders = [decoder for decoder in self._decoders if isinstance(decoder, FixedPointDecoder)]
        summaries = [each.summary for each in decoders if each.summary is not None]
        if not self._is_stream:
            if summaries and not self._warned_of_breaks:
                self._warned_of_breaks = True
                seen = "no sentence before its first one"
                if not all(each.stands_still for each in summaries):
                    seen = "no token before its first one"
                logger.warning(
                    f"with --sample-break-mode {self.args.sample_break_mode} nothing comes before "
                    f"a block, so that its start or its summary knows {seen}: leave the option out "
                    "to train and evaluate in context."
                )
            return LeftContextDataset(dataset, 0, self.dictionary.pad())
        standing = _most_tokens(each for each in summaries if each.stands_still)
        starts = None
        if standing:
            starts = sentence_starts(dataset.dataset.dataset, self.dictionary.eos())
        return LeftContextDataset(
            dataset,
            max(context, *(order - 1 for order in self._orders), 0),
            self.dictionary.pad(),
            summarised=_most_tokens(each for each in summaries if not each.stands_still),
            standing=standing,
            sentence_starts=starts,
            tells_lead=len(decoders) == len(self._decoders),  # other models know of none
        )

    def eval_lm_dataloader(
        self,
        dataset: FairseqDataset,
        max_tokens: int | None = 36000,
        batch_size: int | None = None,
        max_positions: int | None = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 1,
        data_buffer_size: int = 10,
        context_window: int = 0,
    ) -> Iterator[dict]:
        """Batches for `fairseq-eval-lm`; the context that models need is not to be asked for.

        Raises:
            ValueError: if a part of the text, or all of it, would not be evaluated.
        """
        if self._carries_state and context_window == 0 and len(dataset) > 1:
            if self._are_mixed:
                raise ValueError(
                    f"{MIXED}, and the exact one would start each of {len(dataset)} blocks from "
                    "its initial state: make --tokens-per-sample as large as the text, give "
                    "--context-window to let it see more, or evaluate them apart."
                )
            logger.warning(
                "the exact recurrence starts every block from its initial state: "
                "give --context-window to let it see more."
            )
        with_context = self._with_context(dataset, context_window)
        _check_room(with_context, max_tokens)
        iterator = super().get_batch_iterator(
            with_context,
            max_tokens=max_tokens,
            max_sentences=batch_size,
            max_positions=max_positions,
            ignore_invalid_inputs=True,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            data_buffer_size=data_buffer_size,
        )
        left_out = len(dataset) - sum(len(batch) for batch in iterator.frozen_batches)
        if left_out:
            raise ValueError(
                f"{left_out} of {len(dataset)} blocks are longer than the {max_positions} tokens "
                "that the model takes and would be left out, so the perplexity would be another "
                "text's (and 1 if nothing is left): give a smaller --tokens-per-sample."
            )
        return iterator.next_epoch_itr(shuffle=False)

    def build_dataset_for_inference(
        self, src_tokens: list[Tensor], src_lengths: list[int], constraints: Tensor | None = None
    ) -> FairseqDataset:
        """Texts to go on from or to score; with no token, a text starts at the sentence start."""
        return texts_dataset(
            src_tokens, self.source_dictionary, self.target_dictionary, constraints
        )

    def inference_step(
        self,
        generator: Any,
        models: Sequence[BaseFairseqModel],
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """The hypotheses of each text, which begin with it.

        Args:
            prefix_tokens: what they begin with instead, ``(B, P)``, as with `--prefix-size`.
            constraints: packed as fairseq does, a row a text; they count from the end of the text.
        """
        prefixes = prefixes_of(sample, prefix_tokens, self.source_dictionary)  # (B, P)
        if constraints is None:
            return generator.generate(models, sample, prefix_tokens=prefixes)
        lengths = prefixes.ne(self.source_dictionary.pad()).sum(1)
        numbers = sample.get("id")
        if numbers is None:
            numbers = torch.arange(len(prefixes), device=prefixes.device)
        generated: list[list[dict[str, Tensor]]] = [[] for _ in prefixes]
        for length in lengths.unique():  # the strategy has to begin where all texts end
            rows = lengths.eq(length).nonzero().squeeze(1)
            part = {
                "id": numbers[rows],
                "net_input": {"src_tokens": sample["net_input"]["src_tokens"][rows]},
            }
            hypotheses = generator.generate(
                models, part, prefix_tokens=prefixes[rows, :length], constraints=constraints[rows]
            )
            for row, text in zip(rows.tolist(), hypotheses, strict=True):
                generated[row] = text
        return generated

    def train_step(
        self,
        sample: dict[str, Any],
        model: nn.Module,
        criterion: Callable,
        optimizer: FairseqOptimizer,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """One training step, the state of a stream carried from the step before.

        Raises:
            ValueError: for `--bf16-products` with `--amp` or `--fp16`.
        """
        sample = self._carrying(sample, self._carried["train"], update_num)
        if self.args.bf16_products:
            _check_no_float16(model, optimizer)
            # fairseq's step sets autocast on a GPU, so ours has to be inside of it.
            criterion = partial(_in_bfloat16, criterion)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def valid_step(
        self, sample: dict[str, Any], model: nn.Module, criterion: FairseqCriterion
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """One validation step; its streams are not those of training."""
        # No update goes over a batch of validation, but it may come again.
        sample = self._carrying(sample, self._carried["valid"], sample.get("position", 0))
        return super().valid_step(sample, model, criterion)

    def _carrying(self, sample: dict, carried: StreamState, update: int) -> dict:
        if "position" not in sample:
            return sample
        carried.begin(sample["position"], update)
        return {**sample, "net_input": {**sample["net_input"], "carried_state": carried}}


def _check_room(dataset: FairseqDataset, max_tokens: int | None) -> None:
    """Raises ValueError if a block and what comes before it are more than a batch may have."""
    if not isinstance(dataset, LeftContextDataset) or max_tokens is None or not len(dataset):
        return
    largest, block = int(dataset.sizes.max()), int(dataset.dataset.sizes.max())
    if max_tokens < largest:
        raise ValueError(
            f"--max-tokens {max_tokens} is less than one block of {block} tokens and the "
            f"{largest - block} before it that the model looks at: make it at least {largest}, "
            "or lower --tokens-per-sample."
        )


def _most_tokens(summaries: Iterable[TextSummary]) -> int:
    """The largest M of the summaries."""
    return max((summary.tokens for summary in summaries), default=0)


def _in_bfloat16(
    criterion: Callable, model: nn.Module, sample: dict[str, Any]
) -> tuple[Tensor, int, dict[str, Any]]:
    """What the criterion gives, matrix products in bfloat16."""
    with torch.autocast(sample["target"].device.type, torch.bfloat16):
        return criterion(model, sample)


def _check_no_float16(model: nn.Module, optimizer: FairseqOptimizer) -> None:
    amp = isinstance(optimizer, AMPOptimizer)
    if amp or next(model.parameters()).dtype == torch.float16:
        raise ValueError(
            f"--bf16-products and {'--amp' if amp else '--fp16'} choose different types for the "
            "same matrix products: give one of them."
        )
