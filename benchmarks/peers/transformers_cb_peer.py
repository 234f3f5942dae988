"""transformers' continuous batching (`generate_batch`). The GGUF file is dequantized to float32 at load."""

from __future__ import annotations

from pathlib import Path

from peer import Load, Peer, main


class TransformersPeer(Peer):
    packages = ("transformers", "torch")
    kv, kv_itemsize = "float32", 4.0

    def load(self, given: Load) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig

        torch.set_num_threads(given.threads)
        path = Path(given.model)
        self._model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        ).eval()
        self.note = "generate_batch (continuous batching), weights dequantized to float32, no prefix reuse"

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=output_len,
            min_new_tokens=output_len,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs = self._model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
        by_prompt = {tuple(o.prompt_ids): list(o.generated_tokens) for o in outputs.values()}
        return [by_prompt[tuple(ids)] for ids in prompts]


if __name__ == "__main__":
    main(TransformersPeer())
