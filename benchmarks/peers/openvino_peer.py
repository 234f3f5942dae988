"""OpenVINO GenAI's ContinuousBatchingPipeline (paged attention) on the same GGUF file."""

from __future__ import annotations

from peer import Load, Peer, main

BLOCK_TOKENS = 32  # of its KV blocks on a CPU


class OpenVinoPeer(Peer):
    packages = ("openvino", "openvino-genai")

    def load(self, given: Load) -> None:
        import numpy
        import openvino
        import openvino_genai

        self._np, self._ov, self._genai = numpy, openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        blocks = scheduler.num_kv_blocks = given.kv_tokens // BLOCK_TOKENS
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": given.threads}
        asked = given.options.get("kv_precision")
        if asked:
            properties["KV_CACHE_PRECISION"] = asked
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(given.model, scheduler, "CPU", properties)
        self._number = 0
        self.run([[1, 2, 3]], 1)  # its KV is allocated with the first request
        nbytes = self._pipeline.get_metrics().kv_cache_size_in_bytes
        self.kv_itemsize = nbytes / (blocks * BLOCK_TOKENS * given.kv_elements_per_token)
        compute = self._ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
        widened = (
            asked == "f16" and compute == "bf16"
        )  # its plugin keeps 16-bit KV in the type it computes in
        self.kv = "bf16" if widened else asked or "u8 (its default)"
        self.note = f"the same GGUF file, computes in {compute}, {blocks} KV blocks of 32, prefix caching on"

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        config = self._config(output_len)
        inputs = [self._tensor(ids) for ids in prompts]
        results = self._pipeline.generate(inputs, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]

    def list(self, requests: list[dict], concurrency: int) -> int:
        todo = iter(requests)
        running: list = []
        tokens = 0
        while True:
            for request in todo:
                self._number += 1
                config = self._config(request["output_len"])
                running.append(
                    self._pipeline.add_request(self._number, self._tensor(request["prompt"]), config)
                )
                if len(running) == concurrency:
                    break
            if not running:
                return tokens
            self._pipeline.step()
            finished = [handle for handle in running if handle.get_status() != self._running_status]
            tokens += sum(len(handle.read_all()[0].generated_ids) for handle in finished)
            running = [handle for handle in running if handle not in finished]

    @property
    def _running_status(self) -> object:
        return self._genai.GenerationStatus.RUNNING

    def _tensor(self, ids: list[int]) -> object:
        return self._ov.Tensor(self._np.asarray([ids], dtype=self._np.int64))

    def _config(self, output_len: int) -> object:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output_len
        config.ignore_eos = True
        config.do_sample = False
        return config


if __name__ == "__main__":
    main(OpenVinoPeer())
