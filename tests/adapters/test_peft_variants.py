"""The corpus that other tests rely on does what it says: every adapter visibly changes the base's answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from caraserve_cli.adapters.library import AdapterLibrary
from tests.adapters.bases import FAMILIES, tiny_llama
from tests.adapters.peft_variants import VARIANTS, write_variants

PROMPTS = torch.tensor([[3, 9, 14, 20, 1, 7], [5, 5, 2, 61, 33, 8], [40, 41, 42, 43, 44, 45]])


def greedy(model: torch.nn.Module, prompts: torch.Tensor, num_tokens: int = 12) -> torch.Tensor:
    tokens = prompts
    with torch.no_grad():
        for _ in range(num_tokens):
            logits = model(input_ids=tokens).logits[:, -1]
            assert torch.isfinite(logits).all()
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens[:, prompts.shape[1] :]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_changes_greedy_answers(family: str, tmp_path: Path) -> None:
    names = write_variants(tmp_path, FAMILIES[family], seed=100)
    assert AdapterLibrary.scan([tmp_path]).names == tuple(sorted(names))
    base = greedy(FAMILIES[family](), PROMPTS)
    answers = {}
    for name in names:
        model = PeftModel.from_pretrained(FAMILIES[family](), str(tmp_path / name)).eval()
        answers[name] = greedy(model, PROMPTS)
    unchanged = [name for name, answer in answers.items() if torch.equal(answer, base)]
    assert unchanged == []
    assert len({tuple(answer.flatten().tolist()) for answer in answers.values()}) == len(names)


def test_files_have_the_format_and_dtype_of_their_variant(tmp_path: Path) -> None:
    write_variants(tmp_path, tiny_llama, seed=1)
    for variant in VARIANTS:
        folder = tmp_path / variant.name
        assert (folder / "adapter_model.bin").exists() != variant.safetensors
        tensors = (
            load_file(folder / "adapter_model.safetensors")
            if variant.safetensors
            else torch.load(folder / "adapter_model.bin", weights_only=True)
        )
        assert {tensor.dtype for tensor in tensors.values()} == {variant.dtype}
