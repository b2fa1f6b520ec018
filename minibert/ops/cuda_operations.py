"""The operations of the forward pass on the CUDA kernels.

Each allocates its result in the scratch memory of the running batch, lets the pure functions of
`kernels/cuda/launch.py` choose a kernel and a grid, and puts it on the stream. What a device
is, and which batch runs, is the business of `cuda.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minibert.errors import DeviceError, InputError
from minibert.kernels.cuda import launch as launches
from minibert.kernels.cuda.device import Device
from minibert.kernels.cuda.launch import Launch
from minibert.ops.cuda_batch import DeviceBatch
from minibert.ops.cuda_stream import ELEMENT_BYTES, STORAGE, CudaStream, DeviceArray
from minibert.ops.cuda_weights import PADDING, Embedding, LayerNorm, Linear
from minibert.ops.interface import Activation, PoolMode, check_ids

__all__ = ["CudaOperations"]


class CudaOperations:
    """What `CudaOps` can compute inside a stream.

    Attributes:
        device: where.
        dtype: as `Ops.dtype`.
        batch_invariant: whether kernels whose last bits depend on the batch are left alone.
    """

    device: Device
    dtype: str
    batch_invariant: bool
    _float: str
    _state: CudaStream | None

    # ---- forward -----------------------------------------------------------------------------
    def embed(
        self, batch: DeviceBatch, tables: Sequence[Embedding | None], norm: LayerNorm | None
    ) -> DeviceArray:
        """See `Ops.embed`."""
        word, position, token_type = tables
        if word is None:
            raise InputError("tables must begin with the word table, got None")
        batch.table_rows = [table.num_rows if table else None for table in tables]
        check_ids(batch.source, batch.table_rows)
        out = self._new(batch.shape.num_tokens, word.width, self._float)
        quantized = self._new_quantized(out) if self.dtype == "int8" else None
        self._launch(
            launches.embed_layer_norm(
                self.device.target,
                self._float,
                num_tokens=out.num_rows,
                hidden_size=word.width,
            ),
            out.data,
            *_data(quantized),
            batch.input_ids,
            batch.position_ids,
            batch.token_type_ids,
            word.table,
            position.table if position else None,
            token_type.table if token_type else None,
            norm.weight if norm else None,
            norm.bias if norm else None,
            out.num_rows,
            word.width,
            quantized[0].row_stride if quantized else 0,
            norm.eps if norm else 0.0,
        )
        return out

    def linear(
        self,
        hidden: DeviceArray,
        weights: Linear,
        *,
        activation: Activation | None = None,
        residual: DeviceArray | None = None,
    ) -> DeviceArray:
        """See `Ops.linear`."""
        if hidden.num_columns != weights.in_features:
            raise InputError(
                f"hidden must have in_features = {weights.in_features} columns, "
                f"got {hidden.num_columns}"
            )
        hidden = self._converted(hidden, self._float)
        residual = self._converted(residual, self._float) if residual is not None else None
        out = self._new(hidden.num_rows, weights.out_features, self._float, hidden.per_seq)
        if residual is not None and residual.shape != out.shape:
            raise InputError(f"residual must have the shape {out.shape}, got {residual.shape}")
        if weights.places is not None:
            return self._sparse(out, hidden, weights, activation, residual)
        quantized = weights.weight_scale is not None
        narrow = (
            hidden.num_rows <= launches.NARROW_ROWS
            and self._float != "float32"
            and (quantized or not self.batch_invariant)
        )
        choose = launches.gemm_narrow if narrow and hidden.num_rows else launches.gemm
        launch = choose(
            self.device.target,
            self._float,
            activation,
            num_rows=hidden.num_rows,
            out_features=weights.stored_out,
            in_features=weights.stored_in,
            quantized=quantized,
        )
        operand, act_scale = (
            self._quantized(hidden, weights.input_range) if quantized else (hidden, None)
        )
        scales: tuple[Any, ...] = ()
        if narrow or quantized:
            row_scale = act_scale.data if act_scale else None
            scales = (row_scale, weights.weight_scale, weights.weight_sum)
        self._launch(
            launch,
            out.data,
            operand.data,
            weights.weight,
            *scales,
            weights.bias,
            residual.data if residual else None,
            out.num_rows,
            weights.stored_out,
            weights.stored_in,
        )
        return out

    def _sparse(
        self,
        out: DeviceArray,
        hidden: DeviceArray,
        weights: Linear,
        activation: Activation | None,
        residual: DeviceArray | None,
    ) -> DeviceArray:
        """`linear` with 2:4 sparse weights."""
        sizes = {
            "num_rows": out.num_rows,
            "out_features": weights.stored_out,
            "in_features": weights.stored_in,
        }
        self._launch(
            launches.gemm_sparse(self.device.target, self._float, activation, **sizes),
            out.data,
            hidden.data,
            weights.weight,
            weights.places,
            weights.bias,
            residual.data if residual else None,
            *sizes.values(),
        )
        return out

    def layer_norm(self, hidden: DeviceArray, norm: LayerNorm) -> DeviceArray:
        """See `Ops.layer_norm`."""
        hidden = self._converted(_dense(hidden), self._float)
        out = self._new(hidden.num_rows, hidden.num_columns, self._float, hidden.per_seq)
        quantized = self._new_quantized(out) if self.dtype == "int8" else None
        self._launch(
            launches.layer_norm(
                self.device.target,
                self._float,
                num_tokens=hidden.num_rows,
                hidden_size=hidden.num_columns,
            ),
            out.data,
            *_data(quantized),
            hidden.data,
            norm.weight,
            norm.bias,
            hidden.num_rows,
            hidden.num_columns,
            quantized[0].row_stride if quantized else 0,
            norm.eps,
        )
        return out

    def attention(
        self,
        qkv: DeviceArray,
        batch: DeviceBatch,
        *,
        num_heads: int,
        head_dim: int,
        softmax_scale: float,
    ) -> DeviceArray:
        """See `Ops.attention`."""
        if qkv.num_columns != 3 * num_heads * head_dim:
            raise InputError(
                f"qkv must have 3 * num_heads * head_dim = {3 * num_heads * head_dim} columns, "
                f"got {qkv.num_columns}"
            )
        if not softmax_scale > 0:
            raise InputError(f"softmax_scale must be positive, got {softmax_scale}")
        launch = launches.attention(
            self.device.target,
            self._float,
            num_tiles=batch.shape.num_tiles,
            num_heads=num_heads,
            head_dim=head_dim,
            row_stride=qkv.row_stride,
        )
        out = self._new(qkv.num_rows, num_heads * head_dim, self._float)
        self._launch(
            launch,
            out.data,
            qkv.data,
            batch.cu_seqlens,
            batch.tiles,
            num_heads,
            head_dim,
            qkv.row_stride,
            float(softmax_scale),
        )
        return out

    def pool(self, hidden: DeviceArray, batch: DeviceBatch, mode: PoolMode) -> DeviceArray:
        """See `Ops.pool`; sums and result are float32."""
        hidden = _dense(hidden)
        launch = launches.pool(
            self.device.target,
            hidden.dtype,
            mode,
            num_seqs=batch.shape.num_seqs,
            hidden_size=hidden.num_columns,
        )
        out = self._new(batch.shape.num_seqs, hidden.num_columns, "float32", True)
        self._launch(
            launch, out.data, hidden.data, batch.cu_seqlens, batch.skip, hidden.num_columns
        )
        return out

    def normalize(self, rows: DeviceArray) -> DeviceArray:
        """See `Ops.normalize`; the result is float32."""
        out = self._new(rows.num_rows, rows.num_columns, "float32", rows.per_seq)
        self._launch(
            launches.normalize(self.device.target, rows.dtype, num_rows=rows.num_rows),
            out.data,
            rows.data,
            rows.num_rows,
            rows.num_columns,
            out.row_stride,
            rows.row_stride,
        )
        return out

    def concatenate(self, arrays: Sequence[DeviceArray]) -> DeviceArray:
        """See `Ops.concatenate`; the result is float32 if any part is."""
        if len(arrays) == 1:
            return arrays[0]
        dtypes = {array.dtype for array in arrays}
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        columns = sum(array.num_columns for array in arrays)
        out = self._new(arrays[0].num_rows, columns, dtype, arrays[0].per_seq)
        begin = 0
        for array in arrays:
            last = begin + array.num_columns == columns
            self._copy_columns(out, array, begin, (out.row_stride if last else begin) - begin)
            begin += array.num_columns
        return out

    # ---- parts -------------------------------------------------------------------------------
    def _running(self) -> CudaStream:
        if self._state is None:
            raise DeviceError("an operation must stand inside `with ops.stream(...) as ops:`")
        return self._state

    def _new(
        self, num_rows: int, num_columns: int, dtype: str, per_seq: bool = False
    ) -> DeviceArray:
        return self._running().new(num_rows, num_columns, dtype, per_seq=per_seq)

    def _new_int8(self, array: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """Room for an array's rows as int8, and the RowScale of each."""
        rows = array.num_rows
        return (
            self._new(rows, array.num_columns, "int8", array.per_seq),
            self._running().new(rows, 2, "float32", per_seq=array.per_seq, padded=False),
        )

    def _new_quantized(self, array: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
        """Room for the int8 companion of an array."""
        array.quantized = self._new_int8(array)
        return array.quantized

    def _quantized(
        self, hidden: DeviceArray, fixed: tuple[float, float] | None
    ) -> tuple[DeviceArray, DeviceArray]:
        """The int8 companion of an array, made by its producer or now; or by a fixed range."""
        if fixed is None and hidden.quantized is not None:
            return hidden.quantized
        made = self._new_quantized(hidden) if fixed is None else self._new_int8(hidden)
        choose = launches.quantize_rows if fixed is None else launches.quantize_rows_fixed
        self._launch(
            choose(self.device.target, hidden.dtype, num_tokens=hidden.num_rows),
            *_data(made),
            hidden.data,
            hidden.num_rows,
            hidden.row_stride,
            hidden.row_stride,
            made[0].row_stride,
            *(fixed or ()),
        )
        return made

    def _converted(self, array: DeviceArray, dtype: str) -> DeviceArray:
        """The array in another dtype, or itself."""
        if array.dtype == dtype:
            return array
        out = self._new(array.num_rows, array.num_columns, dtype, array.per_seq)
        self._copy_columns(out, array, 0, out.row_stride)
        return out

    def _copy_columns(self, out: DeviceArray, array: DeviceArray, begin: int, written: int) -> None:
        """Put an array into columns of another, and zeros up to `written` columns behind it."""
        written = max(written, array.num_columns)
        offset = self.device.view(
            out.data,
            begin * ELEMENT_BYTES[out.dtype],
            (max(out.num_rows * out.row_stride - begin, 0),),
            STORAGE[out.dtype],
        )
        self._launch(
            launches.copy_columns(
                self.device.target,
                out.dtype,
                array.dtype,
                num_rows=array.num_rows,
                written_columns=written,
            ),
            offset,
            array.data,
            array.num_rows,
            array.num_columns,
            written,
            out.row_stride,
            array.row_stride,
        )

    def _launch(self, launch: Launch, *arguments: Any) -> None:
        if all(launch.grid_size):  # an empty batch has nothing to launch
            self.device.launch(launch, *arguments)


def _data(pair: tuple[DeviceArray, DeviceArray] | None) -> tuple[Any, Any]:
    return (pair[0].data, pair[1].data) if pair else (None, None)


def _dense(array: DeviceArray) -> DeviceArray:
    if array.row_stride != array.num_columns:
        raise InputError(
            f"hidden_size must be a multiple of {PADDING} on CUDA, got {array.num_columns}; "
            "use device='cpu'"
        )
    return array
