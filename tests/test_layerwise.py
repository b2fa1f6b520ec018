from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert.compress.layerwise import LayerWalk, sums_before_norms
from minibert.compress.run import TextRun
from minibert.kernels.cpu.loader import available
from minibert.loading import load_model

TEXTS = ["the cat sat on the mat", "a dog", "ice on the lake and bread", "paper bag moon sun"] * 3
DEVICES = ["numpy", *(["cpu", "emulator"] if available()[0] else [])]


def expected_states(folder: Path, run: TextRun) -> list[dict[bytes, Any]]:
    """Hidden states after each layer by transformers in float64, a text at a time, by its ids."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).double().eval()
    found: list[dict[bytes, Any]] = []
    for ids in run.tokenized.input_ids:
        with torch.no_grad():
            out = model(torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True)
        for depth, states in enumerate(out.hidden_states):
            if len(found) <= depth:
                found.append({})
            found[depth][ids.tobytes()] = states[0].numpy()
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_walk_gives_the_hidden_states_of_transformers(
    tiny: Any, family: str, device: str
) -> None:
    folder = tiny(family)
    loaded = load_model(folder)
    run = TextRun(loaded, TEXTS, device=device)
    walk = LayerWalk(run)
    depths = expected_states(folder, run)
    states = walk.start(loaded.weights)
    for depth, expected in enumerate(depths):
        if depth:
            states = walk.through(states, loaded.weights.layers[depth - 1])
        if depth == 0 and family == "electra":
            continue  # transformers lists them before the projection
        for batch, hidden in zip(walk.batches, states, strict=True):
            for begin, end in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
                want = expected[batch.input_ids[begin:end].tobytes()]
                # float32 against float64: a few hundred roundings of values below 10.
                np.testing.assert_allclose(hidden[begin:end], want, atol=2e-4)
    np.testing.assert_allclose(walk.embeddings(states), run.embeddings(), atol=2e-4)
    walk.close()


def test_contexts_and_sums_are_those_that_an_observer_sees(tiny: Any) -> None:
    loaded = load_model(tiny("bert"))
    run = TextRun(loaded, TEXTS)
    walk = LayerWalk(run)
    start = walk.start(loaded.weights)
    contexts = walk.contexts(start, loaded.weights.layers[0])
    _, attention, output = sums_before_norms(walk, start, loaded.weights.layers[:2])
    seen: dict[str, list[Any]] = {}
    run.embeddings(observer=lambda event: seen.setdefault(event.name, []).append(event))
    count = run.num_tokens
    assert sum(map(len, contexts)) == sum(map(len, attention)) == sum(map(len, output)) == count

    def rows(arrays: Any) -> Any:
        """Sorted: the two runs cut their batches differently."""
        joined = np.concatenate(list(arrays))
        return joined[np.lexsort(joined.T[::-1].round(4))]

    for found, want in (
        (contexts, (e.hidden for e in seen["layer.0.attention_output"])),
        (attention, (e.out for e in seen["layer.1.attention_output"])),
        (output, (e.out for e in seen["layer.1.output"])),
    ):
        np.testing.assert_allclose(rows(found), rows(want), atol=1e-4)
    walk.close()
