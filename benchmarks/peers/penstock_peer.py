"""Penstock through `penstock.LLM`, settings as they come but for the size of the KV pool."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

from peer import Load, Peer, main

# Bytes per number of KV. int8: a float32 scale per token and head beside 64 numbers.
ITEMSIZE = {"float32": 4.0, "bf16": 2.0, "int8": 1 + 4 / 64, "auto": 2.0}


class PenstockPeer(Peer):
    packages = ("numpy",)

    def versions(self) -> dict[str, str]:
        import penstock  # its own word: a checkout on the path has no installed metadata

        return {"penstock": penstock.__version__, **super().versions()}

    def load(self, given: Load) -> None:
        from penstock import LLM, SamplingParams

        self._params = SamplingParams
        chosen = {"threads": given.threads, **given.options}
        itemsize = ITEMSIZE[chosen.get("kv_dtype", "auto")]
        nbytes = math.ceil(given.kv_tokens * given.kv_elements_per_token * itemsize)
        self._llm = LLM(given.model, kv_bytes=nbytes, **chosen)
        settings, ready = self._llm.settings, self._llm.ready
        self.kv = settings.kv_dtype
        if self.kv == "auto":
            exact = ready.backend == "reference" or settings.weights == "float32"
            self.kv = "float32" if exact else "bf16"
        self.kv_itemsize = ITEMSIZE[self.kv]
        changed = "".join(f", {name} {value}" for name, value in given.options.items())
        self.note = f"backend {ready.backend}, weights {settings.weights}, prefix cache on{changed}"

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        results = self._llm.generate(prompts, self._sampling(output_len), progress=False)
        return [list(result.token_ids) for result in results]

    def list(self, requests: list[dict], concurrency: int) -> int:
        def one(request: dict) -> int:
            params = self._sampling(request["output_len"])
            return len(self._llm.generate([request["prompt"]], params, progress=False)[0].token_ids)

        with ThreadPoolExecutor(concurrency) as pool:
            return sum(pool.map(one, requests))

    def _sampling(self, output_len: int) -> object:
        return self._params(temperature=0.0, max_tokens=output_len, min_tokens=output_len, ignore_eos=True)

    def close(self) -> None:
        self._llm.close()


if __name__ == "__main__":
    main(PenstockPeer())
