"""OpenVINO GenAI's LLMPipeline (continuous batching, paged attention) on the same GGUF file."""

from __future__ import annotations

from peer import Peer, main


class OpenVinoPeer(Peer):
    packages = ("openvino", "openvino-genai")

    def load(self, model: str, threads: int) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._np, self._ov, self._genai = numpy, openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 2  # GiB
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self.note = "the same GGUF file, ContinuousBatchingPipeline, KV cache 2 GiB, prefix caching on"

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output_len
        config.ignore_eos = True
        config.do_sample = False
        inputs = [self._ov.Tensor(self._np.asarray([ids], dtype=self._np.int64)) for ids in prompts]
        results = self._pipeline.generate(inputs, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]


if __name__ == "__main__":
    main(OpenVinoPeer())
