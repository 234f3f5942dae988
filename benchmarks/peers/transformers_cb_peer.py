"""transformers' continuous batching manager. The GGUF file is dequantized to float32 at load.

One manager for the life of the process: `generate_batch` would allocate its KV (by default most of the
machine's memory) anew in every call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peer import Load, Peer, main

PAGE_TOKENS = 256  # its default
MAX_KV_TOKENS = 65536  # allocated at once, in float32, twice


class TransformersPeer(Peer):
    packages = ("transformers", "torch")
    kv, kv_itemsize = "float32", 4.0

    def load(self, given: Load) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        torch.set_num_threads(given.threads)
        path = Path(given.model)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        ).eval()
        # A request takes whole pages: room for the last, half-filled one of 64 rows.
        pages = min(given.kv_tokens, MAX_KV_TOKENS) // PAGE_TOKENS + 64
        self._manager = model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=16),
            ContinuousBatchingConfig(page_size=PAGE_TOKENS, num_blocks=pages),
        )
        self._manager.start()
        self.note = (
            "continuous batching manager, weights dequantized to float32, "
            f"{pages} KV pages of {PAGE_TOKENS}, whole pages shared between equal prefixes"
        )

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        names = [self._add(prompt, output_len) for prompt in prompts]
        outputs = {output.request_id: output for output in (self._next() for _ in names)}
        return [list(outputs[name].generated_tokens) for name in names]

    def list(self, requests: list[dict], concurrency: int) -> int:
        waiting = iter(requests)
        running = tokens = 0
        while True:
            while running < concurrency and (request := next(waiting, None)) is not None:
                self._add(request["prompt"], request["output_len"])
                running += 1
            if not running:
                return tokens
            tokens += len(self._next().generated_tokens)
            running -= 1

    def _add(self, prompt: list[int], output_len: int) -> str:
        return self._manager.add_request(prompt, max_new_tokens=output_len, eos_token_id=-1)

    def _next(self) -> Any:
        """The next request that ends."""
        while True:
            output = self._manager.get_result(timeout=1)
            if output is not None and output.error is not None:
                raise RuntimeError(output.error)
            if output is not None and output.is_finished():
                return output
            if output is None and not self._manager.is_running():
                raise RuntimeError("the manager's thread has ended")

    def close(self) -> None:
        self._manager.stop()


if __name__ == "__main__":
    main(TransformersPeer())
