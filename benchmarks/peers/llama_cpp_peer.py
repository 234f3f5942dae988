"""llama.cpp (`llama-cpp-python`, compiled for this machine) on the same GGUF file.

Its high-level class runs one sequence at a time, so batches go through `llama_decode` with many
sequences. What is timed is llama.cpp's work and an argmax per row; sequences whose prompt is that of
the call before keep its KV, which is what a prefix cache would do.
"""

from __future__ import annotations

import ctypes

from peer import Load, Peer, main

MAX_SEQUENCES = 64
STEP_TOKENS = 512  # its own default for a prompt's chunk


class LlamaCppPeer(Peer):
    packages = ("llama-cpp-python",)
    kv, kv_itemsize = "float16 (its default)", 2.0

    def load(self, given: Load) -> None:
        import llama_cpp
        import numpy

        self._np, self._api = numpy, llama_cpp
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            given.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load {given.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = given.kv_tokens
        params.n_batch, params.n_ubatch = 2048, STEP_TOKENS
        params.n_seq_max = MAX_SEQUENCES
        params.n_threads = params.n_threads_batch = given.threads
        params.kv_unified = True  # sequences share the pool: lengths may differ
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {given.kv_tokens} tokens")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(2048, 0, 1)
        self._held: list[list[int]] = []
        self.note = "llama_decode over many sequences, argmax in numpy, built for this CPU (without AMX)"

    def run(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        if len(prompts) > MAX_SEQUENCES:
            raise RuntimeError(f"{len(prompts)} sequences, llama.cpp was given {MAX_SEQUENCES}")
        rows = self._prefill(prompts)
        answers: list[list[int]] = [[token] for token in rows]
        for step in range(output_len - 1):
            wanted = [
                (answer[-1], len(prompt) + step, sequence)
                for sequence, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            ]
            for answer, token in zip(answers, self._decode(wanted, set(range(len(wanted)))), strict=True):
                answer.append(token)
        return answers

    def _prefill(self, prompts: list[list[int]]) -> list[int]:
        """The first token of every prompt."""
        memory = self._api.llama_get_memory(self._context)
        todo: list[tuple[int, int, int]] = []
        for sequence, prompt in enumerate(prompts):
            kept = sequence < len(self._held) and self._held[sequence] == prompt
            start = len(prompt) - 1 if kept else 0
            self._api.llama_memory_seq_rm(memory, sequence, start, -1)
            todo += [(token, start + i, sequence) for i, token in enumerate(prompt[start:])]
        for sequence in range(len(prompts), len(self._held)):
            self._api.llama_memory_seq_rm(memory, sequence, -1, -1)
        self._held = [list(prompt) for prompt in prompts]
        last = {sequence: len(prompt) - 1 for sequence, prompt in enumerate(prompts)}
        first: list[int] = []
        for begin in range(0, len(todo), STEP_TOKENS):
            chunk = todo[begin : begin + STEP_TOKENS]
            ends = {i for i, (_, position, sequence) in enumerate(chunk) if position == last[sequence]}
            first += self._decode(chunk, ends)
        return first

    def _decode(self, rows: list[tuple[int, int, int]], with_logits: set[int]) -> list[int]:
        """One llama_decode of (token, position, sequence) rows; the best token of those in `with_logits`."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i in with_logits
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        best = []
        for i in sorted(with_logits):
            pointer = self._api.llama_get_logits_ith(self._context, i)
            logits = self._np.ctypeslib.as_array(
                ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._vocab,)
            )
            best.append(int(logits.argmax()))
        return best


if __name__ == "__main__":
    main(LlamaCppPeer())
