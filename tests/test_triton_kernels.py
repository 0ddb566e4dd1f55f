"""Triton's kernels against `pointwise.py`, on the CPU through Triton's interpreter.

The interpreter runs a kernel's programs with numpy: indices, masks and arithmetic are those of the
GPU, its speed and its rounding inside a product are not. It takes more than the compiler does, so
every kernel is compiled too, for which no GPU is needed.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_fixedpoint.recurrence import pointwise
from fairseq_fixedpoint.recurrence.reference import window_by_window
from tests.test_pointwise import TYPES, elman_tanh, inputs_of_all_sizes, relative_error
from tests.test_recurrence import KINDS, block, gradients, make

triton = pytest.importorskip("triton")

NAME = "fairseq_fixedpoint.recurrence.triton_kernels"
FUNCTIONS = (
    "elman_forward", "elman_backward", "lstm_forward", "lstm_backward", "gru_forward",
    "gru_backward",
)  # fmt: skip
SIZES = st.tuples(st.integers(1, 33), st.integers(1, 140))


def interpreted() -> ModuleType:
    """The kernels once more, as the interpreter runs them: it is chosen when they are defined."""
    spec = importlib.util.find_spec(NAME)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def separate() -> ModuleType:
    """Every product by PyTorch, the pointwise part by a kernel."""
    module = interpreted()
    module._tiling = lambda left: None
    return module


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    """Every product of the Elman cell in the kernel of its pointwise part."""
    module = interpreted()
    module._tiling = lambda left: None if left is None else module.TILINGS[-1]
    return module


class Matrices:
    """Random arguments of one call, each a view into a larger matrix of NaN.

    What is read beside a view would spoil the results, and what is written beside one shows. In
    bfloat16 the largest number takes NaN's place: PyTorch's product of an odd depth on a CPU with
    AMX reads one beside each row, times 0.
    """

    def __init__(self, dtype: torch.dtype, device: str = "cpu") -> None:
        self.dtype, self.device = dtype, device
        self.beside = torch.finfo(dtype).max if dtype == torch.bfloat16 else torch.nan
        self.wholes: list[tuple[Tensor, Tensor]] = []

    def random(self, rows: int, columns: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        values = torch.randn(rows, columns, dtype=torch.float64) * scale + shift
        view = self.empty(rows, columns)
        view.copy_(values)
        return view

    def empty(self, rows: int, columns: int) -> Tensor:
        # Whole multiples of 16 elements stay aligned, for which the compiler has other code.
        left, right = (0, 16) if columns % 16 == 0 else (1, 2)
        size = rows + 2, left + columns + right
        whole = torch.full(size, self.beside, dtype=self.dtype, device=self.device)
        view = whole[1:-1, left : left + columns]
        self.wholes.append((whole, view))
        return view

    def assert_nothing_beside(self) -> None:
        for whole, view in self.wholes:
            view.fill_(self.beside)
            expected = torch.full_like(whole, self.beside)
            torch.testing.assert_close(whole, expected, rtol=0, atol=0, equal_nan=True)


def call(
    functions: ModuleType, name: str, inputs: dict, outputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    getattr(functions, name)(**inputs, **outputs)
    return outputs


def arguments(
    matrices: Matrices, name: str, n: int, h: int, shared: bool, nonlinearity: str = "tanh"
) -> tuple[dict, dict[str, Tensor]]:
    """Inputs and outputs of a function; `shared`: one row precedes all, or a summand is missing."""
    random, empty, rows = matrices.random, matrices.empty, 1 if shared else n
    if name == "elman_forward":
        return {
            "x": random(n, h), "previous": random(rows, h), "weight": random(h, h, h**-0.5),
            "nonlinearity": nonlinearity,
        }, {"out": empty(n, h)}  # fmt: skip
    if name == "elman_backward":
        state = random(n, h, 0.5)
        if nonlinearity == "relu":
            state.relu_()
        return {
            "grad": None if shared else random(n, h), "d": random(n, h),
            "weight": random(h, h, h**-0.5), "state": state, "nonlinearity": nonlinearity,
        }, {"out": empty(n, h), "grad_x": random(n, h)}  # fmt: skip
    if name == "lstm_forward":
        return {
            "x": random(n, 4 * h), "recurrent": random(rows, 4 * h), "c": random(rows, h),
        }, {"gates": empty(n, 4 * h), "out": empty(n, 2 * h)}  # fmt: skip
    if name == "lstm_backward":
        return {
            "grad": random(n, 2 * h), "gates": random(n, 4 * h, 0.2, 0.5), "c": random(rows, h),
            "state": random(n, 2 * h),
        }, {
            "d_gates": empty(n, 4 * h), "grad_c": empty(n, h),
            "grad_x": None if shared else random(n, 4 * h),
        }  # fmt: skip
    if name == "gru_forward":
        return {
            "x": random(n, 3 * h), "recurrent": random(rows, 3 * h), "bias": random(1, h)[0],
            "previous": random(rows, h),
        }, {"gates": empty(n, 4 * h), "out": empty(n, h)}  # fmt: skip
    return {
        "grad": random(n, h), "gates": random(n, 4 * h, 0.2, 0.5), "previous": random(rows, h),
    }, {
        "grad_x": random(n, 3 * h), "d_recurrent": empty(n, 3 * h), "grad_previous": empty(n, h),
    }  # fmt: skip


def assert_equals_reference(
    kernels: ModuleType, name: str, dtype: torch.dtype, *size_and_kind, device: str = "cpu"
) -> None:
    """No further from the reference in float64 than twice what the reference in `dtype` is."""
    torch.manual_seed(0)
    matrices = Matrices(dtype, device)
    inputs, outputs = arguments(matrices, name, *size_and_kind)

    def copies(values: dict, dtype: torch.dtype) -> dict:
        return {
            k: v.to(dtype, copy=True) if isinstance(v, Tensor) else v for k, v in values.items()
        }

    double = torch.float64
    exact = call(pointwise, name, copies(inputs, double), copies(outputs, double))
    theirs = call(pointwise, name, copies(inputs, dtype), copies(outputs, dtype))
    ours = call(kernels, name, inputs, outputs)
    for key, expected in exact.items():
        if expected is not None:
            error, allowed = ((other[key] - expected).abs().max() for other in (ours, theirs))
            # A rounding more, as the reference may happen to be exact (in float64 it always is),
            # and one for each term of a product where the order of its sum decides.
            roundings = max(8, size_and_kind[1]) if dtype in (double, torch.float32) else 1
            largest = expected.abs().max().clamp(min=1)
            assert error <= 2 * allowed + roundings * torch.finfo(dtype).eps * largest, key
    matrices.assert_nothing_beside()


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=10, deadline=None)
@given(
    size=SIZES,
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    shared=st.booleans(),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
)
def test_equals_the_reference(separate, name, size, dtype, shared, nonlinearity):
    assert_equals_reference(separate, name, dtype, *size, shared, nonlinearity)


@pytest.mark.parametrize("dtype", TYPES)
def test_tanh_errs_little_more_than_pytorch_s(separate, dtype):
    """Two roundings more, of its exponential and its quotient."""
    v = inputs_of_all_sizes(dtype)
    allowed = relative_error(v.tanh(), v) + 2 * torch.finfo(dtype).eps
    assert relative_error(elman_tanh(separate, v), v) <= allowed


@pytest.mark.parametrize("name", ["elman_forward", "elman_backward"])
@settings(max_examples=10, deadline=None)
@given(
    size=SIZES,
    # Not bfloat16, whose bits the interpreter takes for integers in a product.
    dtype=st.sampled_from([torch.float32, torch.float16]),
    shared=st.booleans(),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
)
def test_a_fused_product_equals_the_reference(fused, name, size, dtype, shared, nonlinearity):
    assert_equals_reference(fused, name, dtype, *size, shared, nonlinearity)


@pytest.mark.parametrize("kernels", ["separate", "fused"])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_states_and_gradients_of_a_model_equal_the_reference(request, monkeypatch, kernels, kind):
    module = request.getfixturevalue(kernels)
    monkeypatch.setattr(pointwise, "of", lambda device: module)
    model = make(kind, layers=2, learned_initial_state=True).float()
    x = block(7).float().requires_grad_()
    resets = torch.rand(7, 2) < 0.3
    tensors = [x, *model.parameters()]
    actual = model(x, 3, resets=resets).output
    expected = window_by_window(model.effective_layers(), x, 3, resets)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(actual, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "output", "place"),
    [
        ("lstm_forward", "gates", lambda inputs, h: inputs["recurrent"]),
        ("lstm_backward", "grad_c", lambda inputs, h: inputs["grad"][:, h:]),
        ("gru_backward", "grad_previous", lambda inputs, h: inputs["grad"]),
    ],
    ids=["gates", "grad_c", "grad_previous"],
)
def test_an_output_may_take_the_place_of_an_input(separate, name, output, place, dtype):
    n, h = 20, 140
    inputs, outputs = arguments(Matrices(dtype), name, n, h, False)
    expected = {k: v.clone() for k, v in outputs.items()}
    call(separate, name, inputs, expected)
    actual = call(separate, name, inputs, outputs | {output: place(inputs, h)})
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


@pytest.fixture
def tf32():
    """Lets tensor cores multiply float32."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = allowed


SHAPES = st.tuples(st.integers(1, 200_000), st.integers(1, 5000))
LARGEST_SHARED = {True: 163 * 1024, False: 99 * 1024}  # bytes a block may have


class Left:
    """As much of a product's left factor as the choice of a way may look at."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype = torch.bfloat16):
        self.shape, self.dtype, self.device = shape, dtype, torch.device("cuda")


@given(shape=SHAPES, large=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_tile_fits_the_matrix_and_the_gpu(shape, large):
    kernels = importlib.import_module(NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_has_large_shared_memory", lambda device: large)
        tile = kernels._tiling(Left(shape))
    rows, width = shape
    if rows <= 8 or width > kernels.WIDEST:
        assert tile is None
    if tile is not None:
        assert tile["ROWS"] < 2 * rows and tile["COLUMNS"] < 2 * width
        stage = 128 * (tile["ROWS"] + tile["COLUMNS"])  # 128 bytes of each row and column
        assert tile["num_stages"] * stage <= LARGEST_SHARED[large]


@pytest.mark.parametrize(
    ("shape", "number"),
    [((65536, 1024), 0), ((1400, 1024), 1), ((20, 70), 5), ((65536, 4096), None)],
)
def test_the_more_rows_the_larger_the_tile(monkeypatch, shape, number):
    kernels = importlib.import_module(NAME)
    monkeypatch.setattr(kernels, "_has_large_shared_memory", lambda device: True)
    assert kernels._tiling(Left(shape)) == (None if number is None else kernels.TILINGS[number])


@pytest.mark.parametrize("name", ["elman_forward", "elman_backward"])
def test_the_way_chosen_is_taken_and_nothing_is_timed(tf32, monkeypatch, name):
    """Or two processes of one training would round differently."""
    kernels, launched = interpreted(), []
    launch = kernels._launch

    def launching(*arguments, **tile):
        launched.append(tile)
        launch(*arguments, **tile)

    monkeypatch.setattr(triton.testing, "do_bench", None)
    monkeypatch.setattr(kernels, "_launch", launching)
    for _ in range(2):
        assert_equals_reference(kernels, name, torch.float32, 70, 130, False)
    assert launched == [kernels.TILINGS[-1]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_tensor_cores_pytorch_multiplies(dtype):
    kernels = importlib.import_module(NAME)  # tf32 is not allowed by default
    assert kernels._tiling(Left((2000, 256), dtype)) is None
    assert kernels._tiling(None) is None


@pytest.fixture(scope="module")
def another_process() -> Iterator[Executor]:
    """Nothing compiles where Triton 3.3 has interpreted: its language stays patched."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


def compiled(name: str, dtype: str, capability: int, cache: str) -> tuple[bytes, str]:
    """A kernel's machine code and PTX for a GPU that need not be there."""
    os.environ["TRITON_CACHE_DIR"] = cache
    from fairseq_fixedpoint.recurrence import triton_kernels

    kernel = getattr(triton_kernels, name)
    tile = triton_kernels.TILINGS[-2] if "product" in name else triton_kernels.POINTWISE
    options = {"num_warps": tile["num_warps"], "num_stages": tile.get("num_stages", 2)}
    constants = {"ROWS": tile["ROWS"], "COLUMNS": tile["COLUMNS"], "NONLINEARITY": "tanh"}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    numbers = {"n", "h", *(name for name in kernel.arg_names if name.startswith("stride_"))}
    types = {
        name: "constexpr" if name in constants else "i32" if name in numbers else dtype
        for name in kernel.arg_names
    }
    source = triton.compiler.ASTSource(kernel, types, constants)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options=options)
    return made.asm["cubin"], made.asm["ptx"]


KERNELS = (
    "_elman_forward_product_kernel", "_elman_backward_product_kernel", "_elman_forward_kernel",
    "_elman_backward_kernel", "_lstm_forward_kernel", "_lstm_backward_kernel",
    "_gru_forward_kernel", "_gru_backward_kernel",
)  # fmt: skip


@pytest.mark.parametrize("capability", [80, 90], ids=["ampere", "hopper"])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles(another_process, tmp_path, name, capability):
    future = another_process.submit(compiled, name, "*bf16", capability, str(tmp_path))
    machine_code, ptx = future.result()
    assert machine_code
    if "product" in name:  # by tensor cores, asynchronously on Hopper
        assert ("wgmma" if capability == 90 else "mma.sync") in ptx


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnTheGPU:
    @pytest.fixture(scope="class")
    def kernels(self) -> ModuleType:
        return importlib.import_module(NAME)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_equals_the_reference(self, kernels, name, dtype):
        for size in (1, 5), (33, 70), (100, 256), (600, 650), (3000, 256):
            assert_equals_reference(kernels, name, dtype, *size, False, device="cuda")
            assert_equals_reference(kernels, name, dtype, *size, True, device="cuda")

    @pytest.mark.parametrize("dtype", TYPES)
    def test_tanh_errs_little_more_than_pytorch_s(self, kernels, dtype):
        """Its quotients and exponentials are a GPU's quick ones in float32: 2 roundings each."""
        v = inputs_of_all_sizes(dtype)
        actual = elman_tanh(kernels, v.cuda()).cpu()
        allowed = relative_error(v.tanh(), v) + 8 * torch.finfo(dtype).eps
        assert relative_error(actual, v) <= allowed

    @pytest.mark.parametrize("name", ["elman_forward", "elman_backward"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("way", range(6))
    def test_every_tiling_equals_the_reference(self, kernels, tf32, monkeypatch, name, dtype, way):
        monkeypatch.setattr(kernels, "_tiling", lambda left: kernels.TILINGS[way])
        try:
            assert_equals_reference(kernels, name, dtype, 300, 650, False, device="cuda")
        except triton.OutOfResources:
            pytest.skip("the tile needs more shared memory than this GPU has")


class TestChoice:
    """Which module `pointwise.of` gives."""

    @pytest.fixture(autouse=True)
    def a_gpu(self, monkeypatch):
        pointwise.of.cache_clear()
        self.give(monkeypatch, (9, 0))
        yield
        pointwise.of.cache_clear()

    def give(self, monkeypatch, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    def test_a_gpu_gets_the_kernels(self):
        assert pointwise.of(torch.device("cuda")).__name__ == NAME

    def test_an_old_triton_is_not_used(self, monkeypatch):
        monkeypatch.setattr(triton, "__version__", "3.2.0+git1")
        assert pointwise.of(torch.device("cuda")) is pointwise

    def test_a_cpu_gets_pytorch(self):
        assert pointwise.of(torch.device("cpu")) is pointwise

    def test_a_gpu_without_bfloat16_gets_pytorch(self, monkeypatch):
        self.give(monkeypatch, (7, 5))
        assert pointwise.of(torch.device("cuda")) is pointwise

    def test_an_amd_gpu_gets_pytorch(self, monkeypatch):
        monkeypatch.setattr(torch.version, "hip", "6.0")
        assert pointwise.of(torch.device("cuda")) is pointwise

    def test_without_triton_there_is_pytorch(self, monkeypatch):
        monkeypatch.delitem(sys.modules, NAME, raising=False)
        monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
        with pytest.raises(ImportError):
            importlib.import_module(NAME)
        assert pointwise.of(torch.device("cuda")) is pointwise
