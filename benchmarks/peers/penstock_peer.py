"""Penstock through `penstock.LLM`, settings as they come."""

from __future__ import annotations

from peer import Peer, main


class PenstockPeer(Peer):
    packages = ("penstock", "numpy")

    def load(self, model: str, threads: int) -> None:
        from penstock import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(model, kv_bytes=2 << 30)
        self.note = f"backend {self._llm.ready.backend}, KV float32, prefix cache on"

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        params = self._params(temperature=0.0, max_tokens=output_len, min_tokens=output_len, ignore_eos=True)
        return [list(result.token_ids) for result in self._llm.generate(prompts, params)]

    def close(self) -> None:
        self._llm.close()


if __name__ == "__main__":
    main(PenstockPeer())
