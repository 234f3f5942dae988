"""transformers: its continuous batching (`generate_batch`), or plain `generate` with --plain.

The GGUF file is dequantized to float32 at load.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peer import Peer, main


class TransformersPeer(Peer):
    packages = ("transformers", "torch")

    def __init__(self, plain: bool) -> None:
        self._plain = plain

    def load(self, model: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig

        torch.set_num_threads(threads)
        self._torch = torch
        path = Path(model)
        self._model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        ).eval()
        kind = "generate, one padded batch" if self._plain else "generate_batch (continuous batching)"
        self.note = f"{kind}, weights dequantized to float32"

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        return (
            self._generate(prompts, output_len) if self._plain else self._generate_batch(prompts, output_len)
        )

    def _config(self, output_len: int) -> object:
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=output_len,
            min_new_tokens=output_len,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )

    def _generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        ids = self._torch.tensor(prompts)
        with self._torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=self._torch.ones_like(ids), generation_config=self._config(output_len)
            )
        return [row[len(prompts[0]) :].tolist() for row in out]

    def _generate_batch(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        outputs = self._model.generate_batch(
            inputs=prompts, generation_config=self._config(output_len), progress_bar=False
        )
        by_prompt = {tuple(o.prompt_ids): list(o.generated_tokens) for o in outputs.values()}
        return [by_prompt[tuple(ids)] for ids in prompts]


if __name__ == "__main__":
    main(TransformersPeer(plain="--plain" in sys.argv))
