"""Penstock through `penstock.LLM`, settings as they come but for the size of the KV pool."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from peer import Load, Peer, main


class PenstockPeer(Peer):
    packages = ("numpy",)

    def versions(self) -> dict[str, str]:
        import penstock  # its own word: a checkout on the path has no installed metadata

        return {"penstock": penstock.__version__, **super().versions()}

    def load(self, given: Load) -> None:
        from penstock import LLM, SamplingParams

        self._params = SamplingParams
        # Room for float32, the widest precision of the KV: narrower ones hold more tokens.
        self._llm = LLM(given.model, kv_bytes=given.kv_tokens * given.kv_elements_per_token * 4, **given.options)
        ready = self._llm.ready
        # The reference backend keeps float32; a backend with another precision says so in its plan.
        self.kv_itemsize = float(ready.plan.get("kv_itemsize", 4))
        self.kv = {4.0: "float32", 2.0: "bfloat16"}.get(self.kv_itemsize, "int8")
        self.note = f"backend {ready.backend}, prefix cache on"

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
