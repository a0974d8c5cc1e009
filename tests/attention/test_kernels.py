"""What an attention call returns, and its log-sum-exp: against a softmax in double precision, and kernels that lie."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_induction import measure_heads
from pytest_induction.attention import kernels
from pytest_induction.attention.kernels import Attended, AttentionCall, attend
from pytest_induction.attention.pattern import LogSumExpReader
from tests.model.plain import Plain
from tests.model.zoo import build

ORIGINAL = F.scaled_dot_product_attention
CLOSE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
T = 23


@pytest.fixture(autouse=True)
def _no_memory_of_other_tests(monkeypatch):
    forget(monkeypatch)


def forget(monkeypatch):
    for name in ("_trusted", "_known"):
        monkeypatch.setattr(kernels, name, {})


def parts(dtype=torch.float32, heads=4, key_heads=4, width=8, d_value=8, batch=2):
    generator = torch.Generator().manual_seed(5)
    sizes = ((heads, width), (key_heads, width), (key_heads, d_value))
    return [torch.randn(batch, n, T, d, generator=generator, dtype=torch.float64).mul(2).to(dtype) for n, d in sizes]


def causal():
    return torch.ones(T, T, dtype=torch.bool).tril()


def window(width=5):
    return causal() & torch.ones(T, T, dtype=torch.bool).triu(1 - width)


def padded():
    real = torch.ones(2, 1, 1, T, dtype=torch.bool)
    real[1, ..., :6] = False
    return causal() & real


MASKS = {
    "is_causal": lambda dtype: None,
    "boolean": lambda dtype: causal(),
    "boolean with padding": lambda dtype: padded(),
    "sliding window": lambda dtype: window(),
    "infinity": lambda dtype: torch.zeros(T, T, dtype=dtype).masked_fill(~causal(), -torch.inf),
    "lowest number": lambda dtype: torch.zeros(2, 1, T, T, dtype=dtype).masked_fill(~padded(), torch.finfo(dtype).min),
    "bias of each head": lambda dtype: (
        (-torch.arange(1, 5)[:, None, None] * (torch.arange(T)[:, None] - torch.arange(T)).abs() / 8.0)
        .to(dtype)
        .masked_fill(~causal(), -torch.inf)[None]
    ),
}


def reference(call):
    """The pattern in double precision, (batch, heads, T, T); rows with nothing to attend to are 0."""
    query, key = call.query.double(), call.key.double().repeat_interleave(call.query.shape[1] // call.key.shape[1], 1)
    scores = query @ key.mT * call.scale
    if call.mask is not None:
        scores = scores.masked_fill(~call.mask, -torch.inf) if call.mask.dtype == torch.bool else scores + call.mask.double()
    if call.causal:
        scores = scores.masked_fill(~causal(), -torch.inf)
    empty = scores.amax(-1, keepdim=True) < -3e4
    return scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)


def read(call):
    output, log_sum_exp = attend(ORIGINAL, call)
    torch.testing.assert_close(output, call.run(ORIGINAL), rtol=0, atol=0, equal_nan=True)
    return LogSumExpReader(call.query, call.key, log_sum_exp, call.scale, call.mask, call.causal)


@pytest.mark.parametrize("served", [True, False], ids=["fused", "blocks of rows"])
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_every_entry_of_the_pattern_is_right(monkeypatch, served, dtype, mask, key_heads):
    """For every mask, precision and grouping, with the fused kernel and without: all diagonals, columns and pairs."""
    if not served:
        monkeypatch.setattr(kernels, "KERNELS", {})
    query, key, value = parts(dtype, key_heads=key_heads)
    call = AttentionCall(query, key, value, MASKS[mask](dtype), 0.0, mask == "is_causal", None, key_heads != 4)
    reader, wanted = read(call), reference(call)
    close = {"atol": CLOSE[dtype], "rtol": 0, "check_dtype": False}
    found = reader.diagonals(range(T), first=True)
    for offset in range(T):
        torch.testing.assert_close(found[:, :, offset, offset:], wanted.diagonal(-offset, -2, -1), **close)
        assert not found[:, :, offset, :offset].any()
    torch.testing.assert_close(found[:, :, -1], wanted[..., 0], **close)
    keys = torch.tensor([3, 7])
    torch.testing.assert_close(reader.columns(keys), wanted[torch.arange(2), :, :, keys], **close)
    rows, queries = torch.tensor([0, 1, 1]), torch.tensor([4, 22, 9])
    torch.testing.assert_close(reader.pairs(rows, queries, queries - 2), wanted[rows, :, queries, queries - 2], **close)


@pytest.mark.parametrize("d_value", [8, 5])
def test_a_value_width_of_its_own_takes_the_portable_way(d_value):
    """Where values are narrower than queries another kernel serves, and the result is the same kind of thing."""
    call = AttentionCall(*parts(d_value=d_value), causal=True)
    torch.testing.assert_close(read(call).diagonals([0])[:, :, 0], reference(call).diagonal(0, -2, -1).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_a_scale_of_its_own_is_honoured(scale):
    """It need not be one over the square root of the width."""
    call = AttentionCall(*parts(), causal=True, given_scale=scale)
    torch.testing.assert_close(
        read(call).diagonals([1])[..., 0, 1:], reference(call).diagonal(-1, -2, -1).float(), atol=1e-5, rtol=0
    )


def lie_about(change):
    def kernel(call):
        return Attended(*change(*kernels._flash_cpu(call)))

    return kernel


@pytest.mark.parametrize(
    "change",
    [
        lambda output, told: (output, told + 1),
        lambda output, told: (output + 1, told),
        lambda output, told: (output, told[..., :-1]),
        lambda output, told: (output[..., :-1], told),
        lambda output, told: (output, torch.full_like(told, torch.nan)),
    ],
    ids=["log-sum-exp", "output", "rows missing", "width", "not a number"],
)
def test_a_kernel_that_lies_is_not_believed(monkeypatch, change):
    """Its first call is compared with exact rows and the public function; then blocks of rows serve, with the same scores."""
    wanted = measure_heads(build("llama")).prefix_matching
    forget(monkeypatch)
    monkeypatch.setattr(kernels, "KERNELS", {("cpu", kernels.FLASH): lie_about(change)})
    assert measure_heads(build("llama")).prefix_matching == pytest.approx(wanted, abs=1e-5)
    assert kernels._trusted
    assert not any(kernels._trusted.values())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda told: told + (told.shape[-1] > 64),
        lambda told: told + (torch.arange(told.shape[-1]) > 70),
        lambda told: told + (told.shape[-1] % 16 == 0),
    ],
    ids=["long sequences", "last rows", "a whole number of blocks"],
)
def test_a_kernel_that_lies_about_some_lengths_is_found_out_there(monkeypatch, wrong):
    """It told the truth on the few tokens of the verification, and is asked again where it may work in another way."""
    tokens = torch.randint(1, 40, (2, 80), generator=torch.Generator().manual_seed(0))
    model = Plain()
    twin = copy.deepcopy(model)  # which is verified anew
    wanted = [measure_heads(twin, tokens=tokens[:, :length]).prefix_matching for length in (79, 80)]
    forget(monkeypatch)
    lying = lie_about(lambda output, told: (output, wrong(told)))
    monkeypatch.setattr(kernels, "KERNELS", {("cpu", kernels.FLASH): lying})
    found = [measure_heads(model, tokens=tokens[:, :length]).prefix_matching for length in (79, 80)]
    assert np.array(found) == pytest.approx(np.array(wanted), abs=1e-5)
    assert set(kernels._trusted.values()) == {True, False}


def test_a_kernel_out_of_memory_is_no_liar(monkeypatch):
    """Fewer rows may fit, which is for the caller to try."""

    def full(call):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "KERNELS", {("cpu", kernels.FLASH): full})
    with pytest.raises(torch.OutOfMemoryError):
        attend(ORIGINAL, AttentionCall(*parts(), causal=True))
    assert not kernels._trusted


def test_a_kernel_that_is_gone_is_done_without(monkeypatch):
    """A private function may be missing, or take other arguments, in another torch."""

    def gone(call):
        raise AttributeError("no such kernel")

    wanted = measure_heads(build("llama")).prefix_matching
    forget(monkeypatch)
    monkeypatch.setattr(kernels, "KERNELS", {("cpu", kernels.FLASH): gone})
    assert measure_heads(build("llama")).prefix_matching == pytest.approx(wanted, abs=1e-5)


def test_a_choice_of_kernels_that_the_user_makes_is_honoured():
    """What torch chose once is remembered for as long as all that it depends on is the same."""
    call = AttentionCall(*parts(), causal=True)
    assert kernels._serving(ORIGINAL, call) is kernels._flash_cpu
    with sdpa_kernel(SDPBackend.MATH):
        assert kernels._serving(ORIGINAL, call) is None
        torch.testing.assert_close(
            read(call).diagonals([1])[..., 0, 1:], reference(call).diagonal(-1, -2, -1).float(), atol=1e-5, rtol=0
        )
    assert kernels._serving(ORIGINAL, call) is kernels._flash_cpu
    transposed = AttentionCall(*(part.mT.contiguous().mT for part in parts()), causal=True)
    assert kernels._serving(ORIGINAL, transposed) is None


def test_the_kernel_is_trusted_where_it_tells_the_truth():
    """The self-check does not refuse what is right, or every measurement would be slow."""
    measure_heads(build("llama"))
    assert all(kernels._trusted.values())
    assert kernels._trusted


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_autocast_is_measured_in_the_precision_it_computes_in(kind):
    """Rotary models mix precisions under it, which the kernel alone would not take; the scores themselves are not rounded."""
    model = build(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measure_heads(model)
    assert found.prefix_matching == pytest.approx(measure_heads(model).prefix_matching, abs=0.05)
    assert found.provenance.backend == "sdpa"
    assert (
        len({float(score) for score in found.per_sequence["first_token"].ravel()}) > 0.9 * found.per_sequence["first_token"].size
    )


@pytest.mark.parametrize(("kernel", "aligned"), [(kernels._efficient_cuda, 17), (kernels._cudnn, None)])
def test_the_mask_of_a_cuda_kernel_is_added_and_aligned(kernel, aligned):
    """Those kernels take numbers over all heads, in rows that begin at multiples of sixteen."""
    call = AttentionCall(*parts(), mask=padded())
    mask = kernels._aligned(call) if kernel is kernels._efficient_cuda else kernels._added(call)
    assert mask.shape == (2, 4, T, T)
    assert torch.equal(mask == 0, padded().expand(2, 4, T, T))
    if aligned:
        assert mask.stride(-2) % 16 == 0
