"""The patches of plugin.compat: each is needed or skipped, narrow, and made once."""

import argparse
import inspect
import os
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, optim
from fairseq.data import Dictionary, MonolingualDataset, TokenBlockDataset, TruncatedDictionary
from fairseq.dataclass.configs import EMAConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.models.ema import EMA
from fairseq.optim import AMPOptimizer
from omegaconf import DictConfig, OmegaConf

from fairseq_fixedpoint.plugin import compat
from fairseq_fixedpoint.plugin.compat import CheckpointError
from tests.commands import evaluate, train


def fairseq_reads_unprotected() -> bool:
    """Whether this fairseq passes weights_only=False itself (its main branch does)."""
    original = inspect.unwrap(checkpoint_utils.load_checkpoint_to_cpu)
    return "weights_only=False" in inspect.getsource(original)


@pytest.fixture(autouse=True)
def patched():
    compat.apply()


@pytest.fixture
def unpatched(monkeypatch):
    """fairseq as it was before the patches, for one test."""
    for module, name in (
        (checkpoint_utils, "load_checkpoint_to_cpu"),
        (distributed_utils, "_broadcast_object_slow"),
    ):
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))


def checkpoint_state(**entries) -> dict:
    """What fairseq stores for a model that has no dataclass, with `entries` added."""
    model = argparse.Namespace(_name="lstm_lm", arch="lstm_lm", decoder_layers=1, dropout=0.1)
    state = {
        "args": None,
        "cfg": {
            "_name": None,
            "common": {"seed": 1, "log_format": None, "user_dir": "plugin"},
            "optimization": {"lr": [0.5, 0.25], "max_epoch": 2, "sentence_avg": False},
            "model": model,
            "task": argparse.Namespace(_name="language_modeling", data="data"),
        },
        "model": {"decoder.weight": torch.arange(6.0).reshape(2, 3)},
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 3,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 2}, "metrics": {}},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.ones(2, 3)}}, "param_groups": []},
    }
    return {**state, **entries}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(checkpoint_state(), path)
    return path


class Malicious:
    """Pickled as the call that its loading would make."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


# --- np.compat.long


def test_numpy_long_is_restored_and_works():
    assert np.compat.long is int
    sizes = np.array([3, 4, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        blocks = TokenBlockDataset(
            torch.arange(9).split(sizes.tolist()), sizes, 2, pad=1, eos=2, break_mode="eos"
        )
    assert [len(block) for block in blocks] == [3, 4, 2]


def test_numpy_long_is_restored_once_and_only_if_missing():
    numpy_2 = types.ModuleType("numpy")
    assert compat.patch_numpy_long(numpy_2)
    restored = numpy_2.compat
    assert not compat.patch_numpy_long(numpy_2)
    assert numpy_2.compat is restored
    assert np.zeros(1, dtype=restored.long).dtype == np.dtype(int)

    numpy_1 = types.ModuleType("numpy")
    numpy_1.compat = types.SimpleNamespace(long="its own")
    assert not compat.patch_numpy_long(numpy_1)
    assert numpy_1.compat.long == "its own"


# --- reading checkpoints


def test_checkpoint_of_fairseq_is_read(checkpoint):
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint), {"dropout": 0.3})
    assert state["cfg"].model.dropout == 0.3
    assert state["cfg"].optimization.lr == [0.5, 0.25]
    assert torch.equal(state["model"]["decoder.weight"], torch.arange(6.0).reshape(2, 3))


def test_reading_needs_the_patch(checkpoint, unpatched):
    if fairseq_reads_unprotected():
        pytest.skip("this fairseq reads checkpoints without the protection")
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))


def test_classes_are_allowed_only_while_fairseq_reads(checkpoint):
    before = set(torch.serialization.get_safe_globals())
    checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(checkpoint)


def test_patch_is_made_once(unpatched):
    assert compat.patch_checkpoint_loading()
    load = checkpoint_utils.load_checkpoint_to_cpu
    broadcast = distributed_utils._broadcast_object_slow
    assert not compat.patch_checkpoint_loading()
    assert checkpoint_utils.load_checkpoint_to_cpu is load
    assert distributed_utils._broadcast_object_slow is broadcast


def test_counts_of_bleu_are_read(tmp_path):
    """Translation with `--eval-bleu` leaves numpy arrays among the meters."""
    path = tmp_path / "checkpoint.pt"
    counts = {"_bleu_counts": np.arange(4), "_bleu_totals": np.ones(4)}
    torch.save(checkpoint_state(extra_state={"metrics": counts}), path)
    actual = checkpoint_utils.load_checkpoint_to_cpu(str(path))["extra_state"]["metrics"]
    for name, value in counts.items():
        np.testing.assert_array_equal(actual[name], value)


# --- files that are no checkpoint


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("call", [os.mkdir, os.system, eval], ids=lambda call: call.__name__)
def test_malicious_checkpoint_is_refused_and_does_not_run(tmp_path, call, zipped):
    if fairseq_reads_unprotected():
        pytest.skip("this fairseq reads checkpoints without the protection")
    trace = tmp_path / "trace"
    argument = {
        os.mkdir: str(trace),
        os.system: f"mkdir {trace}",
        eval: f"__import__('os').mkdir({str(trace)!r})",
    }[call]
    path = tmp_path / "checkpoint.pt"
    state = checkpoint_state(extra_state=Malicious(call, argument))
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pt.*{call.__name__}.*trust"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert not trace.exists()
    with pytest.raises(CheckpointError):
        checkpoint_utils.load_model_ensemble([str(path)])
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated_checkpoint_is_named(checkpoint, kept):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged.*name another"):
        checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"the cat sat on the mat\n" * 20, "is not a checkpoint"),
        (b"\x80\x02}q\x00X\x05\x00", "is not a checkpoint"),
        (bytes(range(256)) * 8, "is not a checkpoint"),
        (b"PK\x03\x04" + b"\0" * 400, "is damaged"),
    ],
    ids=["empty", "text", "cut pickle", "noise", "zip header alone"],
)
def test_wrong_file_is_named(tmp_path, content, said):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"file\.pt {said}.*name another"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))


@pytest.mark.parametrize(
    "content",
    [torch.ones(3), {"decoder.weight": torch.ones(3)}, [1, 2], {"cfg": {"task": None}}],
    ids=["tensor", "parameters alone", "list", "configuration alone"],
)
def test_other_file_of_torch_is_named(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"other\.pt is not a checkpoint of fairseq"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))


def test_missing_file_and_folder_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "none.pt"))
    with pytest.raises(IsADirectoryError):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path))


def test_other_errors_pass_unchanged(checkpoint):
    class Unwanted(Exception):
        pass

    class Overrides(dict):
        def items(self):
            raise Unwanted

    with pytest.raises(Unwanted):
        checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint), Overrides(dropout=0.1))


# --- several processes


BROADCAST = """
import sys
from pathlib import Path
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.distributed import utils
from fairseq_fixedpoint.plugin import compat

compat.apply()
torch.distributed.init_process_group("gloo")
group = torch.distributed.group.WORLD
state = None
if torch.distributed.get_rank() == 0:
    state = checkpoint_utils.load_checkpoint_to_cpu(sys.argv[1])
state = utils.broadcast_object(state, src_rank=0, group=group)
config, weight = state["cfg"], state["model"]["decoder.weight"].tolist()
seen = (type(config).__name__, config.model.dropout, config.optimization.lr, weight)
Path(sys.argv[2], str(torch.distributed.get_rank())).write_text(str(seen))
# A group that is still there at exit, if only by name, may abort it with torch 2.13.
del group
torch.distributed.destroy_process_group()
"""


def test_checkpoint_reaches_the_other_process(checkpoint, tmp_path):
    """What the trainer does when it resumes on several processes."""
    program = tmp_path / "broadcast.py"
    program.write_text(BROADCAST)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, *torchrun, str(program), str(checkpoint), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = (DictConfig.__name__, 0.1, [0.5, 0.25], [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    for rank in "01":
        assert (tmp_path / rank).read_text() == str(expected)


@pytest.mark.parametrize("switch", ["", "NO_"])
@pytest.mark.parametrize("trusted", [False, True])
def test_reading_decides_whatever_the_environment_says(monkeypatch, switch, trusted):
    """PyTorch refuses to read at all where both of its switches are set."""
    name = f"TORCH_FORCE_{switch}WEIGHTS_ONLY_LOAD"
    monkeypatch.setenv(name, "1")
    with compat.reading(trusted):
        forced = {each for each in os.environ if each.endswith("WEIGHTS_ONLY_LOAD")}
        assert forced == {f"TORCH_FORCE_{'NO_' if trusted else ''}WEIGHTS_ONLY_LOAD"}
    assert os.environ[name] == "1"
    assert sum(each.endswith("WEIGHTS_ONLY_LOAD") for each in os.environ) == 1


def test_a_copied_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    """As when training is killed while fairseq copies `checkpoint_last.pt`."""
    from fairseq.file_io import PathManager

    assert compat.patch_checkpoint_copies() is False  # the plugin has done it
    source, target = tmp_path / "checkpoint_1_5.pt", tmp_path / "checkpoint_last.pt"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    assert PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, target.name]
    copyfile = shutil.copyfile

    def killed(begun, path, **options):
        copyfile(begun, path, **options)
        with open(path, "r+b") as file:
            file.truncate(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", killed)
    source.write_bytes(b"newer")
    with pytest.raises(KeyboardInterrupt):
        PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == b"new"


def test_a_training_does_not_know_how_good_those_before_it_were(data, tmp_path):
    """As the jobs of `fairseq-hydra-train --multirun`, which run in one process."""
    assert compat.patch_remembered_best() is False  # the plugin has done it
    train(data, tmp_path / "good", "--max-epoch", 1, "--patience", 1)
    train(data, tmp_path / "worse", "--max-epoch", 2, "--patience", 1, "--lr", 1e-5)
    saved = {path.name for path in (tmp_path / "worse").iterdir()}
    assert {"checkpoint_best.pt", "checkpoint2.pt"} <= saved


def test_a_training_that_goes_on_knows_its_best(data, tmp_path):
    train(data, tmp_path, "--max-epoch", 1)
    best = (tmp_path / "checkpoint_best.pt").read_bytes()
    train(data, tmp_path, "--max-epoch", 2, "--lr", 10, "--clip-norm", 0)
    assert (tmp_path / "checkpoint_best.pt").read_bytes() == best


# --- moving averages


class Tied(torch.nn.Module):
    """A weight under two names, one under a single name, and an integer."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(5, 3)
        self.output_projection = torch.nn.Linear(3, 5)
        self.output_projection.weight = self.embed_tokens.weight
        self.register_buffer("order", torch.tensor(3))


@pytest.mark.parametrize("fp32", [False, True])
def test_averages_are_of_each_weight_once_and_of_no_integer(fp32):
    assert compat.patch_moving_averages() is False  # the plugin has done it
    model, decay = Tied() if fp32 else Tied().double(), 0.75
    config = EMAConfig(store_ema=True, ema_decay=decay, ema_fp32=fp32)
    averages = EMA(model, config)
    expected = {name: x.clone() for name, x in model.state_dict().items()}
    for update in range(1, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.order.fill_(update)
        averages.step(model, update)
        for name, x in model.state_dict().items():
            if x.is_floating_point():
                expected[name].lerp_(x, 1 - decay)
    actual = averages.get_model().state_dict()
    assert actual["order"] == 3
    tolerance = 2**-20 if fp32 else 1e-15  # of float32, and of float64
    for name in expected.keys() - {"order"}:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [("--adaptive-softmax-cutoff", "10,20"), ("--spectral-bound", 0.9), ("--orthogonal",)],
    ids=lambda options: options[0].strip("-"),
)
def test_every_kind_of_model_has_moving_averages(data, tmp_path, options):
    """fairseq asks a cluster softmax for its version, and copies the model."""
    train(data, tmp_path, "--iterations", 2, *options, "--max-update", 3, "--store-ema",
          "--ema-decay", 0.5)  # fmt: skip
    last, averages = (tmp_path / f"checkpoint_{name}.pt" for name in ("last", "averages"))
    checkpoint_utils.save_ema_as_checkpoint(str(last), str(averages))
    assert evaluate(data, averages) != evaluate(data, last)


def test_a_model_is_evaluated_by_its_moving_averages(data, tmp_path):
    train(
        data, tmp_path, "--iterations", 2, "--share-decoder-input-output-embed", "--max-update", 8,
        "--store-ema", "--ema-decay", 0.5, "--ema-start-update", 8,
    )  # fmt: skip
    last, averages = (tmp_path / f"checkpoint_{name}.pt" for name in ("last", "averages"))
    checkpoint_utils.save_ema_as_checkpoint(str(last), str(averages))
    # The average is of the last two updates, and not of the last one alone.
    assert evaluate(data, averages) != evaluate(data, last)
    train(
        data, tmp_path, "--iterations", 2, "--share-decoder-input-output-embed", "--max-update", 9,
        "--store-ema", "--ema-decay", 0.5, "--ema-start-update", 20,
    )  # fmt: skip
    checkpoint_utils.save_ema_as_checkpoint(str(last), str(averages))
    assert evaluate(data, averages) == evaluate(data, last)  # copied below the update of its start


@pytest.mark.parametrize("way", ["--restore-file", "--finetune-from-model"])
@pytest.mark.parametrize("fp32", [(), ("--ema-fp32",)])
def test_moving_averages_begin_with_the_weights_of_a_checkpoint(data, tmp_path, way, fp32):
    train(data, tmp_path / "without", "--iterations", 2, "--max-update", 2)
    given = tmp_path / "without" / "checkpoint_last.pt"
    train(data, tmp_path, "--iterations", 2, way, given, "--max-update", 4, "--store-ema",
          "--ema-decay", 1.0, *fp32)  # fmt: skip
    last, averages = (tmp_path / f"checkpoint_{name}.pt" for name in ("last", "averages"))
    checkpoint_utils.save_ema_as_checkpoint(str(last), str(averages))
    models = (torch.load(path, weights_only=False)["model"] for path in (given, averages))
    expected, actual = models
    assert all(torch.equal(actual[name], x) for name, x in expected.items())


# --- bfloat16


@pytest.mark.parametrize("optimizer", ["adam", "fused_adam"])
def test_bf16_trains_without_a_tpu(optimizer, data, tmp_path):
    options = ("--iterations", 2, "--bf16", "--optimizer", optimizer)
    train(data, tmp_path, *options, "--max-update", 1)
    train(data, tmp_path, *options, "--max-update", 2)  # which goes on
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=False)
    assert state["cfg"]["common"]["bf16"] and not state["cfg"]["common"]["tpu"]
    assert np.isfinite(evaluate(data, tmp_path / "checkpoint_last.pt"))


# --- mixed precision


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "fused_adam"])
def test_amp_makes_the_update_of_full_precision(optimizer, clip_norm):
    """With a scaler of the CPU's, as fairseq's own is of a GPU alone."""
    assert compat.patch_amp() is False  # the plugin has done it
    common = {"fp16_init_scale": 128, "amp_scale_window": None, "min_loss_scale": 1e-4}
    adam = {"adam_eps": 0.1, "tpu": False}
    options = {"momentum": 0.9, "weight_decay": 0.0} if optimizer == "sgd" else adam
    cfg = OmegaConf.create(
        {"common": common, "optimizer": {"_name": optimizer, "lr": [0.1], **options}}
    )
    full, mixed = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    expected = optim.build_optimizer(cfg.optimizer, [full])
    actual = AMPOptimizer.build_optimizer(cfg, [mixed])
    vars(actual)["_grad_scaler"] = torch.amp.GradScaler("cpu", init_scale=128.0)
    for gradient in torch.tensor([[1.0, -2.0, 0.5], [0.25, 4.0, -1.0]]):
        for each, weight in (expected, full), (actual, mixed):
            each.backward((weight * gradient).sum())
            each.clip_grad_norm(clip_norm)
            each.step()
            each.zero_grad()
    torch.testing.assert_close(mixed, full)
    assert (full - 1).abs().min() > 1e-3


# --- words beyond an output dictionary


def test_what_comes_in_is_the_text_whatever_is_predicted():
    """In each block: fairseq would put `<unk>` into all inputs but the first block's."""
    assert compat.patch_output_dictionary() is False  # the plugin has done it
    words = Dictionary()
    for number in range(20):
        words.add_symbol(f"w{number}")
    text = torch.randint(words.nspecial, len(words), (50,))
    blocks = TokenBlockDataset(
        [text], [len(text)], 7, pad=1, eos=2, break_mode="none", include_targets=True
    )
    predicted = TruncatedDictionary(words, 9)
    dataset = MonolingualDataset(
        blocks, blocks.sizes, words, predicted, add_eos_for_other_targets=False, shuffle=False,
        targets=["future"],
    )  # fmt: skip
    sources, targets = (
        torch.cat([block[name] for block in dataset]) for name in ("source", "target")
    )
    assert torch.equal(sources[1:], text[:-1])
    assert torch.equal(targets, torch.where(text < 9, text, words.unk()))
