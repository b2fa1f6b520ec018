"""The emulated AMX instructions of amx_trap.h, one at a time, against NumPy and Intel's manual.

On a processor with AMX they are its own; only how misuse is reported is not tested there.
"""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import numpy as np
import pytest

from tests.kernels.cpu import amx_build
from tests.kernels.cpu.amx_build import COMPILER, HAS_AMX, HERE
from tests.kernels.cpu.native_runner import FLAGS

pytestmark = amx_build.needed


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = tmp_path_factory.mktemp("cases") / "amx_cases"
    sources = (HERE / "amx_cases.cpp", HERE / "amx_trap.cpp")
    amx = amx_build.recipe()["PATHS_X86_64"]["amx"][0]
    subprocess.run([COMPILER, *FLAGS, "-O1", *amx, *sources, "-pthread", "-o", program], check=True)
    return str(program)


def configuration(*shapes: tuple[int, int], palette: int = 1, start_row: int = 0) -> Any:
    """64 bytes as ldtilecfg reads them: tiles of (rows, bytes of a row)."""
    out = np.zeros(64, np.uint8)
    out[:2] = palette, start_row
    for tile, (rows, row_bytes) in enumerate(shapes):
        out[16 + 2 * tile : 18 + 2 * tile] = row_bytes & 255, row_bytes >> 8
        out[48 + tile] = rows
    return out


def execute(cases: str, operation: str, config: Any, *tiles: Any) -> tuple[Any, Any]:
    """Tiles 0, 1, 2 are (16, 64) bytes in memory -> what is stored of tile 0, and sttilecfg's."""
    memory = [np.zeros((16, 64), np.uint8) if tile is None else tile for tile in tiles]
    done = subprocess.run(
        [cases, "multiply", operation],
        input=b"".join([config.tobytes(), *(tile.tobytes() for tile in memory)]),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    out = np.frombuffer(done.stdout, np.uint8)
    return out[:1024].reshape(16, 64), out[1024:]


def random_tiles(seed: int) -> list[Any]:
    return list(np.random.default_rng(seed).integers(0, 256, (3, 16, 64), np.uint8))


UNTOUCHED = 0xAA  # what the program puts where tile 0 is to be stored
SHAPES = [(16, 16, 16), (1, 1, 1), (16, 3, 5), (7, 16, 2), (5, 9, 16)]  # M, N, K in groups


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize(
    ("operation", "left", "right"),
    [
        ("bssd", np.int8, np.int8),
        ("bsud", np.int8, np.uint8),
        ("busd", np.uint8, np.int8),
        ("buud", np.uint8, np.uint8),
    ],
)
def test_integer_products_are_numpys(
    cases: str, operation: str, left: Any, right: Any, m: int, n: int, k: int
) -> None:
    c, a, b = random_tiles(m)
    config = configuration((m, 4 * n), (m, 4 * k), (k, 4 * n))
    out, stored = execute(cases, operation, config, c, a, b)
    rows = a[:m, : 4 * k].view(left).astype(np.int64)
    cols = b[:k, : 4 * n].reshape(k, n, 4).transpose(0, 2, 1).reshape(4 * k, n)
    sums = c.view(np.int32)[:m, :n] + rows @ cols.view(right).astype(np.int64)
    # C holds any 32 bits: some sums wrap around.
    expected = np.full((16, 64), UNTOUCHED, np.uint8)
    expected[:m, : 4 * n] = (sums & 0xFFFFFFFF).astype(np.uint32).view(np.uint8)
    np.testing.assert_array_equal(out, expected)
    assert stored.tobytes() == config.tobytes()


def bfloat16_tile(values: Any) -> Any:
    """(rows, cols) float32 that bfloat16 holds exactly -> (16, 64) bytes of a tile."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    out = np.zeros((16, 32), np.uint16)
    out[: bits.shape[0], : bits.shape[1]] = bits >> 16
    return out.view(np.uint8)


def paired(cols: Any) -> Any:
    """(2 K, N) -> (K, 2 N): each output's two inputs next to each other."""
    return cols.reshape(-1, 2, cols.shape[1]).transpose(0, 2, 1).reshape(len(cols) // 2, -1)


def float32_tile(values: Any) -> Any:
    out = np.zeros((16, 16), np.float32)
    out[: values.shape[0], : values.shape[1]] = values
    return out.view(np.uint8)


def bfloat16_product(cases: str, c: Any, a: Any, b: Any) -> Any:
    """C (M, N) + A (M, 2 K) B (2 K, N), in float32."""
    (m, n), k = c.shape, a.shape[1] // 2
    config = configuration((m, 4 * n), (m, 4 * k), (k, 4 * n))
    tiles = float32_tile(c), bfloat16_tile(a), bfloat16_tile(paired(b))
    out, _ = execute(cases, "bf16ps", config, *tiles)
    assert (out[m:] == UNTOUCHED).all() and (out[:, 4 * n :] == UNTOUCHED).all()
    return out.view(np.float32)[:m, :n]


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_bfloat16_products_of_integers_are_exact(cases: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(k)
    a = rng.integers(-128, 129, (m, 2 * k)).astype(np.float32)
    b = rng.integers(-128, 129, (2 * k, n)).astype(np.float32)
    c = rng.integers(-1000, 1000, (m, n)).astype(np.float32)
    np.testing.assert_array_equal(bfloat16_product(cases, c, a, b), c + a @ b)


def one(cases: str, c: float, *products: tuple[float, float]) -> float:
    """One output: c + a * b + ..."""
    a, b = np.array(products, np.float32).T
    result = bfloat16_product(cases, np.full((1, 1), c, np.float32), a[None], b[:, None])
    return float(result[0, 0])


def test_bfloat16_sums_even_and_odd_inputs_apart(cases: str) -> None:
    # Units of 2^24 and 1 to float32: 2^24 + 1 is a tie and rounds down, to even.
    big, none = 2.0**12, (0.0, 0.0)
    assert one(cases, 0, (big, big), none, (1, 1), none, (-big, big), none) == 0
    assert one(cases, 0, (big, big), (1, 1), none, none, (-big, big), none) == 1
    # Both sums are added before the tile's value: (2^24 - 2^24) + 1, and (1 + 1) + 2^24.
    assert one(cases, 1, (big, big), (-big, big)) == 1
    assert one(cases, 2.0**24, (1, 1), (1, 1)) == 2.0**24 + 2


def test_bfloat16_rounds_once_a_step_and_to_nearest(cases: str) -> None:
    none = (0.0, 0.0)
    # The program itself rounds towards zero.
    assert one(cases, 0, (2.0**12, 2.0**12), none, (1.5, 1), none) == 2.0**24 + 2
    # float32 holds any product of two bfloat16 but a tiny one: rounded on its own it would be 0.
    assert one(cases, 0, (2.0**-125, 1), none, (2.0**-75, -(2.0**-74)), none) == (
        2.0**-125 - 2.0**-149
    )


def test_bfloat16_takes_subnormal_values_for_zero(cases: str) -> None:
    smallest = 2.0**-126  # of the normal ones
    none = (0.0, 0.0)
    assert one(cases, 0, (smallest, 1), none) == smallest
    assert one(cases, 0, (smallest / 2, 2.0**100), none) == 0  # an operand
    assert one(cases, 0, (1, smallest / 2), none) == 0
    assert one(cases, 0, (smallest, 0.5), none, (smallest, 0.5), none) == 0  # a result
    assert one(cases, smallest / 2, none, none) == 0  # the tile
    assert one(cases, 0, (smallest, 1.5), (-smallest, 1)) == 0  # the sum of even and odd
    assert one(cases, 1.5 * smallest, (-smallest, 1), none) == 0  # the sum with the tile
    # Below the normal range before it is rounded to a subnormal's fewer bits, which is 2^-126.
    assert one(cases, 0, (smallest, 1), none, (2.0**-75, -(2.0**-75)), none) == 0


def test_loads_reach_every_address(cases: str) -> None:
    # In the order of amx_cases.cpp: offset of the first row, bytes from row to row.
    addresses = [
        *((8192, 64), (8192, 72), (8192, 100), (8192, 128), (8192, 64), (8192, 64)),
        *((8192 + 112, 64), (8192 - 128, 64), (8192 + 0x1234, 64), (8192 - 0x1234, 64)),
        *((8192, -80), (8192, 128), (8192, 0)),
    ]
    memory = np.random.default_rng(0).integers(0, 256, 65536, np.uint8)
    done = subprocess.run(
        [cases, "address"], input=memory.tobytes(), stdout=subprocess.PIPE, check=True
    )
    out = np.frombuffer(done.stdout, np.uint8)
    assert out.size == 1024 * len(addresses) + 64
    for index, (offset, stride) in enumerate(addresses):
        rows = [memory[offset + row * stride :][:64] for row in range(16)]
        tile = out[1024 * index : 1024 * (index + 1)]
        np.testing.assert_array_equal(tile.reshape(16, 64), rows, err_msg=str(index))
    assert out[-64:].tobytes() == configuration(*[(16, 64)] * 8).tobytes()


def test_a_load_goes_on_at_its_start_row(cases: str) -> None:
    tiles = random_tiles(1)
    shapes = (5, 12), (16, 64), (16, 64)
    out, stored = execute(cases, "nothing", configuration(*shapes, start_row=3), *tiles)
    expected = np.full((16, 64), UNTOUCHED, np.uint8)
    expected[:5, :12] = tiles[0][:5, :12]
    expected[:3, :12] = 0  # rows above: as ldtilecfg left them
    np.testing.assert_array_equal(out, expected)
    assert stored.tobytes() == configuration(*shapes).tobytes()  # from 0 again


def test_zero_and_release(cases: str) -> None:
    config = configuration(*[(16, 64)] * 3)
    out, stored = execute(cases, "zero", config, *random_tiles(2))
    assert not out.any()
    assert stored.tobytes() == config.tobytes()
    out, stored = execute(cases, "released", config, *random_tiles(2))
    assert (out == UNTOUCHED).all()
    assert not stored.any()


def refused(command: list[str], operands: bytes, message: str) -> None:
    done = subprocess.run(command, input=operands, capture_output=True)
    if HAS_AMX:  # a signal of the processor's
        assert done.returncode in (-signal.SIGILL, -signal.SIGSEGV)
    else:
        assert done.returncode == 97
        assert message in done.stderr.decode()


def whole(**changed: Any) -> Any:
    return configuration(*[(16, 64)] * 3, **changed)


def set_byte(place: int, value: int) -> Any:
    config = whole()
    config[place] = value
    return config


@pytest.mark.parametrize(
    ("operation", "config", "message"),
    [
        ("nothing", configuration((17, 64), (16, 64), (16, 64)), "ldtilecfg: #GP: a tile has at"),
        ("nothing", configuration((16, 68), (16, 64), (16, 64)), "ldtilecfg: #GP: a row has at"),
        ("nothing", configuration((16, 0), (16, 64), (16, 64)), "ldtilecfg: #GP: rows and bytes"),
        ("nothing", whole(palette=2), "ldtilecfg: #GP: the palette"),
        ("nothing", set_byte(2, 1), "ldtilecfg: #GP: reserved"),
        ("nothing", set_byte(32, 1), "ldtilecfg: #GP: reserved"),
        ("nothing", set_byte(63, 1), "ldtilecfg: #GP: reserved"),
        ("nothing", whole(palette=0), "tileloadd: #UD: the tiles are not configured"),
        ("nothing", configuration((16, 64), (16, 64)), "tileloadd: #UD: no such tile"),
        ("nothing", configuration((16, 62), (16, 64), (16, 64)), "tileloadd: #UD: a row must be"),
        ("nothing", whole(start_row=16), "tileloadd: #UD: start_row"),
        ("same", whole(), "tdpbusd: #UD: its tiles must differ"),
        ("busd", configuration((15, 64), (16, 64), (16, 64)), "tdpbusd: #UD: the shapes"),
        ("bf16ps", configuration((16, 60), (16, 64), (16, 64)), "tdpbf16ps: #UD: the shapes"),
        ("bf16ps", configuration((16, 64), (16, 60), (16, 64)), "tdpbf16ps: #UD: the shapes"),
    ],
)
def test_a_broken_rule_ends_the_program(
    cases: str, operation: str, config: Any, message: str
) -> None:
    refused([cases, "multiply", operation], config.tobytes() + bytes(3 * 1024), message)


@pytest.mark.parametrize("name", ["unconfigured", "other_thread"])
def test_tiles_must_be_configured_on_each_thread(cases: str, name: str) -> None:
    refused([cases, name], b"", "tilezero: #UD: the tiles are not configured")


@pytest.mark.parametrize(("name", "code"), [("not_amx", "0f 0b"), ("almost_amx", "c4 e2 f8 49 c0")])
def test_other_illegal_instructions_end_the_program_as_always(
    cases: str, name: str, code: str
) -> None:
    done = subprocess.run([cases, name], capture_output=True)
    assert done.returncode == -signal.SIGILL
    assert f"amx_trap: not an AMX instruction: {code}" in done.stderr.decode()
